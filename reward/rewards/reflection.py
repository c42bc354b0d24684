"""Reflection in words: an answer is criticised and revised, and earns by what comes of it (Self-Refine, arXiv
2303.17651; Constitutional AI, 2212.08073; Reflect, Retry, Reward, 2505.24726)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reward.asking import needs_of
from reward.base import BaseReward, Groups
from reward.config import ReflectionConfig
from reward.distinct import SILENT
from reward.equivalence import group_answers
from reward.feedback import read_feedback
from reward.reflection.attempts import Attempt, Reflector
from reward.reflection.cases import Case, Content, distinct, evidence_of
from reward.reflection.lessons import lessons
from reward.rewards.combination import counting_as
from reward.types import Need, RewardContext, RewardError, Score
from rollouts.types import Rollout

UNASKED = Score(0.0, {"reflection": 0.0}, {"answer": None, "note": "no answer to reflect on"}, unasked=True)


class ReflectionReward(BaseReward):
    """What the revisions of an answer say about it.

    Each distinct completion of a group is criticised and revised `critiques` times. With r the revisions of answer o,

        survival = share of the r that give o's answer
        gain     = mean of measure(r) − measure(o)
        revised  = mean of measure(r)

    and `pay` says which of survival, −gain and revised is the reward. `measure` scores the originals of a group and all
    their revisions as one group, so that both vote, with each revision as an answer to the original's prompt. A
    revision that was cut off, states no answer or never came is left out; where none is left there is no opinion.

    A completion without an answer has nothing that could survive. Without a measure it is not asked about and earns 0,
    and where nobody in the group has an answer there is no opinion; with one it is reflected on like any other, since
    to find an answer is a gain, and its survival is 0.
    """

    name = "reflection"

    def __init__(self, config: ReflectionConfig, measure: BaseReward | None = None) -> None:
        """`measure`: the reward that `config.measure` describes.

        Raises:
            RewardError: the file of comments cannot be read.
        """
        self._config = config
        self._measure = measure
        self._feedback = None if config.feedback is None else read_feedback(config.feedback)
        self.needs: frozenset[Need] = needs_of(config.by) | (frozenset() if measure is None else measure.needs)

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        attempts = self._reflect(groups, context)
        enlarged = [[*group, *_revisions(found)] for group, found in zip(groups, attempts, strict=True)]
        measured = self._measured(enlarged, context)
        cases = [
            Case(group, found, _by_id(rollouts, group_answers(rollouts, context)), scores)
            for group, found, rollouts, scores in zip(groups, attempts, enlarged, measured, strict=True)
        ]
        for case in cases:
            for lesson in lessons(case, self._config, context):
                context.teach(lesson)
        return [self._score_group(case, context) for case in cases]

    def _score_group(self, case: Case, context: RewardContext) -> list[Score]:
        scores = [self._score_one(case, rollout) for rollout in case.group]
        unasked = sum(score is UNASKED for score in scores)
        if unasked:
            context.count("unanswered", unasked)
        return scores if unasked < len(scores) else [Score(None, {}, {"note": SILENT})] * unasked

    def _reflect(self, groups: Groups, context: RewardContext) -> list[dict[Content, list[Attempt]]]:
        """The attempts at each distinct completion of each group."""
        originals = [distinct(r for r in group if self._measure is not None or context.extract(r)) for group in groups]
        flat = [original for found in originals for original in found.values()]
        attempts = Reflector(self._config, self._feedback, context).reflect(flat) if flat else {}
        return [{content: attempts[original.id] for content, original in found.items()} for found in originals]

    def _measured(self, groups: Groups, context: RewardContext) -> list[dict[str, Score]]:
        """What the measure says of each group, by rollout id."""
        if self._measure is None:
            return [{} for _ in groups]
        try:
            scores = self._measure.score(groups, counting_as("measure", context))
        except RewardError as error:
            raise type(error)(f"measure: {error}") from error
        return [_by_id(group, group_scores) for group, group_scores in zip(groups, scores, strict=True)]

    def _score_one(self, case: Case, rollout: Rollout) -> Score:
        outcomes = case.outcomes(rollout)
        if outcomes is None:
            return UNASKED
        answer, score = case.answers[rollout.id], case.scores.get(rollout.id)
        gain = _mean(outcome.gain for outcome in outcomes)
        survivals = [float(o.answer == answer) for o in outcomes if o.attempt.revision is not None]
        survival = _mean(survivals) if answer else 0.0
        payments = {
            "survival": survival,
            "gain": None if gain is None else 0.0 - gain,  # 0.0 - x: no -0.0
            "revised": _mean(outcome.score for outcome in outcomes),
        }
        value = payments[self._config.pays]
        components = {self.name: value, "gain": gain, "survival": survival}
        evidence: dict[str, Any] = {"answer": answer or None}
        if score is not None:
            evidence |= {"score": score.value, "measure": dict(score.evidence)}
        evidence["reflections"] = [evidence_of(outcome) for outcome in outcomes]
        return Score(value, {name: part for name, part in components.items() if part is not None}, evidence)

    def state(self) -> dict[str, Any]:
        """That of the measure."""
        return {} if self._measure is None else {"measure": self._measure.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        if self._measure is not None:
            self._measure.restore(state["measure"])


def _revisions(attempts: Mapping[Content, Sequence[Attempt]]) -> list[Rollout]:
    return [attempt.revision for found in attempts.values() for attempt in found if attempt.revision is not None]


def _by_id(rollouts: Sequence[Rollout], values: Sequence[Any]) -> dict[str, Any]:
    return {rollout.id: value for rollout, value in zip(rollouts, values, strict=True)}


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
