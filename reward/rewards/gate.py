"""A reward behind a hard rule."""

from collections.abc import Mapping, Sequence
from typing import Any

from reward.base import BaseReward, Groups
from reward.rewards.combination import part_components, part_scores
from reward.types import Need, RewardContext, Score


class GateReward(BaseReward):
    """`reward` where `condition` scores at least `threshold`, else `closed`, or the lowest reward that the open gate
    pays in the group where that is lower: nothing outweighs a shut gate.

    A condition without an opinion gives no opinion. The reward scores whole groups, so that votes and comparisons
    are those of everyone.
    """

    name = "gate"

    def __init__(
        self, condition: BaseReward, reward: BaseReward, *, threshold: float = 0.0, closed: float | None = -1.0
    ) -> None:
        self._parts = {"condition": condition, "reward": reward}
        self._threshold = threshold
        self._closed = closed
        self.needs: frozenset[Need] = condition.needs | reward.needs

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        conditions, rewards = (part_scores(name, part, groups, context) for name, part in self._parts.items())
        return [self._gated_group(*row) for row in zip(conditions, rewards, strict=True)]

    def _gated_group(self, conditions: Sequence[Score], rewards: Sequence[Score]) -> list[Score]:
        pairs = list(zip(conditions, rewards, strict=True))
        paid = [reward.value for condition, reward in pairs if self._is_open(condition) and reward.value is not None]
        closed = None if self._closed is None else min([self._closed, *paid])
        return [self._gated(condition, reward, closed) for condition, reward in pairs]

    def _is_open(self, condition: Score) -> bool | None:
        return None if condition.value is None else condition.value >= self._threshold

    def _gated(self, condition: Score, reward: Score, closed: float | None) -> Score:
        is_open = self._is_open(condition)
        value = None if is_open is None else reward.value if is_open else closed
        components = part_components("condition", self._parts["condition"], condition)
        components |= part_components("reward", self._parts["reward"], reward)
        evidence = {"open": is_open, "condition": dict(condition.evidence), "reward": dict(reward.evidence)}
        return Score(value, components, evidence, unasked=bool(is_open) and reward.unasked)

    def state(self) -> dict[str, Any]:
        return {name: part.state() for name, part in self._parts.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts.items():
            part.restore(state[name])
