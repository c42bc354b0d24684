"""The tasks of a run, each with its own held-out data, and the prompts of every iteration."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rlsf.config.schema import RunConfig, TaskConfig
from rlsf.errors import DataError
from rlsf.seeds import derive_seed
from rlsf.tasks.schedule import Schedule, Segment
from rlsf.tasks.sources import read_rows
from rlsf.tasks.splits import DataReport, Split, drop_held_out_elsewhere, split_rows
from rollouts.types import Prompt


@dataclass(frozen=True)
class Task:
    """One task: its data and splits."""

    name: str
    config: TaskConfig
    train: tuple[Prompt, ...] = field(repr=False)
    """In a fixed random order, as are the others: any first k are a random sample."""
    validation: tuple[Prompt, ...] = field(repr=False)
    test: tuple[Prompt, ...] = field(repr=False)
    seed: int
    """Of the run."""
    report: DataReport

    @property
    def has_references(self) -> bool:
        """Whether every held-out prompt can be graded."""
        return all(prompt.reference is not None or prompt.grading for prompt in (*self.validation, *self.test))

    def digest(self) -> str:
        """SHA-256 of the prompts in every split, with their references and other columns: of the data that a run trains
        and is graded on. (An id is a digest of the prompt's words.)"""
        splits = [
            [[prompt.id, prompt.reference, *([dict(prompt.metadata)] if prompt.metadata else [])] for prompt in prompts]
            for prompts in (self.train, self.validation, self.test)
        ]
        return hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()

    @property
    def labelled_train(self) -> tuple[Prompt, ...]:
        """Training prompts with a reference answer, for a warm start."""
        return tuple(prompt for prompt in self.train if prompt.reference is not None)

    def epoch(self, number: int) -> list[Prompt]:
        """The training prompts, shuffled anew for each epoch, counted from 0."""
        order = np.random.default_rng(derive_seed(self.seed, "epoch", self.name, number)).permutation(len(self.train))
        return [self.train[index] for index in order]


@dataclass(frozen=True, slots=True)
class Part:
    """The prompts of one task in a batch."""

    task: Task
    prompts: list[Prompt]
    label: str = ""
    """Task that the store knows replayed prompts under; empty for those of the stream."""


class Stream:
    """The tasks, and which of their prompts come when: a function of the seed and the schedule, so that nothing but the
    lengths of segments that ended early needs saving."""

    def __init__(self, tasks: Sequence[Task], schedule: Schedule, *, prompts: int, seed: int) -> None:
        """
        Args:
            prompts: per iteration.
            seed: of the run.
        """
        self.tasks = tuple(tasks)
        self.schedule = schedule
        self._prompts = prompts
        self._seed = seed
        self._by_name = {task.name: task for task in tasks}
        self._drawn: list[dict[str, int]] = [dict.fromkeys(self._by_name, 0)]
        """By task, the place in the task's epochs after each iteration so far: epochs passed · prompts + taken."""

    @property
    def iterations(self) -> int:
        """Of all segments together."""
        return self.schedule.iterations

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.schedule.segments

    def digests(self) -> dict[str, str]:
        """`Task.digest` by the task's name."""
        return {task.name: task.digest() for task in self.tasks}

    def segment(self, iteration: int) -> Segment:
        """Raises ValueError where the stream has no such iteration."""
        return self.schedule.segment(iteration)

    def active(self, iteration: int) -> Task:
        """The task that leads in an iteration, counted from 1."""
        return self._by_name[self.segment(iteration).task]

    def tasks_seen(self, iteration: int) -> tuple[Task, ...]:
        """The tasks trained up to and including an iteration, in the order of the tasks; none at 0."""
        return tuple(self._by_name[name] for name in self.schedule.seen(iteration))

    def resume(self, ended: Sequence[int]) -> None:
        """Go on where the first segments took so many iterations, whatever their budgets."""
        self.schedule = self.schedule.with_lengths(ended)

    def end_segment(self, iteration: int) -> None:
        """Let the segment of `iteration` end with it, whatever its budget."""
        self.schedule = self.schedule.ended_early(iteration)
        del self._drawn[iteration + 1 :]

    def batch(self, iteration: int) -> list[Part]:
        """The training prompts of an iteration, by task.

        A task's training goes in epochs. Each shuffles anew and takes no prompt twice; prompts that are too few to fill
        what an iteration asks for wait for another epoch.
        """
        while len(self._drawn) <= iteration:
            self._drawn.append(self._advanced(len(self._drawn)))
        parts = []
        for name, count in self._counts(iteration).items():
            task = self._by_name[name]
            epoch, end = divmod(self._drawn[iteration][name] - 1, len(task.train))
            parts.append(Part(task, task.epoch(epoch)[end + 1 - count : end + 1]))
        return parts

    def _counts(self, iteration: int) -> dict[str, int]:
        return self.schedule.counts(iteration, self._prompts, derive_seed(self._seed, "counts", iteration))

    def _advanced(self, iteration: int) -> dict[str, int]:
        places = dict(self._drawn[iteration - 1])
        for name, count in self._counts(iteration).items():
            size = len(self._by_name[name].train)
            taken = places[name] % size
            if taken + count > size:
                places[name] += size - taken
            places[name] += count
        return places


def build_stream(config: RunConfig) -> Stream:
    """Read and split the data of every task.

    Training prompts that another task holds out are dropped (`Task.report.leaked`).

    Raises:
        DataError: a source is missing or broken, or has too little data, or no labels where the reward or the warm
            start needs them.
    """
    splits = drop_held_out_elsewhere([_split(task, config.seed) for task in config.tasks])
    tasks = [_task(task, split, config.seed) for task, split in zip(config.tasks, splits, strict=True)]
    for task in tasks:
        _check_enough(task, config.loop.prompts)
    _check_labels(config, tasks)
    budgets = {task.name: budget for task, budget in zip(config.tasks, config.task_iterations, strict=True)}
    return Stream(tasks, Schedule(config.stream, budgets), prompts=config.loop.prompts, seed=config.seed)


def build_task(config: TaskConfig, seed: int) -> Task:
    """One task by itself, outside of a stream.

    Raises:
        DataError: the source is missing or broken, or has too little data.
    """
    return _task(config, _split(config, seed), seed)


def _split(config: TaskConfig, seed: int) -> Split:
    return split_rows(config, read_rows(config, seed), derive_seed(seed, "split"))


def _task(config: TaskConfig, split: Split, seed: int) -> Task:
    train, validation, test = (
        tuple(row.prompt for row in rows) for rows in (split.train[: config.split.train], split.validation, split.test)
    )
    return Task(config.name, config, train, validation, test, seed, split.report)


def _check_enough(task: Task, prompts: int) -> None:
    if prompts > len(task.train):
        raise DataError(
            f"task {task.name!r}: {len(task.train)} training prompts are fewer than loop.prompts ({prompts}); lower "
            "it, or split.test and split.validation"
        )


def _check_labels(config: RunConfig, tasks: Sequence[Task]) -> None:
    for task in tasks if config.uses_labels() else ():
        bare = sum(prompt.reference is None and not prompt.grading for prompt in task.train)
        if bare:
            raise DataError(
                f"task {task.name!r}: the reward needs reference answers, and {bare} of {len(task.train)} training "
                f"prompts have none{_columns_hint(task)}"
            )
    if config.evaluation.chooses and not any(task.has_references for task in tasks):
        raise DataError(
            "evaluation: patience and select: best need reference answers on validation prompts, and no task has any"
        )
    wanted = config.warm_start.examples if config.warm_start is not None else 0
    started = {task.name for task in config.warm_started_tasks}
    for task in tasks:
        if task.name in started and len(task.labelled_train) < wanted:
            raise DataError(
                f"task {task.name!r}: warm_start.examples asks for {wanted} labelled training "
                f"prompts, and there are {len(task.labelled_train)}{_columns_hint(task)}"
            )


def _columns_hint(task: Task) -> str:
    column = getattr(task.config.source, "reference_column", None)
    if column is None or task.has_references:
        return ""
    columns = sorted({name for prompt in task.train[:100] for name in prompt.metadata})
    return f"; there is no column {column!r} (source.reference_column); other columns: {', '.join(columns) or 'none'}"
