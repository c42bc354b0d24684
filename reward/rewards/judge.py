"""A model grades each answer against a rubric (Self-Rewarding Language Models, arXiv 2401.10020)."""

import re
from collections.abc import Sequence
from dataclasses import replace

from reward.asking import Asked, ask, clip, needs_of
from reward.base import BaseReward, Groups, prompt_of
from reward.config import JudgeConfig
from reward.distinct import score_distinct
from reward.grades import grade_schema, parse_grade, parse_json_grade
from reward.templates import fill, question_about
from reward.types import Reply, RewardContext, Score
from rollouts.types import Prompt, Rollout

TOO_LONG = Score(None, {}, {"note": "no judgement: with this answer the question does not fit the model's context"})


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
