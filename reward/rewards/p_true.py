"""The model's own probability that an answer is right (P(True), arXiv 2207.05221)."""

import math
import sys
from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from reward.base import BaseReward, Groups, prompt_of
from reward.config import PTrueConfig
from reward.distinct import score_distinct
from reward.templates import fill, question_about
from reward.types import Need, RewardContext, RewardError, Score
from rollouts.types import Prompt, Rollout


class PTrueReward(BaseReward):
    """p(yes) / (p(yes) + p(no)) as the reply to "is this answer correct?", in [0, 1] (section 3.1).

    Nothing is sampled: both replies are scored by the trainer's model in one forward pass per question, at
    temperature 1. A rollout without an answer earns 0 unasked: there is nothing to ask about. Equal completions to
    one prompt are asked about once.
    """

    name = "p_true"
    needs: frozenset[Need] = frozenset({"likelihood"})

    def __init__(self, config: PTrueConfig | None = None) -> None:
        self._config = config or PTrueConfig()

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        return score_distinct(self.name, groups, context, lambda rollouts: self._ask(rollouts, context))

    def _ask(self, rollouts: Sequence[Rollout], context: RewardContext) -> list[Score]:
        assert context.likelihood is not None
        questions = [self._question(rollout, prompt_of(rollout, context)) for rollout in rollouts]
        table = context.likelihood(questions, (self._config.yes, self._config.no), self._config.model)
        if np.shape(table) != (len(questions), 2):
            raise RewardError(
                f"likelihood returned shape {np.shape(table)} for {len(questions)} questions and 2 replies"
            )
        return [self._grade(float(yes), float(no)) for yes, no in table]

    def _question(self, rollout: Rollout, prompt: Prompt) -> Prompt:
        text = fill(self._config.template, question=prompt.text, answer=rollout.text.strip())
        return question_about(prompt, f"{rollout.id}/p_true", text, chat=self._config.chat)

    def _grade(self, yes: float, no: float) -> Score:
        if math.isnan(yes) or math.isnan(no):
            return Score(None, {}, {"note": "not asked: the question does not fit the model's context"})
        if math.isinf(yes) and math.isinf(no):
            return Score(None, {}, {"note": "neither reply has any probability"})
        value = float(expit(yes - no))
        # JSON knows no infinity
        evidence = {"log p(yes)": max(yes, -sys.float_info.max), "log p(no)": max(no, -sys.float_info.max)}
        return Score(value, {self.name: value}, evidence)
