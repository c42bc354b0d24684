"""Every key of a run's YAML file. Class defaults are the vetted settings; the text under a field says its effect."""

import re
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from reward.config import (
    AnswerConfig,
    MajorityConfig,
    MetaJudgeConfig,
    ReflectionConfig,
    RewardConfig,
    VerifierConfig,
    all_rewards,
    uses_labels,
)
from rlsf.config.algorithms import MAX_RATE, AlgorithmConfig, GrpoConfig
from rlsf.config.clustering import RunClustersConfig
from rlsf.config.guard import GuardConfig
from rlsf.config.replay import ReplayConfig
from rlsf.config.strategies import ContinualConfig
from rlsf.config.stream import DriftingStream, JointStream, SequentialStream, StreamConfig
from rollouts.config import MAX_COMPLETIONS, AutoEngineConfig, DeliveryConfig, EngineConfig, SamplingConfig, Section
from rollouts.types import SamplingParams

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
"""Of a run or a task: it becomes part of file names."""
MAX_NAME = 100


class LoraConfig(Section):
    """The adapter that is trained; the base model stays frozen."""

    r: int = Field(16, ge=1)
    """Rank."""
    alpha: float = Field(32.0, gt=0)
    """Scale numerator: updates are multiplied by alpha / r."""
    use_rslora: bool = False
    """Multiply by alpha / √r instead, which lets higher ranks learn as fast (arXiv 2312.03732)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the adapter's input. Anything above 0 makes training log-probabilities differ from the engine's."""
    target_modules: str | list[str] = "all-linear"
    """Module names, or `all-linear`, or one text as a pattern for the whole of a module's name."""

    @model_validator(mode="after")
    def _check(self) -> "LoraConfig":
        try:
            re.compile(self.target_modules if isinstance(self.target_modules, str) else "")
        except re.error as error:
            raise ValueError(f"target_modules: {self.target_modules!r} is no regular expression: {error}") from error
        return self


class ModelConfig(Section):
    """The language model."""

    source: str = "lab"
    """`lab` (the small model that ships with rlsf), a hub id, a local folder, a .gguf file, or `package:NAME` for a
    GGUF file inside an installed Python package."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """`auto` is float32 on a CPU, bfloat16 on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the trainer runs."""
    chat_template: str | None = None
    """Jinja template for models that bring none; None keeps the tokenizer's own."""
    lora: LoraConfig = LoraConfig()


class ReasoningGymSource(Section):
    """Procedural problems with their own scorer, generated from the run's seed."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str
    """Name in reasoning-gym, such as chain_sum or gcd."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the data set's config."""
    size: int = Field(2000, ge=3, le=10**7)
    """Problems generated, before duplicates are dropped."""


class FileSource(Section):
    """Rows of a JSONL, CSV or Parquet file."""

    kind: Literal["file"] = "file"
    path: str
    """The suffix says the format: .jsonl, .csv or .parquet (.json holds one array)."""
    prompt_column: str = "prompt"
    """Text, or a list of chat messages."""
    reference_column: str | None = "reference"
    """The right answers; None, or a column that is not there, means the data has no labels."""
    group_column: str | None = None
    """Rows that share this value go to the same split (one document, one user)."""


class DatasetsSource(Section):
    """A data set of the `datasets` library."""

    kind: Literal["datasets"] = "datasets"
    path: str
    """Hub id, or a folder written by `save_to_disk`."""
    name: str | None = None
    """Configuration of a hub data set."""
    split: str = "train"
    """Which of its splits to read; rlsf makes its own train, validation and test from it."""
    prompt_column: str = "prompt"
    reference_column: str | None = "reference"
    group_column: str | None = None


SourceConfig = Annotated[ReasoningGymSource | FileSource | DatasetsSource, Field(discriminator="kind")]


class SplitConfig(Section):
    """Held-out data. Duplicates and rows of one group never sit in two splits; the seed decides what goes where."""

    validation: int = Field(100, ge=1)
    """Prompts for evaluation during the run."""
    test: int = Field(200, ge=1)
    """Prompts for the table at the end."""
    train: int | None = Field(None, ge=1)
    """At most this many training prompts; None takes the rest."""


class TaskConfig(Section):
    """One task of the stream."""

    name: str = Field(pattern=NAME, max_length=MAX_NAME)
    source: SourceConfig
    system: str | None = None
    """System message put before every prompt; a row that brings its own keeps it."""
    template: str = "{prompt}"
    """Wording of the user's message; {prompt} is the row's text, other braces stand for themselves. Ignored for rows
    that are chat messages."""
    chat: bool = True
    """Render with the model's chat template; false continues the plain text."""
    answer: AnswerConfig = AnswerConfig()
    verifier: VerifierConfig = VerifierConfig()
    split: SplitConfig = SplitConfig()
    iterations: int | None = Field(None, ge=1)
    """Budget of this task in the stream. Tasks without one share what the others leave of loop.iterations, the earlier
    ones getting one more where it does not divide. Where every task has a budget, loop.iterations is not used."""
    max_tokens: int | None = Field(None, ge=1)
    """Overrides sampling.max_tokens for this task."""

    @property
    def is_labelled(self) -> bool:
        """Whether the source is expected to bring reference answers."""
        return isinstance(self.source, ReasoningGymSource) or self.source.reference_column is not None

    @model_validator(mode="after")
    def _check(self) -> "TaskConfig":
        check_wording(self.system, self.template, self.chat)
        needed = self.split.validation + self.split.test + 1
        if isinstance(self.source, ReasoningGymSource) and self.source.size < needed:
            raise ValueError(
                f"source.size: {self.source.size} problems are too few for split.validation ({self.split.validation}), "
                f"split.test ({self.split.test}) and at least one to train on; expected {needed} or more"
            )
        return self


def check_wording(system: str | None, template: str, chat: bool) -> None:
    """Raises ValueError where prompts cannot be worded so."""
    if "{prompt}" not in template:
        raise ValueError("template: must contain {prompt}, where the row's text goes")
    if system is not None and not chat:
        raise ValueError("system: plain text (chat: false) has no system message; put it into the template")


class WarmStartConfig(Section):
    """Supervised fine-tuning on a few labelled examples before the loop: it settles the answer format."""

    examples: int = Field(64, ge=1)
    """Labelled examples taken from a task's train split; the only labels the run trains on."""
    tasks: Literal["first", "each", "all"] = "first"
    """`each` also begins every later task of the stream with such a warm start of its own, with the strategies of
    `continual` at work in it; `all` begins the loop with examples of all tasks together."""
    steps: int = Field(32, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(8, ge=1)
    """Examples per step."""
    learning_rate: float = Field(2e-4, gt=0, le=MAX_RATE)
    answer_template: str = "{reference}"
    """What the model should write; {reference} is the label."""

    @model_validator(mode="after")
    def _check(self) -> "WarmStartConfig":
        if "{reference}" not in self.answer_template:
            raise ValueError("answer_template: must contain {reference}, where the label goes")
        return self


class LoopConfig(Section):
    iterations: int = Field(20, ge=1)
    """Rounds of generate, score, update, sync."""
    prompts: int = Field(16, ge=1)
    """Prompts per iteration; rollouts per iteration are this times sampling.n."""
    checkpoint_every: int = Field(1, ge=1)
    """Iterations between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """Older ones are deleted; of the best one, if it is older, the adapter stays."""


class EvaluationConfig(Section):
    """On held-out prompts of every task seen so far."""

    every: int = Field(5, ge=1)
    """Iterations between evaluations on the validation split."""
    samples: int = Field(4, ge=1, le=MAX_COMPLETIONS)
    """Completions per prompt at the training temperature, for pass@1 and pass@k."""
    greedy: bool = True
    """Also decode greedily once per prompt."""
    prompts: int | None = Field(None, ge=1)
    """At most this many validation prompts each time; None takes them all."""
    final_samples: int = Field(4, ge=1, le=MAX_COMPLETIONS)
    """Completions per test prompt in the table at the end."""
    patience: int | None = Field(None, ge=1)
    """Stop when validation pass@1 has not improved for this many evaluations; in a stream the last task alone can end
    the run."""
    matrix: bool = True
    """After each stretch of a stream of tasks, also measure every task on its test split: the matrix of scores that
    forgetting is computed from (docs/continual.md)."""
    min_delta: float = Field(0.0, ge=0)
    """An improvement is more than this."""
    select: Literal["last", "best", "canary"] = "last"
    """Which adapter the final table tests: the last; the one with the best validation pass@1 since the last task joined
    the stream (uses validation labels to choose, never to train); or the one with the best canary (see `guard`)."""

    @property
    def chooses(self) -> bool:
        """Whether validation labels decide which adapter is tested or when the run ends."""
        return self.select == "best" or self.patience is not None


class PreflightConfig(Section):
    """Before the first iteration: does the signal know anything about the truth on these tasks?"""

    enabled: bool = True
    canary: int = Field(64, ge=4)
    """Labelled validation prompts it is measured on; nothing is trained on them."""
    min_auroc: float = Field(0.55, ge=0, le=1)
    """Warn below this."""
    strict: bool = False
    """Where it knows nothing, refuse to run instead of warning."""


class WandbConfig(Section):
    mode: Literal["online", "offline", "disabled"] = "disabled"
    project: str = "rlsf"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    rollout_rows: int = Field(16, ge=0)
    """Rollouts per iteration in the incremental table."""


class TrackingConfig(Section):
    wandb: WandbConfig = WandbConfig()
    tensorboard: bool = True
    sample_groups: int | None = Field(None, ge=0)
    """Groups per iteration written to samples/ and the trackers; None writes all."""


class RunConfig(Section):
    """One experiment."""

    name: str = Field(pattern=NAME, max_length=MAX_NAME)
    """Folder of the run below output_dir."""
    seed: int = Field(0, ge=0)
    """Every generator of the run is derived from it."""
    output_dir: str = "runs"
    model: ModelConfig = ModelConfig()
    tasks: list[TaskConfig] = Field(min_length=1)
    """What is learned."""
    stream: StreamConfig = SequentialStream()
    engine: EngineConfig = AutoEngineConfig()
    delivery: DeliveryConfig = DeliveryConfig()
    sampling: SamplingConfig = SamplingConfig()
    reward: RewardConfig = MajorityConfig()
    warm_start: WarmStartConfig | None = None
    algorithm: AlgorithmConfig = GrpoConfig()
    replay: ReplayConfig = ReplayConfig()
    continual: ContinualConfig = ContinualConfig()
    clusters: RunClustersConfig | None = None
    loop: LoopConfig = LoopConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    preflight: PreflightConfig = PreflightConfig()
    guard: GuardConfig = GuardConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def first_task(self) -> TaskConfig:
        """That the stream begins with; of a mixture, the one with the largest share."""
        if isinstance(self.stream, DriftingStream):
            start = self.stream.start
            return max(self.tasks, key=lambda task: start.get(task.name, 0.0))
        order = getattr(self.stream, "order", None)
        return next((task for task in self.tasks if order is not None and task.name == order[0]), self.tasks[0])

    @property
    def warm_started_tasks(self) -> list[TaskConfig]:
        """Those that are warm-started, the first of the stream first."""
        if self.warm_start is None:
            return []
        others = [task for task in self.tasks if task is not self.first_task]
        return [self.first_task, *(others if self.warm_start.tasks != "first" else [])]

    @property
    def task_iterations(self) -> tuple[int, ...]:
        """Iterations of each task, in the order in which they are listed (see `TaskConfig.iterations`)."""
        own = [task.iterations for task in self.tasks]
        sharing = own.count(None)
        rest = self.loop.iterations - sum(budget or 0 for budget in own)
        share, extra = divmod(max(rest, 0), max(sharing, 1))
        shares = iter([share + 1] * extra + [share] * (sharing - extra))
        return tuple(next(shares) if budget is None else budget for budget in own)

    def sampling_of(self, task: TaskConfig) -> SamplingParams:
        """How completions of this task are drawn for training."""
        return replace(self.sampling.params(), max_tokens=task.max_tokens or self.sampling.max_tokens)

    def uses_labels(self) -> bool:
        """Whether the reward sees reference answers: then it is not self-feedback."""
        return uses_labels(self.reward)

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        self._check_budgets()
        self._check_stream()
        self._check_continual()
        self._check_sampling()
        self._check_labels()
        self._check_replay()
        self._check_guard()
        self._check_lessons()
        return self

    @property
    def validation_labels_choose(self) -> bool:
        """Whether validation labels decide which adapter is tested or when the run ends."""
        return self.evaluation.chooses or self.guard.sees_labels

    def _check_lessons(self) -> None:
        for key, reward in all_rewards(self.reward):
            if isinstance(reward, ReflectionConfig) and "revision" in reward.learn and self.algorithm.kind != "dpo":
                raise ValueError(
                    f"{key}.learn: pairs of revised over original answers are for algorithm dpo, not "
                    f"{self.algorithm.kind}; elsewhere the critique alone can be learned"
                )
            samples = isinstance(reward, ReflectionConfig) and "critique" in reward.learn
            samples |= isinstance(reward, MetaJudgeConfig) and reward.learn
            if samples and reward.temperature != self.sampling.temperature:
                raise ValueError(
                    f"{key}.temperature: what is learned from must be sampled as the answers are, at "
                    f"sampling.temperature ({self.sampling.temperature:g}), not at {reward.temperature:g}"
                )

    def _check_guard(self) -> None:
        canary = self.guard.canary
        if canary is None:
            if self.evaluation.select == "canary":
                raise ValueError("evaluation.select: there is no guard.canary to choose by; describe one")
            return
        unlabelled = [task.name for task in self.tasks if not task.is_labelled]
        if canary.truth == "references" and unlabelled:
            raise ValueError(
                f"guard.canary.truth: task {unlabelled[0]!r} has no reference answers (source.reference_column is "
                "null); take truth: votes"
            )
        small = [task.name for task in self.tasks if task.split.validation < canary.prompts]
        if small:
            raise ValueError(
                f"guard.canary.prompts: {canary.prompts} are more than split.validation of task {small[0]!r}; raise "
                "the one or lower the other"
            )

    def _check_replay(self) -> None:
        ratio, capacity, fresh = self.replay.ratio, self.replay.capacity, self.loop.prompts
        if ratio > 0 and round(ratio * fresh) == 0:
            raise ValueError(
                f"replay.ratio: {ratio:g} times loop.prompts ({fresh}) rounds to no group at all; raise it "
                "or set it to 0"
            )
        if ratio > 0 and capacity < fresh + (self.replay.keep == "fifo"):
            raise ValueError(
                f"replay.capacity: {capacity} groups hold no more than one iteration's loop.prompts ({fresh}), so "
                "nothing would be left to replay"
            )

    def _check_stream(self) -> None:
        names = {task.name for task in self.tasks}
        if isinstance(self.stream, DriftingStream):
            unknown = sorted({*self.stream.start, *self.stream.end} - names)
            absent = sorted(names - {*self.stream.start, *self.stream.end})
            if unknown or absent:
                raise ValueError(
                    f"stream: {(unknown or absent)[0]!r} "
                    + ("is no task" if unknown else "is a task that neither start nor end gives a share")
                )
            return
        order = None if isinstance(self.stream, JointStream) else self.stream.order
        if order is not None and sorted(order) != sorted(names):
            raise ValueError(f"stream.order: must name each task once: {', '.join(task.name for task in self.tasks)}")

    def _check_continual(self) -> None:
        continual, rank = self.continual, self.model.lora.r
        if continual.orthogonal is not None and rank % continual.orthogonal.rank:
            raise ValueError(
                f"continual.orthogonal.rank: model.lora.r ({rank}) must be a multiple of {continual.orthogonal.rank}"
            )
        self._check_mixtures()
        hidden = continual.identity.kind != "known"
        if hidden and self.warm_start is not None and self.warm_start.tasks == "each":
            raise ValueError("warm_start.tasks: each must know when a task begins, and continual.identity hides it")
        if continual.adapters is not None and self.evaluation.select != "last":
            raise ValueError("evaluation.select: with continual.adapters the last ones are tested; leave it at last")
        if self.clusters is None and (self.replay.keep == "diverse" or self.replay.draw.kind == "per_cluster"):
            raise ValueError("replay: diverse and per_cluster need clusters; describe them under `clusters`")
        curriculum = self.clusters.curriculum if self.clusters is not None else None
        by_answers = self.clusters is not None and self.clusters.embedding.of == "answer"
        if curriculum is not None and "prompts" in curriculum.of and by_answers:
            raise ValueError("clusters.curriculum.of: prompts cannot be told apart by answers they have not got yet")
        if continual.cppo is not None and self.algorithm.kind == "dpo":
            raise ValueError("continual.cppo: it weighs single samples, and dpo learns from pairs; take grpo or ppo")

    def _check_mixtures(self) -> None:
        """What speaks of a task and the next needs tasks that follow each other."""
        continual = self.continual
        if isinstance(self.stream, JointStream | DriftingStream):
            if self.warm_start is not None and self.warm_start.tasks == "each":
                raise ValueError(
                    f"warm_start.tasks: in a {self.stream.kind} stream no task begins when another ends; take all"
                )
            if continual.adapters is not None:
                raise ValueError(
                    f"continual.adapters: in a {self.stream.kind} stream tasks are trained together, in one adapter"
                )
        if isinstance(self.stream, JointStream):
            self._check_joint(continual)
        compares = self.algorithm.kind == "dpo" or self.algorithm.kl_coef > 0
        if continual.reference == "last_task" and not compares and continual.cppo is None:
            raise ValueError(
                "continual.reference: nothing is compared with it; set algorithm.kl_coef above 0, or take dpo or cppo"
            )
        if continual.transfer is not None and self.replay.ratio == 0:
            raise ValueError(
                "continual.transfer: without replay no batch has groups of earlier tasks; set replay.ratio above 0"
            )

    @staticmethod
    def _check_joint(continual: ContinualConfig) -> None:
        idle = [name for name in ("l2", "ewc", "orthogonal", "distill", "cppo") if getattr(continual, name) is not None]
        if continual.layers is not None and continual.layers.from_task > 1:
            idle.append("layers.from_task")
        if continual.reference == "last_task":
            idle.append("reference")
        if idle:
            raise ValueError(f"continual.{idle[0]}: in a joint stream no task comes after another; leave it out")

    def _check_budgets(self) -> None:
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"tasks: the name {twice[0]!r} is used twice; each task needs its own")
        idle = [name for name, budget in zip(names, self.task_iterations, strict=True) if budget == 0]
        if idle:
            raise ValueError(
                f"loop.iterations: {self.loop.iterations} leave nothing for {', '.join(idle)}; raise it, or give each "
                "task its own `iterations`"
            )

    def _check_sampling(self) -> None:
        if not self.sampling.params().is_untruncated:
            raise ValueError(
                "sampling: training needs temperature > 0, top_p = 1 and top_k = 0, because the log-probabilities of a "
                "truncated distribution are not those of the policy and would bias every ratio"
            )
        if self.sampling.n == 1 and self.algorithm.kind in ("grpo", "dpo"):
            raise ValueError(
                f"sampling.n: {self.algorithm.kind} compares the rollouts of a group and needs n of at least 2"
            )
        limit = self.engine.max_model_len
        longest = max(task.max_tokens or self.sampling.max_tokens for task in self.tasks)
        if limit is not None and longest >= limit:
            raise ValueError(
                f"engine.max_model_len: {limit} tokens hold prompt and completion, and completions alone may take "
                f"{longest} (max_tokens); raise the one or lower the other"
            )

    def _check_labels(self) -> None:
        unlabelled = [task.name for task in self.tasks if not task.is_labelled]
        if unlabelled and self.uses_labels():
            raise ValueError(
                f"reward: it needs reference answers, and task {unlabelled[0]!r} has none (source.reference_column is "
                "null); name the column, or take a reward that needs no label, such as majority"
            )
        if self.warm_start is None:
            return
        for task in self.warm_started_tasks:
            if not task.is_labelled:
                raise ValueError(f"warm_start: it needs reference answers, and task {task.name!r} has none")
            if task.split.train is not None and task.split.train < self.warm_start.examples:
                raise ValueError(
                    f"warm_start.examples: {self.warm_start.examples} are more than split.train of task {task.name!r} "
                    f"({task.split.train})"
                )
