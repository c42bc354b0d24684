"""A reward behind a hard rule."""

from collections.abc import Mapping
from typing import Any

from reward.base import BaseReward, Groups
from reward.rewards.combination import part_components, part_scores
from reward.types import Need, RewardContext, Score


class GateReward(BaseReward):
    """`reward` where `condition` scores at least `threshold`, else `closed`: nothing outweighs a shut gate.

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
        return [
            [self._gated(*pair) for pair in zip(*row, strict=True)] for row in zip(conditions, rewards, strict=True)
        ]

    def _gated(self, condition: Score, reward: Score) -> Score:
        is_open = None if condition.value is None else condition.value >= self._threshold
        value = None if is_open is None else reward.value if is_open else self._closed
        components = part_components("condition", self._parts["condition"], condition)
        components |= part_components("reward", self._parts["reward"], reward)
        evidence = {"open": is_open, "condition": dict(condition.evidence), "reward": dict(reward.evidence)}
        return Score(value, components, evidence)

    def state(self) -> dict[str, Any]:
        return {name: part.state() for name, part in self._parts.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts.items():
            part.restore(state[name])
