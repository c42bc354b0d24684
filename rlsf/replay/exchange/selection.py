"""Which groups, and which rollouts of them."""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from rlsf.errors import ConfigError
from rlsf.experience import Experience, Group
from rlsf.replay.reader import ReplayReader

Best = frozenset[tuple[str, int]]
"""Group ids, and positions in the group."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Bounds on rewards are of single rollouts: a group keeps those that are within, and is left out where none is. A
    rollout without a reward is within no bounds."""

    task: str | None = None
    first: int | None = None
    """Iteration in which the oldest groups were generated."""
    last: int | None = None
    """The newest ones."""
    min_reward: float | None = None
    max_reward: float | None = None

    def groups(self, store: ReplayReader) -> Iterator[Group | None]:
        """For each stored group of the task what is kept of it, as it is asked for; None where nothing is."""
        for group in store.groups(task=self.task):
            yield self._kept(group)

    def total(self, store: ReplayReader) -> int:
        """How many `groups` gives."""
        return store.count(task=self.task)

    def _kept(self, group: Group) -> Group | None:
        if self.first is not None and group.iteration < self.first:
            return None
        if self.last is not None and group.iteration > self.last:
            return None
        return only(group, [experience for experience in group.experiences if self._is_within(experience.score.value)])

    def _is_within(self, reward: float | None) -> bool:
        if self.min_reward is None and self.max_reward is None:
            return True
        return (
            reward is not None
            and (self.min_reward is None or reward >= self.min_reward)
            and (self.max_reward is None or reward <= self.max_reward)
        )

    def __str__(self) -> str:
        """For messages: the options that say so."""
        span = "" if self.first is None and self.last is None else f"{_or_empty(self.first)}:{_or_empty(self.last)}"
        options = {
            "--task": self.task,
            "--iteration": span or None,
            "--min-reward": self.min_reward,
            "--max-reward": self.max_reward,
        }
        return " ".join(f"{name} {value}" for name, value in options.items() if value is not None)


def _or_empty(number: int | None) -> str:
    return "" if number is None else str(number)


def only(group: Group, experiences: list[Experience]) -> Group | None:
    """The group with some of its experiences; None without any."""
    if len(experiences) == len(group.experiences):
        return group
    return replace(group, experiences=tuple(experiences)) if experiences else None


def parse_iterations(text: str | None) -> tuple[int | None, int | None]:
    """First and last of `A:B`, `A:`, `:B` or `A`.

    Raises:
        ConfigError: it is none of these.
    """
    if text is None:
        return None, None
    first, colon, last = text.partition(":")
    try:
        bounds = int(first) if first else None, int(last) if last else None
    except ValueError:
        bounds = None, None
    if bounds == (None, None):
        raise ConfigError(f"--iteration: {text!r} is no range; write A:B (both included), A:, :B, or A")
    return bounds if colon else (bounds[0], bounds[0])


def best_of_prompts(groups: Iterable[Group], count: int) -> Best:
    """The `count` rollouts of each prompt that have the highest rewards, over all its groups; of equal ones those that
    come first. In memory are `count` rewards for each prompt."""
    best: defaultdict[str, list[tuple[float, int, str, int]]] = defaultdict(list)
    seen = 0
    for group in groups:
        heap = best[group.prompt.id]
        for position, reward in enumerate(group.rewards):
            if reward is not None:
                seen += 1
                heapq.heappush(heap, (reward, -seen, group.id, position))
            if len(heap) > count:
                heapq.heappop(heap)
    return frozenset((id, position) for heap in best.values() for _, _, id, position in heap)


def only_best(group: Group, best: Best) -> Group | None:
    """What `best` keeps of a group that `best_of_prompts` went through."""
    experiences = [e for position, e in enumerate(group.experiences) if (group.id, position) in best]
    return only(group, experiences)
