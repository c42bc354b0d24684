"""Which tasks are trained when: segments, and the share of each task in the prompts of an iteration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from rlsf.config.stream import (
    BlurredStream,
    DriftingStream,
    JointStream,
    RecurringStream,
    StreamConfig,
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the stream; all tasks are measured when it ends."""

    number: int
    """Counted from 1: the row of the matrix of scores that it leads to."""
    task: str
    """The one that leads: with the largest share in the middle of the segment, the first of those that are equal."""
    first: int
    """Iteration of the stream, counted from 1."""
    iterations: int

    @property
    def last(self) -> int:
        return self.first + self.iterations - 1


class Schedule:
    """A function of the config, and of the lengths of segments that ended before their budget was spent."""

    def __init__(self, config: StreamConfig, budgets: Mapping[str, int], ended: Sequence[int] = ()) -> None:
        """
        Args:
            budgets: iterations of each task (of each visit, where tasks recur), in the order of the tasks.
            ended: how many iterations the first segments really took; the others take their budget.
        """
        self._config = config
        self._tasks = list(budgets)
        self._budgets = budgets
        planned = self._plan()
        lengths = [*ended, *(length for _, length in planned[len(ended) :])]
        starts = list(accumulate(lengths, initial=1))
        self.segments = tuple(
            Segment(number, task, first, length)
            for number, ((task, _), first, length) in enumerate(zip(planned, starts, lengths, strict=False), start=1)
        )

    @property
    def iterations(self) -> int:
        return self.segments[-1].last

    def segment(self, iteration: int) -> Segment:
        """Raises ValueError where the stream has no such iteration."""
        for segment in self.segments:
            if segment.first <= iteration <= segment.last:
                return segment
        raise ValueError(f"iteration {iteration} is not in 1 to {self.iterations}")

    def shares(self, iteration: int) -> dict[str, float]:
        """Of the tasks that take part in an iteration, in the order of the tasks; they add up to 1."""
        segment = self.segment(iteration)
        config = self._config
        if isinstance(config, JointStream):
            shares = dict.fromkeys(self._tasks, 1.0)
        elif isinstance(config, DriftingStream):
            shares = self._drifted(config, iteration)
        elif isinstance(config, BlurredStream):
            shares = self._blurred(config, segment, iteration)
        else:
            shares = {segment.task: 1.0}
        total = math.fsum(shares.values())
        return {task: shares[task] / total for task in self._tasks if shares.get(task, 0.0) > 0}

    def counts(self, iteration: int, n: int, seed: int) -> dict[str, int]:
        """How many of an iteration's `n` prompts each task gives: its share, rounded up or down at random so that the
        shares are kept on average (systematic sampling)."""
        shares = self.shares(iteration)
        expected = np.array(list(shares.values())) * n
        counts = np.floor(expected + 1e-9).astype(int)
        rest = n - int(counts.sum())
        if rest:
            ends = np.cumsum(np.clip(expected - counts, 0.0, None))
            points = (np.random.default_rng(seed).random() + np.arange(rest)) * ends[-1] / rest
            np.add.at(counts, np.minimum(np.searchsorted(ends, points, side="right"), len(counts) - 1), 1)
        return {task: int(count) for task, count in zip(shares, counts, strict=True) if count}

    def seen(self, iteration: int) -> list[str]:
        """The tasks that took part in any iteration up to this one, in the order of the tasks."""
        names = {task for earlier in range(1, iteration + 1) for task in self.shares(earlier)}
        return [task for task in self._tasks if task in names]

    def with_lengths(self, ended: Sequence[int]) -> "Schedule":
        """The schedule whose first segments take so many iterations."""
        return Schedule(self._config, self._budgets, ended)

    def ended_early(self, iteration: int) -> "Schedule":
        """The schedule whose segment that contains `iteration` ends with it."""
        number = self.segment(iteration).number
        ended = [segment.iterations for segment in self.segments[: number - 1]]
        return self.with_lengths([*ended, iteration - self.segments[number - 1].first + 1])

    def _plan(self) -> list[tuple[str, int]]:
        """Leading task and planned iterations of each segment."""
        config, total = self._config, sum(self._budgets.values())
        if isinstance(config, JointStream):
            return [(self._tasks[0], total)]
        if isinstance(config, DriftingStream):
            stages = min(config.stages or len(self._tasks), total)
            lengths = [total * (stage + 1) // stages - total * stage // stages for stage in range(stages)]
            middles = [
                start + (length + 1) / 2 for start, length in zip(accumulate([0, *lengths]), lengths, strict=False)
            ]
            return [
                (self._leader(config, middle, total), length) for middle, length in zip(middles, lengths, strict=True)
            ]
        rounds = config.rounds if isinstance(config, RecurringStream) else 1
        order = config.order or self._tasks
        return [(task, self._budgets[task]) for task in order] * rounds

    def _leader(self, config: DriftingStream, iteration: float, total: int) -> str:
        shares = _between(config.start, config.end, iteration, total)
        return max(self._tasks, key=lambda task: shares.get(task, 0.0))

    def _drifted(self, config: DriftingStream, iteration: int) -> dict[str, float]:
        return _between(config.start, config.end, iteration, self.iterations)

    def _blurred(self, config: BlurredStream, segment: Segment, iteration: int) -> dict[str, float]:
        """Positions are those of the iterations' middles, so that the change is symmetric about the boundary."""
        shares = {segment.task: 1.0}
        for neighbour, boundary, sign in self._neighbours(segment):
            width = config.overlap * min(segment.iterations, neighbour.iterations)
            inside = sign * (iteration + 0.5 - boundary)  # how far on this side of the boundary
            other = max(0.0, 0.5 - inside / width)
            shares[neighbour.task] = shares.get(neighbour.task, 0.0) + other
            shares[segment.task] -= other
        return shares

    def _neighbours(self, segment: Segment) -> list[tuple[Segment, int, int]]:
        found = []
        if segment.number > 1:
            found.append((self.segments[segment.number - 2], segment.first, 1))
        if segment.number < len(self.segments):
            found.append((self.segments[segment.number], segment.last + 1, -1))
        return found


def _between(start: Mapping[str, float], end: Mapping[str, float], iteration: float, total: int) -> dict[str, float]:
    """Normalised weights on the line from `start`, at iteration 1, to `end`, at the last one."""
    moved = (iteration - 1) / (total - 1) if total > 1 else 0.0
    first, last = math.fsum(start.values()), math.fsum(end.values())
    return {
        task: (1 - moved) * start.get(task, 0.0) / first + moved * end.get(task, 0.0) / last
        for task in dict.fromkeys([*start, *end])
    }
