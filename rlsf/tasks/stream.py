"""Tasks one after the other, each with its budget of iterations and its own held-out data."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rlsf.config.schema import RunConfig, TaskConfig
from rlsf.errors import DataError
from rlsf.seeds import derive_seed
from rlsf.tasks.sources import read_rows
from rlsf.tasks.splits import DataReport, Split, drop_held_out_elsewhere, split_rows
from rollouts.types import Prompt


@dataclass(frozen=True)
class Task:
    """One task: its data, split, and its place in the stream."""

    name: str
    config: TaskConfig
    train: tuple[Prompt, ...] = field(repr=False)
    """In a fixed random order, as are the others: any first k are a random sample."""
    validation: tuple[Prompt, ...] = field(repr=False)
    test: tuple[Prompt, ...] = field(repr=False)
    seed: int
    """Of the run."""
    report: DataReport
    first_iteration: int = 1
    """Of the stream, counted from 1, in which this task is trained."""
    iterations: int = 1
    """How many it is trained for."""

    @property
    def last_iteration(self) -> int:
        return self.first_iteration + self.iterations - 1

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

    def train_batch(self, iteration: int, n: int) -> list[Prompt]:
        """The `n` training prompts of an iteration: a function of seed, task and iteration, so nothing needs saving.

        Training goes in epochs of ⌊len(train) / n⌋ iterations. Each epoch shuffles anew and takes no prompt twice; the
        len(train) mod n prompts that would not fill a batch wait for another epoch.

        Args:
            iteration: of the stream, counted from 1; this task's epochs begin at its `first_iteration`.
            n: prompts per iteration; the same in every iteration.

        Raises:
            DataError: there are fewer than `n` training prompts.
        """
        if n > len(self.train):
            raise DataError(
                f"task {self.name!r}: {len(self.train)} training prompts are fewer than loop.prompts ({n}); lower it, "
                "or split.test and split.validation"
            )
        epoch, batch = divmod(iteration - self.first_iteration, len(self.train) // n)
        order = np.random.default_rng(derive_seed(self.seed, "epoch", self.name, epoch)).permutation(len(self.train))
        return [self.train[index] for index in order[batch * n : (batch + 1) * n]]


@dataclass(frozen=True)
class Stream:
    """The tasks in the order in which they are trained."""

    tasks: tuple[Task, ...]

    @property
    def iterations(self) -> int:
        """Of all tasks together."""
        return self.tasks[-1].last_iteration

    def digests(self) -> dict[str, str]:
        """`Task.digest` by the task's name."""
        return {task.name: task.digest() for task in self.tasks}

    def active(self, iteration: int) -> Task:
        """The task that is trained in an iteration, counted from 1."""
        for task in self.tasks:
            if task.first_iteration <= iteration <= task.last_iteration:
                return task
        raise ValueError(f"iteration {iteration} is not in 1 to {self.iterations}")

    def tasks_seen(self, iteration: int) -> tuple[Task, ...]:
        """The tasks trained up to and including an iteration; none at 0."""
        return tuple(task for task in self.tasks if task.first_iteration <= iteration)


def build_stream(config: RunConfig) -> Stream:
    """Read and split the data of every task.

    Training prompts that another task holds out are dropped (`Task.report.leaked`).

    Raises:
        DataError: a source is missing or broken, or has too little data, or no labels where the reward or the warm
            start needs them.
    """
    splits = drop_held_out_elsewhere([_split(task, config.seed) for task in config.tasks])
    tasks: list[Task] = []
    for task_config, split, iterations in zip(config.tasks, splits, config.task_iterations, strict=True):
        first = tasks[-1].last_iteration + 1 if tasks else 1
        tasks.append(_task(task_config, split, config.seed, first, iterations))
    for task in tasks:
        task.train_batch(task.first_iteration, config.loop.prompts)
    _check_labels(config, tasks)
    return Stream(tuple(tasks))


def build_task(config: TaskConfig, seed: int) -> Task:
    """One task by itself, outside of a stream.

    Raises:
        DataError: the source is missing or broken, or has too little data.
    """
    return _task(config, _split(config, seed), seed, 1, config.iterations or 1)


def _split(config: TaskConfig, seed: int) -> Split:
    return split_rows(config, read_rows(config, seed), derive_seed(seed, "split"))


def _task(config: TaskConfig, split: Split, seed: int, first: int, iterations: int) -> Task:
    train, validation, test = (
        tuple(row.prompt for row in rows) for rows in (split.train[: config.split.train], split.validation, split.test)
    )
    return Task(config.name, config, train, validation, test, seed, split.report, first, iterations)


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
    if config.warm_start is not None and len(tasks[0].labelled_train) < config.warm_start.examples:
        raise DataError(
            f"task {tasks[0].name!r}: warm_start.examples asks for {config.warm_start.examples} labelled training "
            f"prompts, and there are {len(tasks[0].labelled_train)}{_columns_hint(tasks[0])}"
        )


def _columns_hint(task: Task) -> str:
    column = getattr(task.config.source, "reference_column", None)
    if column is None or task.has_references:
        return ""
    columns = sorted({name for prompt in task.train[:100] for name in prompt.metadata})
    return f"; there is no column {column!r} (source.reference_column); other columns: {', '.join(columns) or 'none'}"
