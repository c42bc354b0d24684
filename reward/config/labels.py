"""Rewards that see labels, or may."""

from typing import Literal

from pydantic import Field

from reward.config.answers import VerifierConfig
from reward.config.section import RewardSection


class VerifierRewardConfig(RewardSection):
    """The grade against the reference: uses labels."""

    kind: Literal["verifier"] = "verifier"
    verifier: VerifierConfig | None = None
    """None grades as the task is evaluated."""
    partial_credit: bool = False
    """Pass on grades between 0 and 1 where the verifier gives them (reasoning-gym does); else 1 only for a full
    grade."""

    @property
    def sees_labels(self) -> bool:
        return True


class FunctionConfig(RewardSection):
    """Any function with TRL's signature `f(prompts, completions, completion_ids, **columns) -> list[float | None]`."""

    kind: Literal["function"] = "function"
    path: str = Field(pattern=r"^.+:[A-Za-z_]\w*$")
    """`module:function` or `path/to/file.py:function`."""
    needs_reference: bool = False
    """Pass the column `reference` too. A function that sees labels is not self-feedback."""

    @property
    def sees_labels(self) -> bool:
        return self.needs_reference
