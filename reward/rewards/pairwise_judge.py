"""A model says which of two answers is better (LLM-as-a-judge, arXiv 2306.05685)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reward.asking import needs_of
from reward.base import BaseReward, Groups, prompt_of
from reward.comparisons import Comparison, Competitor, Pair, compare, pair_up, shares_won
from reward.config import PairwiseJudgeConfig
from reward.types import RewardContext, Score
from rollouts.types import Prompt, Rollout


class PairwiseJudgeReward(BaseReward):
    """Share of its comparisons with other answers of the group that an answer won, in [0, 1].

    Every pair is asked about in both orders, and a verdict that turns with the order is half a win for either
    (section 3.4). A pair of which one order could not be read is left out. Equal completions compete as one.

    A rollout without an answer loses to those that have one: it earns 0 unasked. No opinion where nobody in the group
    has an answer, nor on an answer that was compared with no other.
    """

    name = "pairwise_judge"

    def __init__(self, config: PairwiseJudgeConfig | None = None) -> None:
        self._config = config or PairwiseJudgeConfig()
        self.needs = needs_of(self._config.by)

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        entries = [_enter(group, context) for group in groups]
        random = np.random.default_rng([context.seed, context.iteration])
        pairs = [
            pair
            for group, entered in zip(groups, entries, strict=True)
            if entered
            for pair in self._pairs(list(dict.fromkeys(entered.values())), prompt_of(group[0], context), random)
        ]
        comparisons = compare(self.name, self._config, self._config.template, pairs, context)
        won = shares_won(comparisons)
        met: dict[str, list[Comparison]] = {}
        for comparison in comparisons:
            met.setdefault(comparison.first, []).append(comparison)
            met.setdefault(comparison.second, []).append(comparison)
        return [
            [self._score_one(entered.get(rollout.id), won, met, alone=not entered) for rollout in group]
            for group, entered in zip(groups, entries, strict=True)
        ]

    def _pairs(self, competitors: list[Competitor], prompt: Prompt, random: np.random.Generator) -> list[Pair]:
        ring = [competitors[i] for i in random.permutation(len(competitors))]
        words = {"question": prompt.text}
        return [Pair(ring[i], ring[j], prompt, words) for i, j in pair_up(len(ring), self._config.opponents)]

    def _score_one(
        self,
        competitor: Competitor | None,
        won: Mapping[str, float],
        met: Mapping[str, Sequence[Comparison]],
        *,
        alone: bool,
    ) -> Score:
        if competitor is None:
            if alone:
                return Score(None, {}, {"note": "nobody in the group has an answer"})
            return Score(0.0, {self.name: 0.0}, {"note": "no answer to compare"}, unasked=True)
        comparisons = met.get(competitor.id, [])
        evidence: dict[str, Any] = {
            "compared_as": competitor.id,
            "comparisons": [comparison.seen_by(competitor.id) for comparison in comparisons],
        }
        value = won.get(competitor.id)
        if value is None:
            note = "no comparison could be read in both orders" if comparisons else "no other answer to compare with"
            return Score(None, {}, evidence | {"note": note})
        return Score(value, {self.name: value}, evidence)


def _enter(group: Sequence[Rollout], context: RewardContext) -> dict[str, Competitor]:
    """Who competes for each rollout that has an answer, by its id: the first of those with the same text."""
    by_text: dict[str, Competitor] = {}
    return {
        rollout.id: by_text.setdefault(rollout.text.strip(), Competitor(rollout.id, rollout.text.strip()))
        for rollout in group
        if context.extract(rollout) is not None
    }
