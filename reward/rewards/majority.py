"""Agreement with the group's own answers (TTRL, arXiv 2504.16084)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward.base import BaseReward, Groups
from reward.config import MajorityConfig
from reward.equivalence import group_answers
from reward.types import RewardContext, Score


@dataclass(frozen=True, slots=True)
class Vote:
    """How a group of rollouts voted."""

    counts: dict[str, int]
    """Votes by answer, most first, then in alphabetical order."""
    winners: tuple[str, ...]
    """The most frequent answers: several in a tie, none where nobody voted."""
    share: float
    """Votes of one winner over all rollouts, those without an answer included."""


def count_votes(answers: Sequence[str | None]) -> Vote:
    """A rollout without an answer (None or empty) casts no vote but counts in `share`."""
    counts = Counter(answer for answer in answers if answer)
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    top = max(counts.values(), default=0)
    winners = tuple(answer for answer, count in ordered.items() if count == top)
    return Vote(ordered, winners, top / len(answers) if answers else 0.0)


def vote_scores(
    name: str, answers: Sequence[str | None], values: Sequence[float | None], evidence: Mapping[str, Any]
) -> list[Score]:
    """One score per voter: the answer it gave, beside the evidence that all of them share."""
    return [
        Score(value, {} if value is None else {name: value}, {"answer": answer or None, **evidence})
        for answer, value in zip(answers, values, strict=True)
    ]


class MajorityReward(BaseReward):
    """1 for the most frequent answer of the group, 0 for others and for none; or, softly, the share of the
    group that agrees.

    In a tie of k answers each earns 1/k: what drawing a winner at random would give on average. Any rule that
    names one of them could be learned (the shortest, the first in the alphabet), and a drawn one would be
    noise.

    A group in which nobody has an answer, or whose winner has less than `min_share` of the rollouts, gets no
    opinion.
    """

    name = "majority"

    def __init__(self, config: MajorityConfig | None = None) -> None:
        self._config = config or MajorityConfig()

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        return [self._score_group(group_answers(group, context)) for group in groups]

    def _score_group(self, answers: list[str | None]) -> list[Score]:
        vote = count_votes(answers)
        no_opinion = not vote.winners or vote.share < self._config.min_share
        evidence = {"votes": vote.counts, "winners": list(vote.winners), "share": vote.share}
        values = [None if no_opinion else self._value(answer, vote, len(answers)) for answer in answers]
        return vote_scores(self.name, answers, values, evidence)

    def _value(self, answer: str | None, vote: Vote, n: int) -> float:
        if not answer:
            return 0.0
        if self._config.soft:
            return vote.counts[answer] / n
        return 1.0 / len(vote.winners) if answer in vote.winners else 0.0
