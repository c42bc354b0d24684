"""Which of several texts are better, by comparing pairs of them: each in both orders, because models favour a position
(arXiv 2306.05685, sections 3.3 and 3.4)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from reward.asking import Asked, ask, clip
from reward.config import AskingSection
from reward.templates import fill, question_about
from reward.types import Reply, RewardContext
from reward.verdicts import VERDICT_SCHEMA, Verdict, read_verdict, read_verdict_json
from rollouts.types import Prompt

CLIPPED = 200
"""Characters of a reply that evidence keeps: there are many replies."""


@dataclass(frozen=True, slots=True)
class Competitor:
    """A text that is compared with others."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts to compare."""

    first: Competitor
    second: Competitor
    prompt: Prompt
    """What both are about."""
    words: Mapping[str, str]
    """What the template asks for besides {first} and {second}."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of a pair."""

    first: str
    """Id of the competitor that was shown as A in order, and as B swapped."""
    second: str
    in_order: Asked[Verdict] | None
    """None where the question does not fit the context."""
    swapped: Asked[Verdict] | None

    @property
    def shares_of_a(self) -> tuple[float, float] | None:
        """Share of the verdicts for A, in order and swapped; None unless both orders were read."""
        in_order, swapped = _share_of_a(self.in_order), _share_of_a(self.swapped)
        return None if in_order is None or swapped is None else (in_order, swapped)

    @property
    def inconsistent(self) -> bool:
        """Whether the two orders prefer different texts."""
        return self.shares_of_a is not None and (self.shares_of_a[0] - 0.5) * (self.shares_of_a[1] - 0.5) > 0

    def won_by(self, id: str) -> float | None:
        """The share of the pair that a competitor won, in [0, 1]: mean over both orders of its share of the verdicts,
        so a half where they contradict each other."""
        if self.shares_of_a is None:
            return None
        in_order, swapped = self.shares_of_a
        share = (in_order + 1 - swapped) / 2
        return share if id == self.first else 1 - share

    def seen_by(self, id: str) -> dict[str, Any]:
        """Evidence for one of the competitors: whom it met, and what was said with it in either position."""
        is_first = id == self.first
        as_a, as_b = (self.in_order, self.swapped) if is_first else (self.swapped, self.in_order)
        return {
            "opponent": self.second if is_first else self.first,
            "won": self.won_by(id),
            "inconsistent": self.inconsistent,
            "as_A": _evidence(as_a),
            "as_B": _evidence(as_b),
        }


def pair_up(n: int, opponents: int | None) -> list[tuple[int, int]]:
    """Who of n competitors meets whom: everyone everyone, or in a ring the `opponents` nearest, as many on either side;
    an odd one is the one opposite. Where both numbers are odd, one competitor meets one more."""
    if opponents is None or opponents >= n - 1:
        return list(combinations(range(n), 2))
    near = [(i, (i + step) % n) for step in range(1, opponents // 2 + 1) for i in range(n)]
    opposite = [(i, i + n // 2) for i in range((n + 1) // 2)] if opponents % 2 else []
    return near + opposite


def compare(
    name: str,
    config: AskingSection,
    template: str,
    pairs: Sequence[Pair],
    context: RewardContext,
    *,
    must_fit: bool = True,
) -> list[Comparison]:
    """Asks about each pair in both orders; `must_fit` as in `ask`.

    Counts the pairs "compared", those of them that were "inconsistent", and "position_first", the share of a pair's
    verdicts that went to the text shown first: over "compared" it is 0.5 for a judge that favours no position.

    Raises:
        RewardError: see `ask`.
    """
    if not pairs:
        return []
    questions = [question for pair in pairs for question in _both_orders(pair, template, config.chat)]
    read: Callable[[Reply], Verdict | None] = read_verdict_json if config.reply == "json" else read_verdict
    asked: list[Asked[Verdict] | None] = ask(
        name, config, questions, read, context, json_schema=VERDICT_SCHEMA, must_fit=must_fit
    )
    comparisons = [
        Comparison(pair.first.id, pair.second.id, in_order, swapped)
        for pair, in_order, swapped in zip(pairs, asked[::2], asked[1::2], strict=True)
    ]
    for comparison in comparisons:
        if comparison.shares_of_a is not None:
            context.count("compared", 1)
            context.count("inconsistent", comparison.inconsistent)
            context.count("position_first", sum(comparison.shares_of_a) / 2)
    return comparisons


def shares_won(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Mean share that each competitor won of its pairs, those left out that could not be read in both orders; without
    competitors of which nothing could be read.

    Where everyone meets everyone this ranks as a Bradley-Terry model does (the number of wins is its sufficient
    statistic there), and unlike its maximum-likelihood strengths it stays finite for one who wins every pair.
    """
    won: dict[str, list[float]] = {}
    for comparison in comparisons:
        for id in (comparison.first, comparison.second):
            share = comparison.won_by(id)
            if share is not None:
                won.setdefault(id, []).append(share)
    return {id: sum(shares) / len(shares) for id, shares in won.items()}


def _both_orders(pair: Pair, template: str, chat: bool | None) -> tuple[Prompt, Prompt]:
    in_order, swapped = (pair.first, pair.second), (pair.second, pair.first)
    return _question(pair, template, *in_order, chat), _question(pair, template, *swapped, chat)


def _question(pair: Pair, template: str, a: Competitor, b: Competitor, chat: bool | None) -> Prompt:
    text = fill(template, **pair.words, first=a.text, second=b.text)
    return question_about(pair.prompt, f"{a.id}/against/{b.id}", text, chat=chat)


def _share_of_a(asked: Asked[Verdict] | None) -> float | None:
    verdicts = [] if asked is None else asked.readable
    return verdicts.count("A") / len(verdicts) if verdicts else None


def _evidence(asked: Asked[Verdict] | None) -> dict[str, Any]:
    if asked is None:
        return {"note": "not asked: the question does not fit the writer's context"}
    replies = [clip(reply.failure or reply.text, CLIPPED) for reply in asked.replies]
    return {"verdicts": list(asked.readings), "replies": replies}
