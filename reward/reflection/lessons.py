"""What reflecting on an answer teaches, besides what the answer is worth."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from reward.asking import clip
from reward.base import prompt_of
from reward.config import ReflectionConfig
from reward.reflection.attempts import critique_question
from reward.reflection.cases import Case, Outcome, distinct
from reward.types import Lesson, RewardContext, Score
from rollouts.types import Prompt, Rollout


def lessons(case: Case, config: ReflectionConfig, context: RewardContext) -> Iterator[Lesson]:
    """From each distinct completion of the group, what `config.learn` names."""
    for original in distinct(case.group).values():
        gains = [(o.gain, o) for o in case.outcomes(original) or () if o.gain is not None]
        prompt = prompt_of(original, context).without_labels()
        if "critique" in config.learn:
            yield from _critiques(critique_question(config, prompt, original), gains)
        if "revision" in config.learn and gains:
            gain, best = max(gains, key=lambda pair: pair[0])
            if gain >= config.min_gain:
                yield _revision(prompt, original, best, gain, case)


def _critiques(question: Prompt, gains: Sequence[tuple[float, Outcome]]) -> Iterator[Lesson]:
    """The policy's critiques of one answer, each rewarded by what its revision gained (Reflect, Retry, Reward, arXiv
    2505.24726, rewards a reflection where the retry after it succeeds). None where all gained the same."""
    rollouts: list[Rollout] = []
    scores: list[Score] = []
    for gain, outcome in gains:
        step = outcome.attempt.steps[0]
        if step.critique.rollout is not None and step.revision is not None:
            rollouts.append(step.critique.rollout)
            scores.append(Score(gain, {"gain": gain}, {"revision": clip(step.revision.text), "answer": outcome.answer}))
    if len({score.value for score in scores}) > 1:
        yield Lesson("critique", question, tuple(rollouts), tuple(scores), on_policy=True)


def _revision(prompt: Prompt, original: Rollout, best: Outcome, gain: float, case: Case) -> Lesson:
    """An answer and its best revision, in that order."""
    revision = best.attempt.revision
    assert revision is not None, "a gain is a revision's"
    score = case.scores[revision.id]
    score = replace(
        score,
        components={**score.components, "gain": gain},
        evidence={**score.evidence, "critique": clip(best.attempt.steps[-1].critique.text)},
    )
    return Lesson("revision", prompt, (original, revision), (case.scores[original.id], score), on_policy=False)
