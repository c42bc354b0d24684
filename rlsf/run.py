"""The parts of a run, put together, saved and restored. `rlsf.loop` is the story they are used in."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from reward.factory import make_reward
from reward.types import RewardError
from reward.verifiers import make_verifier
from rlsf.algorithms import create_algorithm
from rlsf.algorithms.sft import WarmStart, answer_ids
from rlsf.clustering.embeddings import make_embeddings, policy_embeddings
from rlsf.clustering.identity import make_detector
from rlsf.clustering.population import Population
from rlsf.config.clustering import EmbeddingConfig
from rlsf.config.schema import RunConfig
from rlsf.continual.adapters import AdapterBank
from rlsf.continual.serving import serving
from rlsf.continual.strategies import Strategies
from rlsf.display import Display
from rlsf.embedding import policy_embedder
from rlsf.errors import ConfigError, RlsfError, RunDirError, TrainingError, is_out_of_memory
from rlsf.evaluation.evaluate import Evaluation, evaluate
from rlsf.evaluation.grading import Grader
from rlsf.evaluation.statistics import Estimate, wilson
from rlsf.experience import Group
from rlsf.files import clear_os_errors, remove
from rlsf.forward import TokenPair
from rlsf.guard import Guard, GuardState
from rlsf.metered import MeteredEngine
from rlsf.models import resolve_model
from rlsf.policy import Policy
from rlsf.quiet import quiet_progress_bars
from rlsf.replay import ReplayStore
from rlsf.run_dir import RunDir, iteration_of, read_jsonl
from rlsf.samples import sample_rows
from rlsf.scorer import Scorer
from rlsf.seeds import derive_seed
from rlsf.state import LoopState
from rlsf.stopping import note_validation
from rlsf.tasks import Part, Stream, Task
from rlsf.tasks.baselines import last_operand_correct, most_frequent_correct
from rlsf.tracking import create_tracker
from rollouts.delivery import DeliveryCheck, Probe, take_probe
from rollouts.factory import create_engine
from rollouts.prompts import encode_prompt, encode_prompts
from rollouts.types import LOWER_THE_RATE, EngineError, Prompt, Rollout, SamplingParams


class Run:
    """Everything that one experiment is made of. Use as a context manager: it holds an engine and open files."""

    def __init__(self, config: RunConfig, directory: RunDir, stream: Stream, display: Display) -> None:
        """Loads the model, starts the engine, and goes back to the last checkpoint if there is one; up to a minute.

        Raises:
            RlsfError, EngineError, RewardError: a part cannot be made.
        """
        self.config = config
        self.directory = directory
        self.stream = stream
        self.display = display
        self._iteration_seconds: dict[str, float] = {}
        self._phase = ""
        self._check_canary()
        self.state = self._saved_state()
        self._planned_iterations = stream.iterations  # before any task ended early: the learning rate's schedule
        self.stream.resume(self.state.ended)
        self.tasks = {task.name: task for task in stream.tasks}
        self.training_prompts = {prompt.id: prompt for task in stream.tasks for prompt in task.train}
        self.guard = Guard(config.guard, GuardState.from_json(self.state.guard))
        display.go_on_from(self.state.iteration)
        quiet_progress_bars()
        with ExitStack() as parts:
            with self.phase("load"):
                self._load(parts)
            with self.phase("start engine"):
                self._start_engine(parts)
                self._restore()
            self._parts = parts.pop_all()
        if self.state.prepared:
            self._take_seconds()  # an iteration's time is not the start's

    def _saved_state(self) -> LoopState:
        """Of the last checkpoint, or of a run that begins."""
        folder = self.directory.latest_checkpoint()
        if folder is None:
            return LoopState()
        try:
            state = LoopState.from_json(self.directory.read_json(folder / "state.json"))
        except ValueError as error:
            raise _damaged(folder, error) from error
        if state.iteration != iteration_of(folder):
            raise _damaged(folder, f"state.json is of iteration {state.iteration}")
        return state

    def _load(self, parts: ExitStack) -> None:
        torch.manual_seed(self.seed("torch"))  # no part should draw from the global generator; this is the belt
        config, directory = self.config, self.directory
        self.tracker = create_tracker(config, directory, self.state.tracking, iteration=self.state.iteration)
        parts.callback(self.tracker.finish)
        verifiers = {task.name: make_verifier(task.config.verifier, task.config.answer) for task in self.stream.tasks}
        self.reward = make_reward(config.reward, graders=verifiers)  # one that cannot be made should say so at once
        self._model_path = resolve_model(config.model.source)
        self.policy = Policy.create(self._model_path, config.model, seed=self.seed("lora"))
        embed = policy_embedder(self.policy)
        self.graders = {task.name: Grader(task.config, embed) for task in self.stream.tasks}
        self.strategies = Strategies(
            config.continual, self.policy, micro_batch_tokens=config.algorithm.micro_batch_tokens
        )
        self.adapters = None
        if config.continual.adapters is not None:
            self.adapters = AdapterBank(
                config.continual.adapters, self.policy, directory.adapters, seed=self.seed("adapters")
            )
        self._restore_views()
        self.algorithm = create_algorithm(
            config.algorithm,
            self.policy,
            total_steps=self._planned_iterations * config.algorithm.epochs * config.algorithm.minibatches,
            seed=self.seed("algorithm"),
            dump_dir=directory.failures,
            additions=self.strategies,
        )
        self.replay = ReplayStore.open(directory.replay, config.replay, seed=self.seed("replay"))
        parts.callback(self.replay.close)

    def _restore_views(self) -> None:
        """What looks at prompts by what they are about: clusters, the detector of hidden tasks, routes."""
        config, state = self.config, self.state
        embedding = config.clusters.embedding if config.clusters is not None else EmbeddingConfig()
        self.embeddings = make_embeddings(embedding, lambda: policy_embeddings(self.policy))
        self.population = None
        if config.clusters is not None:
            self.population = Population(config.clusters, self.embeddings, self.seed("clusters"))
        self.detector = make_detector(config.continual.identity, self.seed("identity"), state.identity)
        if self.adapters is not None:
            self.adapters.restore(state.routes)

    def label_of(self, task: Task) -> str:
        """What the store and the strategies call a task: the one that they take for the current one, where they are not
        told."""
        return task.name if self.detector is None else self.state.task

    def _start_engine(self, parts: ExitStack) -> None:
        engine = create_engine(
            self.config.engine,
            self._model_path,
            tokenizer=self.policy.tokenizer,
            lora_rank=self.config.model.lora.r,
            dtype=self.policy.causal_lm.dtype,
            device=self.policy.device,
        )
        parts.callback(engine.close)
        self.engine = MeteredEngine(engine, self._count_tokens)
        self.scorer = Scorer(self.reward, self.graders, self.policy, self.engine, count_tokens=self._count_tokens)
        parts.callback(self.scorer.close)
        for task in self.stream.tasks:  # a prompt that is too long should not wait for the iteration that draws it
            prompts = [*task.train, *task.validation, *task.test]
            encode_prompts(self.policy.tokenizer, prompts, self.sampling(task), self.engine.max_model_len)
        self._check_warm_start()

    def _check_canary(self) -> None:
        """Raises ConfigError where it compares with references that held-out prompts do not have."""
        canary = self.config.guard.canary
        bare = [task.name for task in self.stream.tasks if not task.has_references]
        if canary is not None and canary.truth == "references" and bare:
            raise ConfigError(
                f"guard.canary.truth: the held-out prompts of task {bare[0]} have no reference answers; take truth: "
                "votes"
            )

    def _check_warm_start(self) -> None:
        """Raises ConfigError where the answers that it teaches would be cut off in the loop."""
        for config in self.config.warm_started_tasks:
            task = self.tasks[config.name]
            longest = max(len(answer_ids(self.policy.tokenizer, answer)) for _, answer in self._labelled(task))
            limit = self.sampling(task).max_tokens
            if longest > limit:
                raise ConfigError(
                    f"warm_start.answer_template: for task {task.name} it teaches answers of up to {longest} tokens, "
                    f"the end included, and max_tokens cuts off after {limit}: raise that, or shorten the template"
                )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self._parts.close()

    # -- seeds and settings --------------------------------------------------------------------------------------------

    def seed(self, *names: str | int) -> int:
        """The seed for one use; the same in every sitting of the run."""
        return derive_seed(self.config.seed, *names)

    def sampling(self, task: Task) -> SamplingParams:
        """How completions of this task are drawn for training."""
        return self.config.sampling_of(task.config)

    @property
    def replayed_count(self) -> int:
        """Prompts from the store in an iteration, in the mode `prompts`."""
        return round(self.config.replay.ratio * self.config.loop.prompts)

    def generate(self, part: Part, number: int, iteration: int, *, purpose: str = "generate") -> list[list[Rollout]]:
        """Rollouts for the `number`-th part of an iteration's prompts, counted from 0; for another purpose, others."""
        names = (purpose, iteration, *((number, part.task.name) if number else ()))
        return self.engine.generate(part.prompts, self.sampling(part.task), seed=self.seed(*names))

    # -- phases --------------------------------------------------------------------------------------------------------

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase and show it."""
        started = time.monotonic()
        outer, self._phase = self._phase, name
        with self.display.phase(name):
            try:
                yield
            finally:
                self._phase = outer
                spent = time.monotonic() - started
                self.state.seconds[name] = self.state.seconds.get(name, 0.0) + spent
                self._iteration_seconds[name] = self._iteration_seconds.get(name, 0.0) + spent

    def _count_tokens(self, tokens: int) -> None:
        self.state.tokens[self._phase] = self.state.tokens.get(self._phase, 0) + tokens

    # -- warm start ----------------------------------------------------------------------------------------------------

    def warm_start(self, *tasks: Task, rehearsed: Sequence[TokenPair] = ()) -> dict[str, float]:
        """Supervised fine-tuning of the policy on a few labelled examples of each task, and on completions that it gave
        for earlier ones; returns its metrics.

        Raises:
            TrainingError: its loss is not finite.
        """
        assert self.config.warm_start is not None
        trainer = WarmStart(
            self.config.warm_start, self.policy, dump_dir=self.directory.failures, additions=self.strategies
        )
        examples = [
            (encode_prompt(self.policy.tokenizer, prompt), answer)
            for task in tasks
            for prompt, answer in self._labelled(task)
        ]
        names = ("warm_start",) if self.first_task in tasks else ("warm_start", tasks[0].name)
        return trainer.run(examples, seed=self.seed(*names), rehearsed=rehearsed)

    @property
    def first_task(self) -> Task:
        """That the stream begins with."""
        return self.tasks[self.config.first_task.name]

    @property
    def warm_started_first(self) -> list[Task]:
        """The tasks whose labels the loop begins with."""
        assert self.config.warm_start is not None
        configs = self.config.warm_started_tasks if self.config.warm_start.tasks == "all" else [self.config.first_task]
        return [self.tasks[config.name] for config in configs]

    def _labelled(self, task: Task) -> list[tuple[Prompt, str]]:
        """The warm start's prompts with the answers it teaches."""
        assert self.config.warm_start is not None
        template = self.config.warm_start.answer_template
        prompts = task.labelled_train[: self.config.warm_start.examples]
        return [(prompt, template.replace("{reference}", str(prompt.reference))) for prompt in prompts]

    # -- delivery ------------------------------------------------------------------------------------------------------

    def deliver(self) -> dict[str, float]:
        """Hand the trained adapter to the engine as the next version, and verify that it arrived.

        Raises:
            EngineError: the engine does not serve what was sent.
        """
        self.state.policy_version += 1
        return self._deliver_current()

    def _deliver_current(self) -> dict[str, float]:
        version = self.state.policy_version
        folder = self.directory.outbox / f"version_{version:06d}"
        if version > 0:
            with clear_os_errors(folder):
                self.policy.save_adapter(folder)
            self.engine.sync(folder, version)
        trainer = self.policy.score_tokens(self.delivery.probe)
        report = self.delivery.verify(self.engine, version, trainer, folder if version > 0 else None)
        for path in self.directory.outbox.glob("version_*"):
            if path != folder:
                remove(path)
        return {"delivery/largest_difference": report.largest_difference}

    # -- evaluation ----------------------------------------------------------------------------------------------------

    @property
    def graded_tasks(self) -> list[Task]:
        """The tasks whose held-out prompts have reference answers. The others train, and nobody can grade them."""
        return [task for task in self.stream.tasks if task.has_references]

    def evaluate_test(self, label: str) -> None:
        """Measure the engine's adapter on the test split of every task and keep every outcome.

        The same seed each time: before and after differ by the policy, not by luck.
        """
        distances: dict[str, float] = {}
        with serving(self) as served:
            for task in self.graded_tasks:
                result = served.evaluate(task, "test", task.test, self.config.evaluation.final_samples)
                self.directory.write_json(self._evaluation_path(label, task.name), result.as_json())
                if label not in ("base", "warm_start") and len(self.stream.tasks) > 1:
                    distances[task.name] = served.kl_from_base(task)
        if distances:
            self.directory.write_json(self.kl_path(label), distances)

    def kl_path(self, label: str) -> Path:
        """Where the distances from the untouched model are, by task, of a test evaluation."""
        return self.directory.evaluations / f"{label}_kl.json"

    def ends_segment(self, iteration: int) -> bool:
        """Whether the tasks are to be measured after it, for the matrix of scores. After the last segment the final
        table does that."""
        last = iteration == self.stream.segment(iteration).last
        return self.config.evaluation.matrix and last and iteration < self.stream.iterations

    def evaluate_row(self, iteration: int) -> None:
        """Measure every task on its test split after a segment, those to come included."""
        self.evaluate_test(f"iter_{iteration:06d}")

    def end_segment(self, iteration: int) -> None:
        """Go on to the next segment after this iteration, whatever the budget of this one."""
        self.stream.end_segment(iteration)
        self.state.ended = [s.iterations for s in self.stream.segments[: self.stream.segment(iteration).number]]

    def validate(self, iteration: int) -> dict[str, float]:
        """Measure the tasks seen so far on their validation split; note whether the mean pass@1 is the best so far."""
        settings = self.config.evaluation
        metrics: dict[str, float] = {}
        scores = []
        seen = [task for task in self.stream.tasks_seen(max(iteration, 1)) if task.has_references]
        with serving(self) as served:
            for task in seen:
                result = served.evaluate(task, "validation", task.validation[: settings.prompts], settings.samples)
                self.directory.write_json(
                    self.directory.evaluations / f"iter_{iteration:06d}_validation_{task.name}.json", result.as_json()
                )
                metrics |= result.metrics()
                scores.append(result.pass_at_1().value)
        if scores and note_validation(
            self.state, iteration, float(np.mean(scores)), tasks=len(scores), min_delta=settings.min_delta
        ):
            folder = self.directory.best_adapter(iteration)
            with clear_os_errors(folder):
                self.policy.save_adapter(folder)
        return metrics

    def evaluate(self, task: Task, split: str, prompts: Sequence[Prompt], samples: int) -> Evaluation:
        """Ask whoever the engine serves."""
        return evaluate(
            self.engine,
            self.graders[task.name],
            split,
            prompts,
            self.sampling(task),
            samples=samples,
            greedy=self.config.evaluation.greedy,
            seed=self.seed("evaluate", split, task.name),
        )

    def load_evaluation(self, label: str, task: str) -> Evaluation:
        """A test evaluation that this run made earlier."""
        return Evaluation.from_json(self.directory.read_json(self._evaluation_path(label, task)))

    def has_evaluation(self, label: str, task: str) -> bool:
        """Whether this run made it."""
        return self._evaluation_path(label, task).exists()

    def _evaluation_path(self, label: str, task: str) -> Path:
        if label.startswith("iter_"):  # so that it is forgotten with its iteration
            return self.directory.evaluations / f"{label}_test_{task}.json"
        return self.directory.evaluations / f"test_{label}_{task}.json"

    def trivial_baselines(self, task: Task) -> dict[str, Estimate]:
        """What answering without thinking scores on the test split."""
        grader = self.graders[task.name]
        return {
            "the most frequent answer": wilson([float(right) for right in most_frequent_correct(task, grader.grades)]),
            "the last operand": wilson([float(right) for right in last_operand_correct(task, grader.grades)]),
        }

    def select_final_adapter(self) -> None:
        """Serve the adapter that the final table is about."""
        chosen, folder = self._chosen_adapter()
        if chosen is not None and folder is not None and chosen != self.state.served_iteration:
            self.policy.load_adapter(folder)
            self.state.served_iteration = chosen
            self.deliver()

    def _chosen_adapter(self) -> tuple[int | None, Path | None]:
        """Its iteration and folder; None for the one that is served."""
        select, best = self.config.evaluation.select, self.guard.state.best_iteration
        if select == "best" and self.state.best_iteration is not None:
            return self.state.best_iteration, self.directory.best_adapter(self.state.best_iteration)
        if select == "canary" and not self.guard.has_canary:
            self.display.warn("evaluation.select: the canary had nothing to say, so the last adapter is tested")
        elif select == "canary" and best is not None:
            return best, self.directory.guard_adapter(best)
        return None, None

    # -- records -------------------------------------------------------------------------------------------------------

    def record(self, iteration: int, task: Task, fresh: Sequence[Group], metrics: dict[str, float]) -> None:
        """One line of metrics, the scored rollouts, and the trackers.

        Raises:
            TrainingError: a metric is not finite.
        """
        broken = [name for name, value in metrics.items() if not np.isfinite(value)]
        if broken:
            raise TrainingError(
                f"iteration {iteration}: {', '.join(broken)} is not finite, so the policy has gone where it cannot be "
                f"measured; {LOWER_THE_RATE}"
            )
        self.directory.check_in_place()
        row = {"iteration": iteration, "task": task.name, "policy_version": self.state.policy_version, **metrics}
        self.directory.append_line(self.directory.metrics, row)
        kept = fresh[: self.config.tracking.sample_groups]
        if kept:
            self.directory.write_samples(iteration, [row for group in kept for row in sample_rows(group)])
        self.tracker.log(iteration, metrics)
        self.tracker.log_rollouts(iteration, kept)

    def finish_iteration(self, iteration: int, metrics: dict[str, float], tokens: int) -> None:
        """Write what took how long, and show the iteration."""
        seconds = self._take_seconds()
        speed = tokens / seconds["generate"]
        timing = {f"seconds/{name}": round(value, 4) for name, value in seconds.items()}
        timing["tokens_per_second"] = round(speed, 2)
        self.directory.append_line(self.directory.timings, {"iteration": iteration, **timing})
        self.tracker.log(iteration, timing)
        self.display.iteration(iteration, metrics, speed, sum(seconds.values()))

    def finish_preparation(self) -> None:
        """Write what took how long before the first iteration."""
        seconds = {f"seconds/{name}": round(value, 4) for name, value in self._take_seconds().items()}
        self.directory.append_line(self.directory.timings, {"iteration": 0, **seconds})

    def _take_seconds(self) -> dict[str, float]:
        seconds, self._iteration_seconds = self._iteration_seconds, {}
        return seconds

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def is_checkpoint_due(self, iteration: int) -> bool:
        last = iteration == self.stream.iterations or self.state.stop_reason is not None
        return last or iteration % self.config.loop.checkpoint_every == 0

    def checkpoint(self) -> None:
        """Make everything so far durable; whatever comes after the last checkpoint is done again on resume."""
        self.directory.check_in_place()
        iteration = self.state.iteration
        self.state.reward = self.reward.state()
        self.state.delivery = self.delivery.state()
        self.state.guard = asdict(self.guard.state)
        if self.adapters is not None:
            self.state.routes = self.adapters.state()
        self.directory.write_checkpoint(iteration, self._write_checkpoint)
        kept = self.directory.prune_checkpoints(self.config.loop.keep_checkpoints)
        self.replay.prune_journal(iteration_of(kept[0]))
        states = [self.directory.read_json(folder / "state.json") for folder in kept]
        self.directory.prune_best({state["best_iteration"] for state in states} - {None})
        backs = [GuardState.from_json(state["guard"]).may_go_back_to() | {state["iteration"]} for state in states]
        self.directory.prune_guarded(set().union(*backs))
        self.directory.prune_task_adapters(
            {pair for state in states for pair in state["routes"].get("kept", {}).items()}
        )

    def _write_checkpoint(self, folder: Path) -> None:
        self.policy.save(folder / "policy")
        self.algorithm.save(folder / "algorithm")
        self.strategies.save(folder / "continual")
        if self.population is not None:
            self.population.save(folder / "clusters")
        self.directory.write_json(folder / "state.json", self.state.to_json())

    def _restore(self) -> None:
        """Go back to the last checkpoint: afterwards everything is as it was when that one was written.

        What was written after it is forgotten, because it will be done again; but only once all the rest is restored.
        """
        folder = self.directory.latest_checkpoint()
        if folder is None:
            self.delivery = DeliveryCheck(self.config.delivery, self._take_probe())
        else:
            try:
                self._restore_parts(folder)
            except (RlsfError, RewardError, EngineError):
                raise  # says itself what is wrong
            except Exception as error:  # what broken files raise is as varied as they are
                if is_out_of_memory(error):
                    raise
                raise _damaged(folder, error) from error
        self.replay.rollback(self.state.iteration)
        self.directory.drop_after(self.state.iteration if folder is not None else -1)
        self._count_rows()
        self._deliver_current()

    def _count_rows(self) -> None:
        written = self.state.iteration + 1 if self.state.prepared else 0
        found = sum(1 for _ in read_jsonl(self.directory.metrics))
        if found != written:
            self.display.warn(f"{self.directory.metrics} has {found} lines, and the run has written {written}")

    def _restore_parts(self, folder: Path) -> None:
        self.policy.load(folder / "policy")
        if self.state.prepared and not self.policy.has_reference:
            raise FileNotFoundError(f"{folder / 'policy'} has no reference adapter")
        self.algorithm.load(folder / "algorithm")
        self.strategies.load(folder / "continual")
        if self.population is not None:
            self.population.load(folder / "clusters")
        self.reward.restore(self.state.reward)
        self.delivery = DeliveryCheck.restore(self.config.delivery, self.state.delivery)
        for task in self.graded_tasks if self.state.prepared else ():
            for label in ("base", "warm_start") if self.config.warm_start is not None else ("base",):
                self.load_evaluation(label, task.name)

    def _take_probe(self) -> Probe:
        """The untouched model's own answers: their log-probabilities move as the policy learns."""
        task = self.first_task
        greedy = replace(self.sampling(task), n=1, temperature=0.0)
        wanted = self.config.delivery.probe_tokens
        rollouts = self.engine.generate(task.validation[:wanted], greedy, seed=self.seed("probe"))
        return take_probe([group[0] for group in rollouts], wanted)


def _damaged(checkpoint: Path, reason: object) -> RunDirError:
    return RunDirError(
        f"{checkpoint} cannot be restored ({reason!r}): write the name of another one in {checkpoint.parent} into "
        f"{checkpoint.parent.parent / 'latest'}, or start the run anew"
    )
