"""Scores rollouts: verifiers, self-feedback signals, composition. May import `rollouts`, never `rlsf`."""

from reward.types import Reward, RewardContext, RewardError, Score, TokenStats

__all__ = ["Reward", "RewardContext", "RewardError", "Score", "TokenStats"]
