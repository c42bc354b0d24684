"""A reward without what length explains of it."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from reward.base import BaseReward, Groups
from reward.config import LengthControlledConfig
from reward.rewards.combination import part_components, part_scores
from reward.types import RewardContext, Score

Values = list[list[float | None]]


@dataclass(frozen=True, slots=True)
class LengthFit:
    """Least-squares line of a reward on length in tokens, merged batch by batch (Chan, Golub & LeVeque 1979)."""

    count: int = 0
    mean_length: float = 0.0
    mean_value: float = 0.0
    length_m2: float = 0.0
    """Sum of squared deviations of the lengths."""
    co_m2: float = 0.0
    """Sum of products of the deviations of lengths and values."""

    def merged(self, lengths: Sequence[float], values: Sequence[float]) -> "LengthFit":
        if not values:
            return self
        x, y = np.asarray(lengths, dtype=np.float64), np.asarray(values, dtype=np.float64)
        count = self.count + x.size
        dx, dy = x - x.mean(), y - y.mean()
        shift_x, shift_y = float(x.mean()) - self.mean_length, float(y.mean()) - self.mean_value
        between = self.count * x.size / count
        return LengthFit(
            count,
            self.mean_length + shift_x * x.size / count,
            self.mean_value + shift_y * x.size / count,
            self.length_m2 + float((dx * dx).sum()) + shift_x * shift_x * between,
            self.co_m2 + float((dx * dy).sum()) + shift_x * shift_y * between,
        )

    @property
    def slope(self) -> float:
        """Reward per token; 0 of fewer than 3 values, which a line may fit by chance, or where lengths do not vary."""
        return self.co_m2 / self.length_m2 if self.count >= 3 and self.length_m2 > 0 else 0.0


class LengthControlledReward(BaseReward):
    """`residual`: value − slope · (length − mean length), with the line fitted to everything scored so far, this batch
    included; lengths are tokens of the completion. The result stands on the inner reward's scale and, over all of that,
    no longer correlates with length; within a batch or a group it still may. (AlpacaEval's length control, arXiv
    2404.04475, does so with a logistic fit of win rates.)

    `tier`: rewards of at least (1 − tier) · best + tier · worst of the group count as equally good, as in arXiv
    2407.19594, section 2.1, which then picks the shortest. Here length takes the place of the reward among them: the
    shortest earns the best reward, the longest that bound, the others in proportion to length in between. Rewards below
    the bound stay, so none is overtaken, and so does a group whose rewards are all equal.

    Rollouts without an opinion have no part in it. Truncated ones count with the length they have: where many of them
    earn nothing the slope turns negative, and `residual` then pays for length. The evidence names the slope.
    """

    name = "length_controlled"

    def __init__(self, config: LengthControlledConfig, reward: BaseReward) -> None:
        self._config = config
        self._reward = reward
        self._fit = LengthFit()
        self.needs = reward.needs

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        scores = part_scores("reward", self._reward, groups, context)
        lengths = [[len(rollout.completion_ids) for rollout in group] for group in groups]
        if self._config.method == "tier":
            return [self._tiered(row, own) for row, own in zip(scores, lengths, strict=True)]
        known = [
            (length, score.value)
            for row, own in zip(scores, lengths, strict=True)
            for score, length in zip(row, own, strict=True)
            if score.value is not None
        ]
        self._fit = self._fit.merged([length for length, _ in known], [value for _, value in known])
        return [
            [self._residual(score, length) for score, length in zip(row, own, strict=True)]
            for row, own in zip(scores, lengths, strict=True)
        ]

    def _residual(self, score: Score, length: int) -> Score:
        slope, mean = self._fit.slope, self._fit.mean_length
        value = None if score.value is None else score.value - slope * (length - mean)
        return self._controlled(score, value, {"tokens": length, "slope": slope, "mean_tokens": mean})

    def _tiered(self, scores: Sequence[Score], lengths: Sequence[int]) -> list[Score]:
        values = [score.value for score in scores if score.value is not None]
        best, worst = max(values, default=0.0), min(values, default=0.0)
        bound = min(best, (1 - self._config.tier) * best + self._config.tier * worst)
        in_tier = [score.value is not None and score.value >= bound and best > worst for score in scores]
        tier = [length for length, is_in in zip(lengths, in_tier, strict=True) if is_in]
        return [
            self._controlled(
                score,
                max(bound, best - _place(length, tier) * (best - bound)) if is_in else score.value,
                {"tokens": length, "in_tier": is_in},
            )
            for score, length, is_in in zip(scores, lengths, in_tier, strict=True)
        ]

    def _controlled(self, score: Score, value: float | None, evidence: Mapping[str, Any]) -> Score:
        components = part_components("reward", self._reward, score)
        return Score(value, components, {**evidence, "reward": dict(score.evidence)}, unasked=score.unasked)

    def state(self) -> dict[str, Any]:
        """The fit, and the state of the inner reward."""
        return {"fit": list(astuple(self._fit)), "reward": self._reward.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._fit = LengthFit(*state["fit"])
        self._reward.restore(state["reward"])


def _place(length: int, lengths: Sequence[int]) -> float:
    """0 for the shortest of `lengths`, 1 for the longest."""
    shortest, longest = min(lengths), max(lengths)
    return (length - shortest) / (longest - shortest) if longest > shortest else 0.0
