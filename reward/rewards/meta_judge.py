"""A judge whose judgements are judged (Meta-Rewarding Language Models, arXiv 2407.19594)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

from reward.asking import Asked, ask, clip, needs_of
from reward.base import BaseReward, Groups, prompt_of
from reward.comparisons import Comparison, Competitor, Pair, compare, shares_won
from reward.config import AskingSection, MetaJudgeConfig
from reward.distinct import score_distinct
from reward.grades import grade_schema, parse_grade, parse_json_grade
from reward.rewards.combination import counting_as
from reward.rewards.judge import TOO_LONG, before_next_case
from reward.templates import fill, question_about
from reward.types import Lesson, Reply, RewardContext, Score
from rollouts.types import Prompt, Rollout

AVERAGE = 0.5
"""Weight of a judgement that was compared with no other: what the two sides of a comparison get on average."""

_GRADE = re.compile(r"(?i)\bgrade[*_]*\s*(?::|=|\bis\b)[*_]*")


@dataclass(frozen=True, slots=True)
class Case:
    """An answer, and what was said of it."""

    prompt: Prompt
    words: Mapping[str, str]
    """The question and the answer, for the templates."""
    question: Prompt
    """To the judge."""
    asked: Asked[float] | None
    """Judgements and their grades; None where the question does not fit the context."""
    competitors: tuple[Competitor | None, ...]
    """Who competes for each judgement: the first of those with the same words; None where the grade is unreadable."""


class MetaJudgeReward(BaseReward):
    """Mean grade of an answer's judgements, each weighted by the share of its comparisons with the others that it won,
    scaled so that `low` is 0 and `high` is 1.

    The judge itself compares them, greedily, all with all and in both orders; a verdict that turns with the order is
    half a win for either, and a pair of which one order could not be read is left out. A judgement that was compared
    with no other weighs 0.5, the average. The paper (section 2.2) fits Elo strengths to the verdicts; where all meet
    all, the share won ranks alike and needs no fit. It trains the judge on them, which is `learn`: the judgements on
    an answer are a group with the share won as reward. That the share weighs the grades too is ours.

    A rollout without an answer earns 0 unasked. Equal completions to one prompt are judged once. Judgements that hold
    no readable grade are left out and counted; where none is left there is no opinion. What comparing them counts
    begins with "meta/".
    """

    name = "meta_judge"

    def __init__(self, config: MetaJudgeConfig | None = None) -> None:
        self._config = config or MetaJudgeConfig()
        self.needs = needs_of(self._config.by)

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        return score_distinct(self.name, groups, context, lambda rollouts: self._judge(rollouts, context))

    def _judge(self, rollouts: Sequence[Rollout], context: RewardContext) -> list[Score]:
        cases = self._cases(rollouts, context)
        pairs = [self._pairs(case) for case in cases]
        compared = iter(self._compare([pair for own in pairs for pair in own], context))
        scores = []
        for case, own in zip(cases, pairs, strict=True):
            comparisons = list(islice(compared, len(own)))
            won = shares_won(comparisons)
            if self._config.learn:
                _teach(case, won, context)
            scores.append(self._grade(case, comparisons, won))
        return scores

    def _cases(self, rollouts: Sequence[Rollout], context: RewardContext) -> list[Case]:
        prompts = [prompt_of(rollout, context) for rollout in rollouts]
        words = [
            {"question": prompt.text, "answer": rollout.text.strip()}
            for rollout, prompt in zip(rollouts, prompts, strict=True)
        ]
        questions = [
            question_about(prompt, f"{rollout.id}/judge", fill(self._config.template, **own), chat=self._config.chat)
            for rollout, prompt, own in zip(rollouts, prompts, words, strict=True)
        ]
        schema = _judgement_schema(self._config)
        asked = ask(self.name, self._config, questions, self._read, context, json_schema=schema)
        return [
            Case(prompt, own, question, judgements, _competitors(question, judgements))
            for prompt, own, question, judgements in zip(prompts, words, questions, asked, strict=True)
        ]

    def _read(self, reply: Reply) -> float | None:
        low, high = self._config.low, self._config.high
        if self._config.reply == "json":
            return parse_json_grade(reply.text, low, high)
        reply = before_next_case(reply, self._config.template)
        asks_for_label = _GRADE.search(self._config.template) is not None  # numbers of the reasoning before it are none
        return parse_grade(reply.text, low, high, truncated=reply.truncated, labelled_only=asks_for_label)

    def _pairs(self, case: Case) -> list[Pair]:
        distinct = dict.fromkeys(competitor for competitor in case.competitors if competitor is not None)
        return [Pair(first, second, case.prompt, case.words) for first, second in combinations(distinct, 2)]

    def _compare(self, pairs: Sequence[Pair], context: RewardContext) -> list[Comparison]:
        config = self._config
        asking = AskingSection(
            by=config.by,
            chat=config.chat,
            samples=1,
            temperature=0.0,
            max_tokens=config.meta_max_tokens,
            reply=config.reply,
            retries=config.retries,
            unreadable=config.unreadable,
        )
        apart = counting_as("meta", context)
        return compare(f"{self.name}/meta", asking, config.meta_template, pairs, apart, must_fit=False)

    def _grade(self, case: Case, comparisons: Sequence[Comparison], won: Mapping[str, float]) -> Score:
        if case.asked is None:
            return TOO_LONG
        weights = [None if c is None else won.get(c.id, AVERAGE) for c in case.competitors]
        evidence = {
            "judgements": [clip(reply.text) for reply in case.asked.replies],
            "grades": list(case.asked.readings),
            "weights": weights,
            "unreadable": case.asked.unreadable,
            "failures": case.asked.failures,
            "comparisons": [{"judgement": c.first, **c.seen_by(c.first)} for c in comparisons],
        }
        graded = [(w, g) for w, g in zip(weights, case.asked.readings, strict=True) if w is not None and g is not None]
        if not graded:
            return Score(None, {}, evidence)
        low, high = self._config.low, self._config.high
        # Never all 0: of the two sides of any comparison, one has at least a half.
        mean = sum(weight * grade for weight, grade in graded) / sum(weight for weight, _ in graded)
        value = (mean - low) / (high - low)
        return Score(value, {self.name: value}, evidence)


def _judgement_schema(config: MetaJudgeConfig) -> dict[str, Any]:
    """A grade and, before it, the reason, without which there would be little to compare."""
    grade = grade_schema(config.low, config.high)
    properties = {"reason": {"type": "string"}, **grade["properties"]}
    return grade | {"properties": properties, "required": list(properties)}


def _competitors(question: Prompt, asked: Asked[float] | None) -> tuple[Competitor | None, ...]:
    if asked is None:
        return ()
    by_words: dict[str, Competitor] = {}
    return tuple(
        by_words.setdefault(reply.text.strip(), Competitor(f"{question.id}/{index}", reply.text.strip()))
        if grade is not None
        else None
        for index, (reply, grade) in enumerate(zip(asked.replies, asked.readings, strict=True))
    )


def _teach(case: Case, won: Mapping[str, float], context: RewardContext) -> None:
    """Hands over the judgements that were compared, if they did not all fare alike."""
    replies = case.asked.replies if case.asked else ()
    lessons = [
        (reply.rollout, won[competitor.id])
        for reply, competitor in zip(replies, case.competitors, strict=True)
        if reply.rollout is not None and competitor is not None and competitor.id in won
    ]
    if len({share for _, share in lessons}) > 1:
        rollouts, shares = zip(*lessons, strict=True)
        scores = tuple(Score(share, {"judgement": share}, {"judged": case.question.id}) for share in shares)
        context.teach(Lesson("judgement", case.question, rollouts, scores, on_policy=True))
