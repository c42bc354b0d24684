"""Signals from the model's own distribution at each token: figures per token, averaged over a span.

All but `sequence_probability` need the whole vocabulary's probabilities. Those come from the trainer's model through
`RewardContext.token_stats`, which runs one forward pass for however many of these signals a reward is made of.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from reward.base import BaseReward, Groups
from reward.config import (
    ConfidenceConfig,
    SelfCertaintyConfig,
    SequenceProbabilityConfig,
    TokenEntropyConfig,
    TokenSignalSection,
)
from reward.types import Need, RewardContext, RewardError, Score, TokenStats
from rollouts.types import Rollout


class TokenSignalReward(BaseReward):
    """A figure per completion token, averaged over the span that the config names. No opinion where the span holds no
    token: an empty completion, or one without an answer where `span` is the answer."""

    def __init__(self, config: TokenSignalSection) -> None:
        self._config = config
        needs: set[Need] = {"token_stats"}
        if config.span == "answer":
            needs.add("answer_tokens")
        self.needs: frozenset[Need] = frozenset(needs)

    @abstractmethod
    def _figures(self, stats: TokenStats) -> np.ndarray:
        """(T,), higher for a surer model."""

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        rollouts = [rollout for group in groups for rollout in group]
        scores = iter(
            self._score_rollout(rollout, figures, context)
            for rollout, figures in zip(rollouts, self._all_figures(rollouts, context), strict=True)
        )
        return [[next(scores) for _ in group] for group in groups]

    def _all_figures(self, rollouts: Sequence[Rollout], context: RewardContext) -> list[np.ndarray]:
        assert context.token_stats is not None
        stats = context.token_stats(rollouts, self._config.model)
        if len(stats) != len(rollouts):
            raise RewardError(f"token_stats returned {len(stats)} entries for {len(rollouts)} rollouts")
        return [np.asarray(self._figures(entry), dtype=np.float64) for entry in stats]

    def _score_rollout(self, rollout: Rollout, figures: np.ndarray, context: RewardContext) -> Score:
        if figures.shape != (len(rollout.completion_ids),):
            raise RewardError(
                f"rollout {rollout.id!r}: token_stats cover {figures.shape} tokens, the completion has "
                f"{len(rollout.completion_ids)}"
            )
        start, end = self._span(rollout, context)
        if start >= end:
            return Score(None, {}, {"tokens": 0})
        chosen = figures[start:end]
        kept = lowest(chosen, self._config.lowest)
        value = self._total(kept)
        evidence = {
            "tokens": len(kept),
            "span": [start, end],
            "least_certain_token": start + int(chosen.argmin()),
            "least": float(chosen.min()),
        }
        return Score(value, {self.name: value}, evidence)

    def _total(self, figures: np.ndarray) -> float:
        return float(figures.mean())

    def _span(self, rollout: Rollout, context: RewardContext) -> tuple[int, int]:
        length = len(rollout.completion_ids)
        match self._config.span:
            case "completion":
                return 0, length
            case "ending":
                return length - math.ceil(length / 3), length
            case "answer":
                assert context.answer_tokens is not None
                return context.answer_tokens(rollout) or (0, 0)


class SelfCertaintyReward(TokenSignalReward):
    """KL(uniform ‖ p) = −log V − (1/V) Σ log p, in nats, per token (Intuitor, arXiv 2505.19590, eq. 2; the metric is
    self-certainty of arXiv 2502.18581)."""

    name = "self_certainty"

    def __init__(self, config: SelfCertaintyConfig | None = None) -> None:
        super().__init__(config or SelfCertaintyConfig())

    def _figures(self, stats: TokenStats) -> np.ndarray:
        return stats.self_certainty


class ConfidenceReward(TokenSignalReward):
    """Δ = mean over the answer's tokens of p(first) − p(second), in [0, 1] (CoT-decoding, arXiv 2402.10200, eq. 1;
    the confidence that RLSF, 2507.21931, ranks answers by)."""

    name = "confidence"

    def __init__(self, config: ConfidenceConfig | None = None) -> None:
        super().__init__(config or ConfidenceConfig())

    def _figures(self, stats: TokenStats) -> np.ndarray:
        return stats.top_gap


class TokenEntropyReward(TokenSignalReward):
    """Σ p log p, in nats, per token: minus the entropy (RENT, arXiv 2505.22660, section 3)."""

    name = "token_entropy"

    def __init__(self, config: TokenEntropyConfig | None = None) -> None:
        super().__init__(config or TokenEntropyConfig())

    def _figures(self, stats: TokenStats) -> np.ndarray:
        return -np.asarray(stats.entropy)


class SequenceProbabilityReward(TokenSignalReward):
    """From log p of the sampled tokens: their mean, their sum, or the probability of the whole span, which RLSC
    (arXiv 2506.06395, section 3) pays. The policy's own are those that the engine returned with the rollout, so this
    costs nothing."""

    name = "sequence_probability"

    def __init__(self, config: SequenceProbabilityConfig | None = None) -> None:
        config = config or SequenceProbabilityConfig()
        super().__init__(config)
        self._pay = config.pay
        if config.model == "policy":
            self.needs = self.needs - {"token_stats"}

    def _figures(self, stats: TokenStats) -> np.ndarray:
        return stats.logprob

    def _all_figures(self, rollouts: Sequence[Rollout], context: RewardContext) -> list[np.ndarray]:
        if self._config.model == "policy":
            return [np.asarray(rollout.logprobs, dtype=np.float64) for rollout in rollouts]
        return super()._all_figures(rollouts, context)

    def _total(self, figures: np.ndarray) -> float:
        match self._pay:
            case "mean_log":
                return float(figures.mean())
            case "log":
                return float(figures.sum())
            case _:
                return float(np.exp(figures.sum()))


def lowest(figures: np.ndarray, share: float) -> np.ndarray:
    """The ⌈share · T⌉ smallest of (T,) figures, in their order in the text; T at least 1, and so is the result."""
    count = max(1, math.ceil(share * len(figures) - 1e-9))
    if count >= len(figures):
        return figures
    return figures[np.sort(np.argsort(figures, kind="stable")[:count])]
