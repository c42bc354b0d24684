"""A model grades each answer against a rubric (Self-Rewarding Language Models, arXiv 2401.10020)."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from reward.asking import Asked, ask, clip, find_json_object, needs_of
from reward.base import BaseReward, Groups, prompt_of
from reward.config import JudgeConfig
from reward.distinct import score_distinct
from reward.templates import fill, question_about
from reward.types import Reply, RewardContext, Score
from rollouts.types import Prompt, Rollout

TOO_LONG = Score(None, {}, {"note": "no judgement: with this answer the question does not fit the model's context"})

_NUMBER = r"((?<![\w.,/-])-?[0-9]+(?:\.[0-9]+)?(?![\w/]|[.,][0-9]))"
_I_GIVE = r"I(?:['’](?:d|ll))?(?: (?!(?:not|never|cannot)\b)\w+){0,2} (?:say|give|rate|assign|award)"
_STANDS = (
    r"(?=[ \"')\]]*(?:\Z|\n|[.!](?:\s|\Z)|[;(]|,(?!\s*[0-9])|:(?!\s*[(0-9])"
    r"|[-–—](?!\s*(?:[(0-9]|[b-hj-z]\b|[ai]\b(?! [a-z]{2})))"
    r"|(?:because|since|as (?:it|the)|points?|stars?)\b))"
)
"""What may follow a number that is given as a grade: the end, a pause, a reason; and no sum, range or condition."""
_CALLED = re.compile(
    r"(?i)\b(?:(?:grade|score|rating)\b(?: (?:is|of|would be))?"
    rf"|(?:{_I_GIVE}|(?:give|rate|assign|award)s? (?:it|this|that)\b)"
    rf"(?: (?:it|this|that|the|an?|proposed|answer|grade|score|rating|of|as)){{0,12}})[ :=]{{0,9}}{_NUMBER}{_STANDS}"
)
"""A number that is called a grade, or given as one, and not spoken about ("Grade 1 is too harsh", "I give 5 if")."""
_LABELLED = re.compile(rf"(?i)\b(?:grade|score|rating)\b {{0,9}}[:=] {{0,9}}{_NUMBER}(?:{_STANDS}|(?= (?-i:[A-Z])))")
"""A grade as a form would state it; of several numbers that are called grades, these count."""
_OPENS = re.compile(rf"(?i)[\W_]*{_NUMBER}{_STANDS}(?![ \"')\]]*[.!][^\S\n]*[^\s])")
"""A number that opens the reply, and is neither one of several, nor the number of a sentence, nor worked with."""
_ECHO = "\ue000"
"""Stands where the scale was repeated."""
_AFTER_ECHO = re.compile(rf"(?i)(?!.*\banswer)[^0-9.;\n]{{0,60}}?{_NUMBER}{_STANDS}")
_NO_GRADE = re.compile(
    r"(?i)(?:\b(?:max\w*|min\w*|(?:high|low|b)est|worst|top|full|possible|(?:can)?not|never|nobody|none|no one)|n['’]t)"
    r"\b[\w ']*\Z|\bif\b[^.!?;\n]*\Z"
)
"""Before a number that is called a grade, but is not the one that is given."""


class JudgeReward(BaseReward):
    """Mean grade of `samples` judgements, scaled so that `low` is 0 and `high` is 1.

    A rollout without an answer earns 0 unasked: there is nothing to grade; see `score_distinct`. Equal completions to
    one prompt are judged once. Judgements that hold no readable grade are left out and counted; where none is left
    there is no opinion."""

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
        return question_about(prompt, f"{rollout.id}/judge", text, chat=self._config.chat)

    def _read(self, reply: Reply) -> float | None:
        low, high = self._config.low, self._config.high
        if self._config.reply == "json":
            return parse_json_grade(reply.text, low, high)
        reply = before_next_case(reply, self._config.template)
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


def before_next_case(reply: Reply, template: str) -> Reply:
    """What was said before the model went on to a case of its own making: a line that begins as the template does."""
    opening = template[: template.find("{")].split("\n")[0].strip()
    if len(opening) < 3:
        return reply
    own, *invented = re.split(rf"\n[ \t]{{0,9}}{re.escape(opening)}", reply.text, maxsplit=1)
    return replace(reply, text=own, truncated=False) if invented else reply


def parse_grade(text: str, low: float, high: float, *, truncated: bool = False) -> float | None:
    """The grade in a judge's reply: the last number that it writes as one ("Grade: 4"); else the one that it calls its
    grade, score or rating, or says that it gives; else the one behind an echo of the scale ("From 1 to 5: 4"), or one
    that opens the reply ("4", "4, because"). Echoes of the scale are put aside: "1 to 5", "from 1 (wrong) to 5
    (right)", "between 1 and 5", "/5", "out of 5".

    None where there is no such number (other numbers may be the answer itself, or count reasons), where different ones
    are written as its grade, or are called it and none is written as one, where it lies outside [low, high], or where
    it is the last thing before the reply was cut off, so that digits may be missing.
    """
    text = re.sub(r"\s*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", text.replace("−", "-").replace("*", "")))
    text = _without_scale(text, low, high)
    written = _given(_LABELLED, text)
    found = written or _given(_CALLED, text)
    if len({float(match[1]) for match in found}) > 1:
        return None
    before, echo, after = text.rpartition(_ECHO)
    if found:
        number, end = found[-1][1], found[-1].end(1)
    elif echo and (match := _AFTER_ECHO.match(after)):
        number, end = match[1], len(before) + 1 + match.end(1)
    elif match := _OPENS.match(text):
        number, end = match[1], match.end(1)
    else:
        return None
    if truncated and end == len(text):
        return None
    return float(number) if low <= float(number) <= high else None


def _given(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    return [m for m in pattern.finditer(text) if not _NO_GRADE.search(text[max(0, m.start() - 60) : m.start()])]


def _without_scale(text: str, low: float, high: float) -> str:
    """A reply in which a mark stands for each echo of the scale."""
    bottom, top = (rf"{re.escape(f'{bound:g}')}(?:\.0)?(?![0-9.]*[0-9])" for bound in (low, high))
    meaning = r"\s*(?:\([^()]*\)|(?:,|=|being\b|meaning\b)[^0-9.;:()]{1,40}?,?)?\s*"
    text = re.sub(rf"(?i)(?<![\w.]){bottom}{meaning}(?:(?:up )?to|-|–|through)\s*{top}", _ECHO, text)
    text = re.sub(rf"(?i)\bbetween\s+{bottom}{meaning}and\s+{top}", _ECHO, text)
    text = re.sub(rf"(?i)(?<![\w.]){bottom}\s+being\b[^0-9.;:()]{{1,40}}?\band\s+{top}", _ECHO, text)
    text = re.sub(rf"(?i)\b(?:from|between)\s+{bottom}[^0-9]*\Z", _ECHO, text)  # the reply ends within the echo
    return re.sub(rf"\s*(?:/|\bout of\b)\s*{top}", "", text)


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
