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
from rlsf.config.clustering import RunClustersConfig
from rlsf.config.guard import GuardConfig
from rlsf.config.strategies import ContinualConfig
from rlsf.config.stream import DriftingStream, JointStream, SequentialStream, StreamConfig
from rollouts.config import MAX_COMPLETIONS, AutoEngineConfig, DeliveryConfig, EngineConfig, SamplingConfig, Section
from rollouts.types import SamplingParams

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
"""Of a run or a task: it becomes part of file names."""
MAX_NAME = 100
MAX_RATE = 1e3
"""No rate near it trains anything; far above it AdamW's arithmetic breaks."""


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


class OptimizerConfig(Section):
    """Shared by every algorithm. Moments and schedule live for the whole run."""

    learning_rate: float = Field(1e-4, ge=0, le=MAX_RATE)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up; linear and cosine fall to 0 just after the last planned step. The plan counts every iteration;
    one whose groups carry no signal takes no step."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the rate rises; the first is taken at 0."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's, on adapter weights."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    """AdamW's moment decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    epochs: int = Field(1, ge=1)
    """Passes over each iteration's batch."""
    minibatches: int = Field(1, ge=1)
    """Optimizer steps per pass; groups are never torn apart."""
    micro_batch_tokens: int = Field(8192, ge=64)
    """Tokens per forward pass; bounds memory, does not change the gradient."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""


class GrpoConfig(OptimizerConfig):
    """Group-relative policy optimisation (DeepSeekMath, arXiv 2402.03300); TRL's GRPOTrainer computes the loss."""

    kind: Literal["grpo"] = "grpo"
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    """How token losses are averaged."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What divides reward minus group mean: the sample deviation of the group, of the batch, or nothing."""
    kl_coef: float = Field(0.0, ge=0)
    """Weight of the k3 KL to the reference (the model at the start of the loop)."""
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.2, gt=0)
    """Ratios are clipped to [1 − clip_low, 1 + clip_high]."""
    dual_clip: float = Field(2.0, gt=1)
    """Largest ratio where the advantage is negative, at least 1 + clip_high: beyond it a stale or mismatched token
    gives no gradient (dual-clip PPO, arXiv 1912.09729; TRL calls it `delta`)."""

    @model_validator(mode="after")
    def _check(self) -> "GrpoConfig":
        _check_dual_clip(self.dual_clip, self.clip_high)
        return self


class PpoConfig(OptimizerConfig):
    """Proximal policy optimisation (arXiv 1707.06347) with a critic adapter on the same frozen base."""

    kind: Literal["ppo"] = "ppo"
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16)."""
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.2, gt=0)
    value_clip: float = Field(0.2, gt=0)
    """New values stay this close to the old ones in the clipped value loss."""
    value_learning_rate: float = Field(1e-3, gt=0, le=MAX_RATE)
    """Of the critic's adapter and head."""
    value_epochs: int = Field(1, ge=1)
    """Passes of the critic per pass of the policy."""
    whiten_advantages: bool = True
    """Shift and scale the batch's token advantages to mean 0, deviation 1."""
    kl_coef: float = Field(0.02, ge=0)
    """Weight of the per-token k1 KL to the reference, subtracted from the reward."""
    kl_target: float | None = Field(None, gt=0)
    """Nats per completion; adapts kl_coef towards it (arXiv 1909.08593, eq. 6-7). None keeps it fixed."""
    kl_horizon: int = Field(1000, ge=1)
    """Rollouts over which the adaptive coefficient moves."""
    dual_clip: float = Field(2.0, gt=1)
    """As in GRPO: the largest ratio where the advantage is negative."""

    @model_validator(mode="after")
    def _check(self) -> "PpoConfig":
        _check_dual_clip(self.dual_clip, self.clip_high)
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target: an adaptive coefficient cannot start from kl_coef 0; raise kl_coef")
        return self


class DpoConfig(OptimizerConfig):
    """Direct preference optimisation (arXiv 2305.18290) on pairs from the buffer; TRL's DPOTrainer has the loss."""

    kind: Literal["dpo"] = "dpo"
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """For `robust` only: the share of pairs in the wrong order, which that loss corrects for (arXiv 2403.00409)."""
    beta: float = Field(0.1, gt=0)
    """Strength of the pull to the reference (the model at the start of the loop)."""
    pairs: Literal["best_worst", "all"] = "best_worst"
    """Per group: the best over the worst, or every pair of different rewards."""
    min_margin: float = Field(0.0, ge=0)
    """Pairs whose rewards differ by no more than this are left out."""
    max_pairs_per_group: int = Field(4, ge=1)
    """With `all`: at most this many, those with the largest margins; of equal margins those of unused rollouts."""

    @model_validator(mode="after")
    def _check(self) -> "DpoConfig":
        if self.label_smoothing and self.loss != "robust":
            raise ValueError(f"label_smoothing: the loss {self.loss!r} does not use it; only robust does")
        if self.loss == "robust" and self.label_smoothing == 0:
            raise ValueError(
                "label_smoothing: with `robust` it is the share of pairs in the wrong order and must be above 0 (at 0 "
                "the loss is `sigmoid`)"
            )
        return self


def _check_dual_clip(dual_clip: float, clip_high: float) -> None:
    if dual_clip < 1 + clip_high:
        raise ValueError(
            f"dual_clip: {dual_clip} is below 1 + clip_high ({1 + clip_high:g}), so it would cut the ratios of good "
            "answers too; raise it"
        )


AlgorithmConfig = Annotated[GrpoConfig | PpoConfig | DpoConfig, Field(discriminator="kind")]


class UniformDraw(Section):
    """Every group alike."""

    kind: Literal["uniform"] = "uniform"


class PrioritizedDraw(Section):
    """p ∝ priority^alpha · decay^age (arXiv 1511.05952, eq. 1, with the age decay of FreshPER)."""

    kind: Literal["prioritized"] = "prioritized"
    alpha: float = Field(0.6, ge=0)
    """0 is uniform."""
    age_decay: float = Field(0.9, gt=0, le=1)
    """Per iteration of age."""


class RecencyDraw(Section):
    """p ∝ 2^(−age / half_life)."""

    kind: Literal["recency"] = "recency"
    half_life: float = Field(5.0, ge=0.01, le=1e9)
    """Iterations after which a group is drawn half as often."""


WithinDraw = Annotated[UniformDraw | PrioritizedDraw | RecencyDraw, Field(discriminator="kind")]


class PerTaskDraw(Section):
    """A quota for each task that has groups to draw, by largest remainder; who gets the remainder is drawn by lot, in
    proportion to the fractions. What a task cannot fill goes to the others."""

    kind: Literal["per_task"] = "per_task"
    shares: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Of the draw, by task, up to a common factor; none are equal shares. A task that is not named here, or has share
    0, only gets what the others cannot fill."""
    within: WithinDraw = UniformDraw()
    """How the groups of one task are drawn."""


class PerClusterDraw(Section):
    """As `per_task`, with an equal share for each cluster of groups; those without a cluster count as one."""

    kind: Literal["per_cluster"] = "per_cluster"
    within: WithinDraw = UniformDraw()
    """How the groups of one cluster are drawn."""


class SuccessDraw(Section):
    """Quotas by success rate: experiences of medium difficulty teach most (after ExGRPO, arXiv 2510.02245, whose
    buckets are weighted with a normal density around the target too).

    A group's success rate is the mean of its rewards, clipped to [0, 1]. Groups without any reward are drawn only where
    nothing else is there.
    """

    kind: Literal["success"] = "success"
    buckets: int = Field(4, ge=1, le=1000)
    """Of equal width on [0, 1]."""
    target: float = Field(0.5, ge=0, le=1)
    """A bucket's quota is ∝ exp(−(centre − target)² / (2 width²))."""
    width: float = Field(0.25, ge=1e-3, le=1e3)
    within: WithinDraw = UniformDraw()
    """How the groups of one bucket are drawn."""


DrawConfig = Annotated[
    UniformDraw | PrioritizedDraw | RecencyDraw | PerTaskDraw | PerClusterDraw | SuccessDraw,
    Field(discriminator="kind"),
]


class ReplayConfig(Section):
    """The persistent store of experiences. Its unit is the group: a prompt with its n rollouts."""

    capacity: int = Field(10_000, ge=1, le=10**12)
    """Groups kept."""
    keep: Literal["fifo", "reservoir", "balanced", "top_reward", "diverse"] = "fifo"
    """Which group goes when the store is full. `fifo`: the oldest. `reservoir`: a random one, so that every group ever
    seen is equally likely to remain. `balanced`: a random one of the largest task, so that tasks share the room and of
    each a uniform sample remains (class-balancing reservoir sampling, Chrysakis & Moens 2020). `top_reward`: the one of
    the lowest mean reward. `diverse`: as `balanced`, by cluster instead of task."""
    draw: DrawConfig = UniformDraw()
    mode: Literal["samples", "prompts"] = "samples"
    """What is replayed: the stored rollouts, or the prompts of the drawn groups, answered anew by the policy of now."""
    source: Literal["all", "earlier"] = "all"
    """Which groups may be drawn: all, or only those of other tasks than the one being trained."""
    ratio: float = Field(0.0, ge=0, le=1000)
    """Replayed groups per fresh group in each update; 0 trains on fresh groups alone."""
    max_staleness: int | None = Field(None, ge=1)
    """Replay nothing older than this many policy versions."""


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
        """That the stream begins with."""
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
        """Iterations of each task, in the order of the stream (see `TaskConfig.iterations`)."""
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
