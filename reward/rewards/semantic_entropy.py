"""How little a group disagrees in meaning (EMPO, arXiv 2504.05812; semantic entropy, 2302.09664)."""

import math
from collections.abc import Sequence

from reward.base import BaseReward, Groups
from reward.config import SemanticEntropyConfig
from reward.equivalence import group_answers
from reward.rewards.majority import Vote, count_votes, vote_scores
from reward.types import RewardContext, Score


def semantic_entropy(answers: Sequence[str | None]) -> float:
    """−Σ p log p over clusters of equal answers, in nats, with p = |cluster| / n: the discrete semantic entropy of
    Farquhar et al. (Nature 630, 2024), which weighs every sample the same.

    A rollout without an answer agrees with nobody: it counts as a cluster of its own. 0 for an empty group.
    """
    sizes = [*count_votes(answers).counts.values(), *(1 for answer in answers if not answer)]
    shares = [size / len(answers) for size in sizes]
    return -math.fsum(share * math.log(share) for share in shares)


class SemanticEntropyReward(BaseReward):
    """log p(cluster of this answer), or p itself, p being the cluster's share of the group.

    The mean of the logs over a group is minus its semantic entropy, so that this is that entropy divided up among
    those who make it; within a group it ranks answers as `majority` with `soft` does, and pays lone answers far less.
    A rollout without an answer agrees with nobody, and earns what a lone one would: log 1/n; as a share, 0. Groups
    outside [min_entropy, max_entropy], and those in which nobody has an answer, get no opinion.
    """

    name = "semantic_entropy"

    def __init__(self, config: SemanticEntropyConfig | None = None) -> None:
        self._config = config or SemanticEntropyConfig()

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        return [self._score_group(group_answers(group, context)) for group in groups]

    def _score_group(self, answers: list[str | None]) -> list[Score]:
        vote, entropy = count_votes(answers), semantic_entropy(answers)
        high = self._config.max_entropy
        silent = not vote.winners or entropy < self._config.min_entropy or (high is not None and entropy > high)
        values = [None if silent else self._value(answer, vote, len(answers)) for answer in answers]
        return vote_scores(self.name, answers, values, {"votes": vote.counts, "entropy": entropy})

    def _value(self, answer: str | None, vote: Vote, n: int) -> float:
        share = vote.counts[answer] / n if answer else 0.0
        return share if self._config.pay == "share" else math.log(share or 1 / n)
