"""Putting questions to a model and reading its replies: never a crash for what a model says, never a silent zero."""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from reward.config import AskingSection, OpenAIWriterConfig, PolicyWriterConfig, WriterConfig
from reward.types import Need, NoQuestionFitsError, Reply, RewardContext, RewardError, Writer
from rollouts.types import Message, Prompt, PromptTooLongError, Rollout, SamplingParams

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked(Generic[T]):
    """What became of one question."""

    replies: tuple[Reply, ...]
    """As they came, those of retries behind."""
    readings: tuple[T | None, ...]
    """What each reply says; None where it cannot be read, or did not come."""

    @property
    def readable(self) -> list[T]:
        return [reading for reading in self.readings if reading is not None]

    @property
    def unreadable(self) -> int:
        """Replies that came and cannot be read."""
        return len(self.replies) - len(self.readable) - len(self.failures)

    @property
    def failures(self) -> list[str]:
        """Why replies did not come."""
        return [clip(reply.failure) for reply in self.replies if reply.failure is not None]


def needs_of(by: WriterConfig) -> frozenset[Need]:
    """What a reward that asks `by` must declare."""
    match by:
        case PolicyWriterConfig():
            return frozenset({"engine"})
        case OpenAIWriterConfig():
            return frozenset()
        case _:
            return frozenset({"writers"})


def writer_of(by: WriterConfig, context: RewardContext) -> Writer:
    """The model that the config names."""
    match by:
        case PolicyWriterConfig():
            assert context.engine is not None
            return EngineWriter(context.engine)
        case OpenAIWriterConfig():
            from reward.openai_writer import shared_writer

            return shared_writer(by)
        case _:
            assert context.writers is not None
            return context.writers(by)


def ask(
    name: str,
    config: AskingSection,
    questions: Sequence[Prompt],
    read: Callable[[Reply], T | None],
    context: RewardContext,
    *,
    json_schema: Mapping[str, Any] | None = None,
    must_fit: bool = True,
) -> list[Asked[T] | None]:
    """Asks each question `config.samples` times (once where the temperature is 0) and reads the replies; None for a
    question that does not fit.

    Replies that cannot be read, or did not come, are asked for again, `config.retries` times; at temperature 0 only
    those that did not come, since the others would come back as they were. What then remains unreadable is left out,
    or stops the run, as `config.unreadable` says.

    Counts questions that are "too_long", and, retries included, replies "asked" for, those "unreadable", those that
    "failed" to come, and the "tokens" generated.

    Args:
        name: of the reward, for messages and seeds.
        read: what a reply says; None where it cannot be read. Replies that did not come are not shown to it.
        json_schema: of the object that is asked for where `config.reply` is json.
        must_fit: whether `context.none_fits` is told where no question fits. Not of questions about what a model said:
            there it is what the model said that is too long.

    Raises:
        RewardError: from the writer or `context.none_fits`; or a reply cannot be read and `config.unreadable` is stop.
    """
    schema = json_schema if config.reply == "json" else None
    if schema is not None:
        questions = [_asking_for_json(question, schema) for question in questions]
    wanted = config.samples if config.temperature > 0 else 1
    writer = writer_of(config.by, context)
    cases: list[_Case[T]] = [_Case(question, wanted) for question in questions]
    for attempt in range(1 + config.retries):
        for n, due in _by_missing(cases).items():
            sampling = SamplingParams(temperature=config.temperature, max_tokens=config.max_tokens, n=n)
            seed = _seed(name, attempt, context)
            try:
                asked = writer.ask([case.question for case in due], sampling, seed=seed, json_schema=schema)
            except NoQuestionFitsError as error:
                if must_fit:
                    context.none_fits(error)
                asked = [None] * len(due)
            _check(name, asked, len(due), n)
            for case, replies in zip(due, asked, strict=True):
                case.take(replies, read, greedy=config.temperature == 0)
    for case in cases:
        _count(case, context)
    for case in cases:
        if config.unreadable == "stop" and case.fits and len(case.asked.readable) < wanted:
            raise RewardError(_complaint(name, case))
    return [case.asked if case.fits else None for case in cases]


class Generator(Protocol):
    """As much of an engine as it takes to answer questions."""

    @property
    def constrains_output(self) -> bool: ...

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams, *, seed: int) -> list[list[Rollout]]: ...


class EngineWriter:
    """An engine of ours as a `Writer`.

    Args:
        context_key: the setting that bounds question plus reply, for messages.
    """

    def __init__(self, engine: Generator, *, context_key: str = "engine.max_model_len") -> None:
        self._engine = engine
        self._context_key = context_key

    def ask(
        self, questions: Sequence[Prompt], sampling: SamplingParams, *, seed: int, json_schema: Mapping[str, Any] | None
    ) -> list[list[Reply] | None]:
        """See `Writer.ask`."""
        if sampling.temperature == 0:
            sampling = replace(sampling, n=1)
        if json_schema is not None and self._engine.constrains_output:
            sampling = replace(sampling, json_schema=json.dumps(json_schema))
        too_long: tuple[str, ...] = ()
        try:
            rollouts = self._engine.generate(questions, sampling, seed=seed)
        except PromptTooLongError as error:
            too_long = error.prompt_ids
            fitting = [question for question in questions if question.id not in too_long]
            if not fitting:
                raise NoQuestionFitsError(
                    f"no question fits; raise {self._context_key}, or start a new run with a shorter template or a "
                    f"shorter reply: {error}"
                ) from error
            rollouts = self._engine.generate(fitting, sampling, seed=seed)
        groups = iter(rollouts)
        return [None if question.id in too_long else [_reply(r) for r in next(groups, [])] for question in questions]


def clip(text: str, limit: int = 500) -> str:
    """Text fit for evidence: valid Unicode, and of a longer one the first `limit` characters and how many follow."""
    if len(text) <= limit:
        return valid_unicode(text)
    return f"{valid_unicode(text[:limit])}… ({len(text) - limit} more characters)"


def valid_unicode(text: str) -> str:
    """The text with a replacement character for each half of one (a lone surrogate), which no file could hold."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def find_json_object(text: str) -> dict[str, Any] | None:
    """The first JSON object in a text, whatever stands around it; None where there is none."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            return decoder.raw_decode(text, start)[0]
        except RecursionError:  # a thousand open brackets
            return None
        except ValueError:
            start = text.find("{", start + 1)
    return None


@dataclass
class _Case(Generic[T]):
    """A question on its way."""

    question: Prompt
    missing: int
    """Replies still to ask for."""
    fits: bool = True
    replies: list[Reply] = field(default_factory=list)
    readings: list[T | None] = field(default_factory=list)

    def take(self, replies: Sequence[Reply] | None, read: Callable[[Reply], T | None], *, greedy: bool) -> None:
        if replies is None:
            self.fits, self.missing = False, 0
            return
        readings = [read(reply) if reply.failure is None else None for reply in replies]
        self.replies += replies
        self.readings += readings
        failed = sum(reply.failure is not None for reply in replies)
        self.missing = failed if greedy else readings.count(None)

    @property
    def asked(self) -> Asked[T]:
        return Asked(tuple(self.replies), tuple(self.readings))


def _by_missing(cases: Sequence[_Case[T]]) -> dict[int, list[_Case[T]]]:
    """Those that lack replies, by how many: an engine takes one number for all of a call."""
    numbers = sorted({case.missing for case in cases if case.missing > 0})
    return {number: [case for case in cases if case.missing == number] for number in numbers}


def _asking_for_json(question: Prompt, schema: Mapping[str, Any]) -> Prompt:
    """The question with the shape of the reply at its end, written so that its echo is no JSON object."""
    shape = ", ".join(f'"{name}": {_kind(part)}' for name, part in schema["properties"].items())
    words = f"\n\nReply with a JSON object and nothing else: {{{shape}}}"
    if isinstance(question.content, str):
        return replace(question, content=question.content + words)
    *before, last = question.content
    return replace(question, content=(*before, Message(**{**last, "content": last["content"] + words})))


def _kind(part: Mapping[str, Any]) -> str:
    if "enum" in part:
        return " or ".join(json.dumps(value) for value in part["enum"])
    return f"<{part['type']}>"


def _seed(name: str, attempt: int, context: RewardContext) -> int:
    words = [context.seed, context.iteration, zlib.crc32(name.encode()), attempt]
    return int(np.random.default_rng(words).integers(2**31))


def _reply(rollout: Rollout) -> Reply:
    return Reply(rollout.text, rollout.truncated, len(rollout.completion_ids), rollout=rollout)


def _check(name: str, asked: Sequence[Sequence[Reply] | None], questions: int, n: int) -> None:
    got = [n if replies is None else len(replies) for replies in asked]
    if got != [n] * questions:
        raise RewardError(f"{name}: the model gave {got} replies to {questions} questions; expected {n} to each")


def _count(case: _Case[Any], context: RewardContext) -> None:
    asked = case.asked
    if not case.fits:
        context.count("too_long", 1)
    for name, amount in (
        ("asked", len(asked.replies)),
        ("unreadable", asked.unreadable),
        ("failed", len(asked.failures)),
        ("tokens", sum(reply.tokens for reply in asked.replies)),
    ):
        context.count(name, amount)


def _complaint(name: str, case: _Case[Any]) -> str:
    *_, reply = (reply for reply, reading in zip(case.replies, case.readings, strict=True) if reading is None)
    said = f"it did not come ({clip(reply.failure)})" if reply.failure is not None else f"it says {clip(reply.text)!r}"
    return (
        f"{name}: a reply to question {case.question.id!r} cannot be read: {said}; mend the template, raise max_tokens "
        "or retries, or leave such replies out (unreadable: leave_out)"
    )
