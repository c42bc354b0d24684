"""A price on tokens."""

from reward.base import RolloutReward
from reward.config import LengthPenaltyConfig
from reward.types import RewardContext, Score
from rollouts.types import Rollout


class LengthPenaltyReward(RolloutReward):
    """0 up to `free_tokens`, then falling linearly to −1 at `max_tokens`, and −1 beyond."""

    name = "length_penalty"

    def __init__(self, config: LengthPenaltyConfig | None = None) -> None:
        self._config = config or LengthPenaltyConfig()

    def _score_one(self, rollout: Rollout, context: RewardContext) -> Score:
        free, longest = self._config.free_tokens, self._config.max_tokens
        tokens = len(rollout.completion_ids)
        value = 0.0 - min(1.0, max(0, tokens - free) / (longest - free))  # 0.0 - x: no -0.0
        return Score(value, {self.name: value}, {"tokens": tokens})
