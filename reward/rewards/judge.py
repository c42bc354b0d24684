"""The policy grades its own answers (Self-Rewarding Language Models, arXiv 2401.10020)."""

import re
from dataclasses import replace

import numpy as np

from reward.base import BaseReward, Groups, prompt_of
from reward.config import JudgeConfig
from reward.types import Need, RewardContext, RewardError, Score
from rollouts.types import Engine, Message, Prompt, PromptTooLongError, Rollout, SamplingParams

TOO_LONG = Score(None, {}, {"note": "no judgement: with this answer the question does not fit the engine's context"})

_NUMBER = re.compile(r"(?<![\w.,/-])-?[0-9]+(?:\.[0-9]+)?(?![\w/]|[.,][0-9])")


class JudgeReward(BaseReward):
    """Mean grade of `samples` judgements, scaled so that `low` is 0 and `high` is 1.

    A rollout without an answer earns 0 unasked: there is nothing to grade. Equal completions to one prompt
    are judged once. Judgements that hold no readable grade are left out and counted; where none is left there
    is no opinion.
    """

    name = "judge"
    needs: frozenset[Need] = frozenset({"engine"})

    def __init__(self, config: JudgeConfig | None = None) -> None:
        self._config = config or JudgeConfig()

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        answered = {rollout.id for group in groups for rollout in group if context.extract(rollout) is not None}
        distinct: dict[tuple[str, str], Rollout] = {}
        for group in groups:
            for rollout in group:
                if rollout.id in answered:
                    distinct.setdefault(_same(rollout), rollout)
        judged = dict(zip(distinct, self._judge(list(distinct.values()), context), strict=True))
        unasked = Score(0.0, {self.name: 0.0}, {"note": "no answer to grade"})
        return [
            [judged[_same(rollout)] if rollout.id in answered else unasked for rollout in group] for group in groups
        ]

    def _judge(self, rollouts: list[Rollout], context: RewardContext) -> list[Score]:
        if not rollouts:
            return []
        assert context.engine is not None
        config = self._config
        sampling = SamplingParams(
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            n=config.samples if config.temperature > 0 else 1,
        )
        questions = [self._question(rollout, prompt_of(rollout, context)) for rollout in rollouts]
        seed = int(np.random.default_rng([context.seed, context.iteration]).integers(2**31))
        replies = _ask(context.engine, questions, sampling, seed)
        return [TOO_LONG if group is None else self._grade(group) for group in replies]

    def _question(self, rollout: Rollout, prompt: Prompt) -> Prompt:
        words = {"question": prompt.text, "answer": rollout.text.strip()}
        # One pass, so that braces in a question or an answer stay what they are.
        text = re.sub(r"\{(question|answer)\}", lambda match: words[match[1]], self._config.template)
        chat = not isinstance(prompt.content, str)
        content: str | tuple[Message, ...] = (Message(role="user", content=text),) if chat else text
        return replace(prompt.without_labels(), id=f"{rollout.id}/judge", content=content)

    def _grade(self, replies: list[Rollout]) -> Score:
        low, high = self._config.low, self._config.high
        grades = [parse_grade(reply.text, low, high, truncated=reply.truncated) for reply in replies]
        readable = [grade for grade in grades if grade is not None]
        evidence = {
            "judgements": [reply.text for reply in replies],
            "grades": grades,
            "unreadable": len(grades) - len(readable),
        }
        if not readable:
            return Score(None, {}, evidence)
        value = (sum(readable) / len(readable) - low) / (high - low)
        return Score(value, {self.name: value}, evidence)


def _ask(engine: Engine, questions: list[Prompt], sampling: SamplingParams, seed: int) -> list[list[Rollout] | None]:
    """The replies to each question; None to one that does not fit the context, because the answer in it is so long."""
    asked = questions
    try:
        replies = engine.generate(asked, sampling, seed=seed)
    except PromptTooLongError as error:
        asked = [question for question in questions if question.id not in error.prompt_ids]
        if not asked:
            raise RewardError(
                "judge: no question fits; raise engine.max_model_len, or start a new run with a shorter "
                f"reward.template or reward.max_tokens: {error}"
            ) from error
        replies = engine.generate(asked, sampling, seed=seed)
    if len(replies) != len(asked):
        raise RewardError(f"judge: the engine answered {len(replies)} of {len(asked)} questions")
    by_id = {question.id: group for question, group in zip(asked, replies, strict=True)}
    return [by_id.get(question.id) for question in questions]


def _same(rollout: Rollout) -> tuple[str, str]:
    return rollout.prompt_id, rollout.text


def parse_grade(text: str, low: float, high: float, *, truncated: bool = False) -> float | None:
    """The grade in a judge's reply: its first number, once echoes of the scale ("1 to 5", "from 1 (wrong) to 5
    (right)", "between 1 and 5", "/5", "out of 5") are put aside.

    None where that number lies outside [low, high], where there is none, or where it is the last thing before
    the reply was cut off, so that digits may be missing.
    """
    text = text.replace("−", "-")
    bottom, top = (rf"{re.escape(f'{bound:g}')}(?:\.0)?(?![0-9.]*[0-9])" for bound in (low, high))
    meaning = r"\s*(?:\([^()]*\)|(?:,|=|being\b|meaning\b)[^0-9.;:()]{1,40}?,?)?\s*"
    text = re.sub(rf"(?i)(?<![\w.]){bottom}{meaning}(?:(?:up )?to|-|–|through)\s*{top}", " ", text)
    text = re.sub(rf"(?i)\bbetween\s+{bottom}{meaning}and\s+{top}", " ", text)
    text = re.sub(rf"(?i)\b(?:from|between)\s+{bottom}[^0-9]*\Z", " ", text)  # the reply ends within the echo
    text = re.sub(rf"\s*(?:/|\bout of\b)\s*{top}", " ", text)
    match = _NUMBER.search(text)
    if match is None or (truncated and match.end() == len(text)):
        return None
    grade = float(match[0])
    return grade if low <= grade <= high else None
