"""Which rollouts of a group are compared, and the pairs that preferences make of them. Imports nothing heavy."""

from collections import Counter
from dataclasses import dataclass

from rlsf.config.algorithms import DpoConfig
from rlsf.experience import Experience, Group


@dataclass(frozen=True, slots=True)
class Pair:
    """A better and a worse answer to one prompt."""

    chosen: Experience
    rejected: Experience
    fresh: bool
    earlier: bool = False
    """Of an earlier task than the one being trained."""

    @property
    def group_id(self) -> str:
        return self.chosen.rollout.group_id


def opinions(group: Group) -> list[Experience]:
    """The experiences that have a reward and at least one token: all that statistics and losses may see."""
    return [e for e in group.experiences if e.score.value is not None and e.rollout.completion_ids]


def reward_of(experience: Experience) -> float:
    """The reward of an experience that has one."""
    value = experience.score.value
    assert value is not None, "opinions() keeps only experiences with a reward"
    return value


def make_pairs(group: Group, config: DpoConfig, *, fresh: bool, earlier: bool = False) -> list[Pair]:
    """At most `max_pairs_per_group` pairs of experiences whose rewards differ by more than `config.min_margin`.

    The largest margins come first; of equal ones, those whose rollouts are in the fewest pairs so far: with right and
    wrong as the only rewards, every right answer meets a wrong one before any of them meets a second.
    """
    ordered = sorted(opinions(group), key=reward_of, reverse=True)  # stable: equal rewards keep the order of sampling
    if config.pairs == "best_worst":
        ordered = [ordered[0], ordered[-1]] if ordered else []
    candidates = [
        (chosen, rejected)
        for index, chosen in enumerate(ordered)
        for rejected in ordered[index + 1 :]
        if reward_of(chosen) - reward_of(rejected) > config.min_margin
    ]
    uses: Counter[str] = Counter()
    pairs: list[Pair] = []

    def rank(index: int) -> tuple[float, int]:
        chosen, rejected = candidates[index]
        return reward_of(rejected) - reward_of(chosen), uses[chosen.rollout.id] + uses[rejected.rollout.id]

    while candidates and len(pairs) < config.max_pairs_per_group:
        chosen, rejected = candidates.pop(min(range(len(candidates)), key=rank))
        uses.update((chosen.rollout.id, rejected.rollout.id))
        pairs.append(Pair(chosen, rejected, fresh, earlier))
    return pairs
