"""Critique and revision in words, over one or more rounds: what is asked, and what comes of it."""

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np

from reward.asking import writer_of
from reward.base import prompt_of
from reward.config import ReflectionConfig
from reward.feedback import Feedback
from reward.templates import fill, question_about
from reward.types import NoQuestionFitsError, Reply, RewardContext, RewardError
from rollouts.types import Prompt, Rollout, SamplingParams

DOES_NOT_FIT = Reply("", failure="the question does not fit the context of the model that is asked")
CUT_OFF = "the revision was cut off"


@dataclass(frozen=True, slots=True)
class Step:
    """One round of an attempt."""

    critique: Reply
    is_comment: bool
    """Whether the critique came from outside."""
    revision: Reply | None = None
    """None where the critique was of no use, so that nobody was asked for one."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way of improving an answer: a critique and a revision in each round."""

    original: Rollout
    number: int
    """Counted from 0 among the attempts at this original."""
    current: Rollout
    """The last readable revision, as an answer to the original's prompt; the original before there is one."""
    steps: tuple[Step, ...] = ()
    failure: str | None = None
    """Why nothing came of it."""
    finished: bool = False
    """It failed, or nobody has a comment on what it has come to."""

    @property
    def revision(self) -> Rollout | None:
        """What it came to; None where it failed, or nobody had a comment to begin with."""
        return None if self.failure is not None or self.current is self.original else self.current


class Reflector:
    """Has answers criticised and revised. The questions for all critiques of a round go out in one call, and those for
    all its revisions in another.

    An attempt ends where a reply did not come, says nothing, or was asked for by a question that does not fit the
    context, and where a revision states no answer. Counts the replies "asked" for, the "failed" ones (which did not
    come, or whose question does not fit), the "unreadable" ones, the "tokens" generated; and, where comments come from
    outside, the answers "commented" on.
    """

    def __init__(self, config: ReflectionConfig, feedback: Feedback | None, context: RewardContext) -> None:
        self._config = config
        self._feedback = feedback
        self._context = context
        self._writer = writer_of(config.by, context)
        self._seeds = np.random.default_rng([context.seed, context.iteration, zlib.crc32(b"reflection")])

    def reflect(self, originals: Sequence[Rollout]) -> dict[str, list[Attempt]]:
        """`config.critiques` attempts at each original, by its id.

        Raises:
            RewardError: not one original fits into the question, or the model that is asked is out of reach for good.
        """
        numbers = range(self._config.critiques)
        attempts = {(original.id, n): Attempt(original, n, original) for original in originals for n in numbers}
        for _ in range(self._config.rounds):
            for stage in (self._criticise, self._revise):
                moved = stage([attempt for attempt in attempts.values() if not attempt.finished])
                attempts |= {(attempt.original.id, attempt.number): attempt for attempt in moved}
        by_original: dict[str, list[Attempt]] = {original.id: [] for original in originals}
        for attempt in attempts.values():
            by_original[attempt.original.id].append(attempt)
        return by_original

    def _criticise(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """In the first round all attempts at an original share their answer, and a question with several replies; later
        on each has its own."""
        sharing = Counter(attempt.current.id for attempt in attempts)
        answers = {attempt.current.id: attempt.current for attempt in attempts}
        comments = self._comments(list(answers.values()))
        asked = [] if self._config.feedback_only else [id for id in answers if id not in comments]
        replies = self._ask(
            [critique_question(self._config, prompt_of(answers[id], self._context), answers[id]) for id in asked],
            SamplingParams(
                self._config.temperature,
                max_tokens=self._config.critique_tokens,
                n=max(sharing.values(), default=1),
            ),
            must_fit=all(attempt.current is attempt.original for attempt in attempts),
        )
        critiques: dict[str, Iterator[Reply]] = {id: repeat(Reply(comment)) for id, comment in comments.items()}
        critiques |= {id: iter(group) for id, group in zip(asked, replies, strict=True)}
        return [
            self._with_critique(attempt, next(critiques[attempt.current.id]), attempt.current.id in comments)
            if attempt.current.id in critiques
            else replace(attempt, finished=True)
            for attempt in attempts
        ]

    def _with_critique(self, attempt: Attempt, critique: Reply, is_comment: bool) -> Attempt:
        steps = (*attempt.steps, Step(critique, is_comment))
        if critique.failure is None and critique.text.strip():
            return replace(attempt, steps=steps)
        return self._ended(attempt, steps, critique, "the critique is empty")

    def _revise(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        if not attempts:
            return []
        as_answered = max((attempt.original.sampling for attempt in attempts), key=lambda sampling: sampling.max_tokens)
        sampling = SamplingParams(
            self._config.temperature,
            max_tokens=self._config.revision_tokens or as_answered.max_tokens,
            stop=as_answered.stop,
        )
        questions = [self._revision_question(attempt) for attempt in attempts]
        replies = self._ask(questions, sampling, must_fit=False)  # a critique may be as long as it likes
        return [
            self._with_revision(attempt, reply, self._as_answer(question.id, reply, attempt.original, sampling))
            for attempt, question, (reply,) in zip(attempts, questions, replies, strict=True)
        ]

    def _with_revision(self, attempt: Attempt, reply: Reply, revision: Rollout) -> Attempt:
        steps = (*attempt.steps[:-1], replace(attempt.steps[-1], revision=reply))
        if reply.failure is None and self._context.extract(revision):
            return replace(attempt, steps=steps, current=revision)
        return self._ended(attempt, steps, reply, CUT_OFF if reply.truncated else "the revision states no answer")

    def _ended(self, attempt: Attempt, steps: tuple[Step, ...], reply: Reply, unreadable: str) -> Attempt:
        if reply.failure is None:
            self._context.count("unreadable", 1)
        return replace(attempt, steps=steps, failure=reply.failure or unreadable, finished=True)

    def _comments(self, answers: Sequence[Rollout]) -> dict[str, str]:
        """What is said from outside, by the id of the answer."""
        if self._feedback is None:
            return {}
        found = {answer.id: self._feedback.on(answer, self._context) for answer in answers}
        comments = {id: comment for id, comment in found.items() if comment is not None}
        self._context.count("commented", len(comments))
        return comments

    def _revision_question(self, attempt: Attempt) -> Prompt:
        prompt = prompt_of(attempt.original, self._context)
        text = fill(
            self._config.revision_template,
            question=prompt.text,
            answer=attempt.current.text.strip(),
            critique=attempt.steps[-1].critique.text.strip(),
        )
        return question_about(prompt, f"{attempt.current.id}/revision/{attempt.number}", text, chat=self._config.chat)

    def _as_answer(self, id: str, reply: Reply, original: Rollout, sampling: SamplingParams) -> Rollout:
        """A revision, as an answer to the original's prompt. Its log-probabilities are those of writing it with the
        critique in sight. What a model with a vocabulary of its own wrote has no tokens."""
        own = reply.rollout if self._config.by.kind in ("policy", "frozen") else None
        tokens = own.completion_ids if own is not None else ()
        content = hashlib.blake2b(repr((tokens, reply.text)).encode(), digest_size=6).hexdigest()
        return replace(
            original,
            id=f"{id}/{content}",
            completion_ids=tokens,
            text=reply.text,
            logprobs=own.logprobs if own is not None else (),
            finish_reason="length" if reply.truncated else "stop",
            policy_version=own.policy_version if own is not None else original.policy_version,
            sampling=sampling,
        )

    def _ask(self, questions: Sequence[Prompt], sampling: SamplingParams, *, must_fit: bool) -> list[list[Reply]]:
        """`sampling.n` replies to each question; `must_fit` as in `reward.asking.ask`."""
        if not questions:
            return []
        seed = int(self._seeds.integers(2**31))
        try:
            groups = self._writer.ask(questions, sampling, seed=seed, json_schema=None)
        except NoQuestionFitsError as error:
            if must_fit:
                self._context.none_fits(error)
            groups = [None] * len(questions)
        replies = [[DOES_NOT_FIT] * sampling.n if group is None else list(group) for group in groups]
        if [len(group) for group in replies] != [sampling.n] * len(questions):
            raise RewardError(
                f"reflection: the model gave {list(map(len, replies))} replies to {len(questions)} questions; expected "
                f"{sampling.n} to each"
            )
        came = [reply for group in replies for reply in group]
        self._context.count("asked", len(came))
        self._context.count("failed", sum(reply.failure is not None for reply in came))
        self._context.count("tokens", sum(reply.tokens for reply in came))
        return replies


def critique_question(config: ReflectionConfig, prompt: Prompt, answer: Rollout) -> Prompt:
    """What is asked for critiques of an answer."""
    text = fill(config.critique_template, question=prompt.text, answer=answer.text.strip())
    return question_about(prompt, f"{answer.id}/critique", text, chat=config.chat)
