"""A model grades each answer against a rubric (Self-Rewarding Language Models, arXiv 2401.10020)."""

import re
from collections.abc import Sequence
from typing import Any

from reward.asking import Asked, ask, clip, find_json_object, needs_of
from reward.base import BaseReward, Groups, prompt_of
from reward.config import JudgeConfig
from reward.distinct import score_distinct
from reward.templates import fill, question_about
from reward.types import Reply, RewardContext, Score
from rollouts.types import Prompt, Rollout

TOO_LONG = Score(None, {}, {"note": "no judgement: with this answer the question does not fit the model's context"})

_NUMBER = re.compile(r"((?<![\w.,/-])-?[0-9]+(?:\.[0-9]+)?(?![\w/]|[.,][0-9]))")
_CALLED = re.compile(rf"(?i)\b(?:grade|score|rating)\b(?: (?:is|of|would be))?[ :=*]*{_NUMBER.pattern}")


class JudgeReward(BaseReward):
    """Mean grade of `samples` judgements, scaled so that `low` is 0 and `high` is 1.

    A rollout without an answer earns 0 unasked: there is nothing to grade. Equal completions to one prompt
    are judged once. Judgements that hold no readable grade are left out and counted; where none is left there
    is no opinion.
    """

    name = "judge"

    def __init__(self, config: JudgeConfig | None = None) -> None:
        self._config = config or JudgeConfig()
        self.needs = needs_of(self._config.by)

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        return score_distinct(self.name, groups, context, lambda rollouts: self._judge(rollouts, context))

    def _judge(self, rollouts: Sequence[Rollout], context: RewardContext) -> list[Score]:
        config = self._config
        questions = [self._question(rollout, prompt_of(rollout, context)) for rollout in rollouts]
        schema = grade_schema(config.low, config.high)
        asked = ask(self.name, config, questions, self._read, context, json_schema=schema)
        return [TOO_LONG if case is None else self._grade(case) for case in asked]

    def _question(self, rollout: Rollout, prompt: Prompt) -> Prompt:
        text = fill(self._config.template, question=prompt.text, answer=rollout.text.strip())
        return question_about(prompt, f"{rollout.id}/judge", text)

    def _read(self, reply: Reply) -> float | None:
        low, high = self._config.low, self._config.high
        if self._config.reply == "json":
            return parse_json_grade(reply.text, low, high)
        return parse_grade(reply.text, low, high, truncated=reply.truncated)

    def _grade(self, asked: Asked[float]) -> Score:
        low, high = self._config.low, self._config.high
        evidence = {
            "judgements": [clip(reply.text) for reply in asked.replies],
            "grades": list(asked.readings),
            "unreadable": asked.unreadable,
            "failures": asked.failures,
        }
        grades = asked.readable
        if not grades:
            return Score(None, {}, evidence)
        value = (sum(grades) / len(grades) - low) / (high - low)
        return Score(value, {self.name: value}, evidence)


def parse_grade(text: str, low: float, high: float, *, truncated: bool = False) -> float | None:
    """The grade in a judge's reply: the last number that it calls its grade, score or rating, else its first number;
    echoes of the scale ("1 to 5", "from 1 (wrong) to 5 (right)", "between 1 and 5", "/5", "out of 5") are put aside.

    None where that number lies outside [low, high], where there is none, or where it is the last thing before
    the reply was cut off, so that digits may be missing.
    """
    text = re.sub(r"\s+", " ", text.replace("−", "-"))
    bottom, top = (rf"{re.escape(f'{bound:g}')}(?:\.0)?(?![0-9.]*[0-9])" for bound in (low, high))
    meaning = r"\s*(?:\([^()]*\)|(?:,|=|being\b|meaning\b)[^0-9.;:()]{1,40}?,?)?\s*"
    text = re.sub(rf"(?i)(?<![\w.]){bottom}{meaning}(?:(?:up )?to|-|–|through)\s*{top}", " ", text)
    text = re.sub(rf"(?i)\bbetween\s+{bottom}{meaning}and\s+{top}", " ", text)
    text = re.sub(rf"(?i)\b(?:from|between)\s+{bottom}[^0-9]*\Z", " ", text)  # the reply ends within the echo
    text = re.sub(rf"\s*(?:/|\bout of\b)\s*{top}", " ", text)
    called = list(_CALLED.finditer(text))
    match = called[-1] if called else _NUMBER.search(text)
    if match is None or (truncated and match.end() == len(text)):
        return None
    grade = float(match[1])
    return grade if low <= grade <= high else None


def parse_json_grade(text: str, low: float, high: float) -> float | None:
    """The number that the first JSON object in a reply calls "grade"; None where it is none in [low, high]."""
    grade = (find_json_object(text) or {}).get("grade")
    if isinstance(grade, bool) or not isinstance(grade, int | float) or not low <= grade <= high:
        return None
    return float(grade)


def grade_schema(low: float, high: float) -> dict[str, Any]:
    """JSON schema of a grade and nothing else."""
    return {
        "type": "object",
        "properties": {"grade": {"type": "number", "minimum": low, "maximum": high}},
        "required": ["grade"],
        "additionalProperties": False,
    }
