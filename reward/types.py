"""The contract between a reward and whoever calls it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from rollouts.types import Engine, Prompt, Rollout

Need = Literal["engine", "token_stats", "reference"]


class RewardError(RuntimeError):
    """A reward raised, or returned something that is no reward. The message names the rollout that broke it."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a rollout earned, and why."""

    value: float | None
    """The reward; None is "no opinion" and is left out of the group's statistics."""
    components: Mapping[str, float] = field(default_factory=dict)
    """The named parts that `value` was made of, before weights."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Votes, critique, judge's words, parsed answer, grade: whatever a person needs to see why. JSON-serialisable."""


@dataclass(frozen=True, slots=True)
class TokenStats:
    """The policy's own distribution at each completion token, at the sampling temperature: arrays of shape (T,),
    in nats where nothing else is said."""

    logprob: np.ndarray
    """log p of the token that was sampled."""
    entropy: np.ndarray
    """−Σ p log p."""
    self_certainty: np.ndarray
    """KL(uniform ‖ p) = logsumexp(z) − mean(z) − log V (Intuitor, arXiv 2505.19590, eq. 2)."""
    top_gap: np.ndarray
    """Largest minus second largest probability, in [0, 1] (CoT-decoding, arXiv 2402.10200, eq. 1)."""


@dataclass(frozen=True)
class RewardContext:
    """What a reward may use. The caller fills in only what the reward declares in `needs`; the rest is None."""

    prompts: Mapping[str, Prompt]
    """By prompt id. Without labels unless the reward needs `reference`."""
    extract: Callable[[Rollout], str | None]
    """The task's answer in a rollout; None where it has none (truncated, or nothing that looks like an answer)."""
    iteration: int = 0
    seed: int = 0
    """Derive every random choice from it."""
    engine: Engine | None = None
    """Serves the policy that wrote the rollouts: for judging and reflecting."""
    token_stats: Callable[[Sequence[Rollout]], list[TokenStats]] | None = None
    """Teacher-forced statistics under the policy that wrote the rollouts."""


class Reward(Protocol):
    """Scores groups of rollouts. All rollouts of a group answer the same prompt."""

    name: str
    needs: frozenset[Need]

    def score(self, groups: Sequence[Sequence[Rollout]], context: RewardContext) -> list[list[Score]]:
        """One score per rollout, in the same shape as `groups`.

        Raises:
            RewardError: with the id of the rollout that broke it.
        """
        ...
