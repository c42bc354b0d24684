"""What a group of answers to one prompt says by agreeing."""

from typing import Literal

from pydantic import Field, model_validator

from reward.config.section import RewardSection


class MajorityConfig(RewardSection):
    """Agreement with the group's own answers; needs no label (TTRL, arXiv 2504.16084)."""

    kind: Literal["majority"] = "majority"
    soft: bool = False
    """Reward the share of the group that gave the same answer, instead of 1 for the most frequent one (1/k each where
    k are tied)."""
    min_share: float = Field(0.0, ge=0, le=1)
    """No opinion on groups in which the winner has a smaller share of all rollouts than this."""


class SemanticEntropyConfig(RewardSection):
    """How little the group disagrees in meaning (EMPO, arXiv 2504.05812; the entropy is arXiv 2302.09664's)."""

    may_be_probability = False
    kind: Literal["semantic_entropy"] = "semantic_entropy"
    pay: Literal["log_share", "share"] = "log_share"
    """`log_share`: log of the share of the group whose answer means the same; its mean over the group is minus the
    entropy. `share`: the share itself, as EMPO pays it."""
    min_entropy: float = Field(0.0, ge=0)
    """No opinion on groups with less entropy (nats) than this: they have nothing left to learn."""
    max_entropy: float | None = Field(None, gt=0)
    """No opinion on groups with more entropy (nats) than this: they are guessing. log(n) is the most there can be."""

    @model_validator(mode="after")
    def _check_order(self) -> "SemanticEntropyConfig":
        if self.max_entropy is not None and self.min_entropy >= self.max_entropy:
            raise ValueError(f"min_entropy ({self.min_entropy:g}) must be below max_entropy ({self.max_entropy:g})")
        return self
