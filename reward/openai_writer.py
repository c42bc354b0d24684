"""Asks a model behind an endpoint that speaks OpenAI's chat completions."""

import asyncio
import os
import re
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import openai

from reward.asking import clip, valid_unicode
from reward.config import OpenAIWriterConfig
from reward.types import NoQuestionFitsError, Reply, RewardError
from rollouts.types import Prompt, SamplingParams

T = TypeVar("T")

_LONGEST_PAUSE = 120.0
"""Seconds that the client waits at most before it tries again, where a busy endpoint says how long."""
_BUSY = (408, 409, 429)
"""Besides 5xx, status codes of an endpoint that may answer later."""
_REFUSED = re.compile(
    r"(?i)content.?(?:filter|polic)|invalid_prompt|data.?inspection|moderation|flagged|safety|usage polic"
)
"""What endpoints say (OpenAI, Azure, Alibaba, gateways) where the model will not see a question."""
_TOO_LONG = re.compile(r"(?i)context.{0,20}(?:length|size|window)|max_model_len|too long|too many tokens")


@cache
def shared_writer(config: OpenAIWriterConfig) -> "OpenAIWriter":
    """The one writer for an endpoint, which remembers what it learned about it."""
    return OpenAIWriter(config)


@dataclass(frozen=True, slots=True)
class _Dialect:
    """What endpoints differ in."""

    limit: str = "max_tokens"
    """What the longest reply is called; OpenAI's newer models take `max_completion_tokens` alone."""
    schemas: bool = True
    """Whether `response_format` is understood."""


class _Silence(Reply):
    """The endpoint gave nothing: neither a reply nor a refusal."""


class OpenAIWriter:
    """Implements `Writer`.

    The `n` replies to a question are `n` requests, since not every endpoint gives several to one. The seed is not sent:
    endpoints promise nothing about it, and some fail on it.

    What is no reply (a timeout, a refusal, rubbish) becomes one with a `failure`. The run stops where asking again
    would not help (an unknown model, a wrong key), and after `max_consecutive_failures` questions in a row to which the
    endpoint gave nothing.

    Raises:
        RewardError: the environment variable that should hold the key is not set.
    """

    def __init__(self, config: OpenAIWriterConfig) -> None:
        self._config = config
        self._key = _read_key(config)
        self._dialect = _Dialect()
        self._unanswered = 0

    def ask(
        self, questions: Sequence[Prompt], sampling: SamplingParams, *, seed: int, json_schema: Mapping[str, Any] | None
    ) -> list[list[Reply] | None]:
        """See `Writer.ask`."""
        replies = _run(self._ask(questions, sampling, json_schema))
        if replies and all(group is None for group in replies):
            raise NoQuestionFitsError(
                f"no question fits the context of {self._config.model} at {self._config.base_url}; take a shorter "
                "template, or a shorter reply"
            )
        return replies

    async def _ask(
        self, questions: Sequence[Prompt], sampling: SamplingParams, schema: Mapping[str, Any] | None
    ) -> list[list[Reply] | None]:
        places = asyncio.Semaphore(self._config.concurrency)
        n = sampling.n if sampling.temperature > 0 else 1
        async with self._client() as client:

            async def ask_once(question: Prompt) -> Reply | None:
                async with places:
                    return await self._reply(client, question, sampling, schema)

            async def ask(question: Prompt) -> list[Reply] | None:
                replies = await asyncio.gather(*(ask_once(question) for _ in range(n)))
                self._note(replies)
                came = [reply for reply in replies if reply is not None]
                return came if len(came) == n else None

            tasks = [asyncio.ensure_future(ask(question)) for question in questions]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()

    def _client(self) -> openai.AsyncOpenAI:
        config = self._config
        return openai.AsyncOpenAI(
            base_url=config.base_url,
            api_key=self._key or "none",  # the client wants one; it is left out of the request
            timeout=config.timeout,
            max_retries=config.retries,
        )

    async def _reply(
        self, client: openai.AsyncOpenAI, question: Prompt, sampling: SamplingParams, schema: Mapping[str, Any] | None
    ) -> Reply | None:
        """One reply, or why there is none; None to a question that does not fit."""
        config = self._config
        patience = (config.retries + 1) * (config.timeout + _LONGEST_PAUSE)
        request = {
            "model": config.model,
            "messages": _messages(question),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.top_p < 1 else openai.omit,
            "stop": list(sampling.stop) or openai.omit,
            "extra_headers": {} if self._key else {"Authorization": openai.Omit()},
        }
        try:
            # The client's own timeout is between two bytes: without this, an endpoint that drips would hold us forever.
            async with asyncio.timeout(patience):
                return _read(await self._complete(client, request, sampling.max_tokens, schema))
        except openai.APITimeoutError:
            return _Silence("", failure=f"no reply within {config.timeout:g} s")
        except TimeoutError:
            return _Silence("", failure=f"the reply was not complete after {patience:g} s")
        except openai.APIConnectionError as error:
            return _Silence("", failure=f"no connection to {config.base_url}: {error.__cause__ or error}")
        except openai.APIStatusError as error:
            return self._refused(error)
        except (openai.APIError, ValueError, RecursionError) as error:  # the last two: what says it is JSON is none
            return _Silence("", failure=f"the endpoint's answer cannot be read: {self._words(error)}")

    async def _complete(
        self, client: openai.AsyncOpenAI, request: dict[str, Any], max_tokens: int, schema: Mapping[str, Any] | None
    ) -> Any:
        """What the endpoint answers. Where it refuses one way of asking and takes another, that is kept."""
        dialect = self._dialect
        while True:
            wording: dict[str, Any] = {dialect.limit: max_tokens}
            if schema is not None and dialect.schemas:
                wording["response_format"] = {
                    "type": "json_schema",
                    "json_schema": {"name": "reply", "schema": dict(schema), "strict": True},
                }
            try:
                completion = await client.chat.completions.create(**request, **wording)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if "max_tokens" in wording and "max_completion_tokens" in error.response.text:
                    dialect = replace(dialect, limit="max_completion_tokens")
                elif "response_format" in wording:
                    dialect = replace(dialect, schemas=False)
                else:
                    raise
            else:
                self._dialect = dialect
                return completion

    def _refused(self, error: openai.APIStatusError) -> Reply | None:
        """What an HTTP error means for the question."""
        if error.status_code in _BUSY or error.status_code >= 500:
            return _Silence("", failure=f"the endpoint is busy or broken: {self._words(error)}")
        if error.status_code in (400, 403, 422) and _REFUSED.search(error.response.text):
            return Reply("", failure=f"refused: {self._words(error)}")
        if error.status_code in (400, 413) and _TOO_LONG.search(error.response.text):
            return None
        key = self._config.api_key_env
        suspects = "base_url and model" if key is None else f"base_url, model, and the key in {key}"
        raise RewardError(
            f"{self._config.base_url} does not answer as {self._config.model!r}: {self._words(error)}; check {suspects}"
        ) from error

    def _note(self, replies: Sequence[Reply | None]) -> None:
        """Raises RewardError where the endpoint has been silent for too long."""
        if not all(isinstance(reply, _Silence) for reply in replies):
            self._unanswered = 0
            return
        self._unanswered += 1
        if self._unanswered >= self._config.max_consecutive_failures:
            last = replies[-1]
            assert last is not None
            raise RewardError(
                f"the endpoint {self._config.base_url} is down: {self._unanswered} questions in a row got no reply "
                f"({last.failure}); go on when it is up again, or raise timeout"
            )

    def _words(self, error: Exception) -> str:
        """What an error says, without the key: endpoints are known to repeat it."""
        words = str(error)
        if isinstance(error, openai.APIStatusError):  # the client shows no body but OpenAI's own
            words = f"HTTP {error.status_code}: {error.response.text}"
        return clip(words if self._key is None else words.replace(self._key, "***"))


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Runs it to the end, where the caller may be inside an event loop (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _read_key(config: OpenAIWriterConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise RewardError(
            f"the environment variable {config.api_key_env} is not set: put the key for {config.base_url} into it, "
            "name another one in api_key_env, or set that to null for an endpoint that takes no key"
        )
    return key


def _messages(question: Prompt) -> list[dict[str, Any]]:
    if isinstance(question.content, str):
        return [{"role": "user", "content": valid_unicode(question.content)}]
    return [{**message, "content": valid_unicode(message["content"])} for message in question.content]


def _read(completion: Any) -> Reply:
    """From the endpoint's answer, which the client takes as it comes."""
    try:
        choice = completion.choices[0]
        text, refusal, finish = choice.message.content or "", choice.message.refusal, choice.finish_reason
        tokens = 0 if completion.usage is None else max(0, int(completion.usage.completion_tokens or 0))
        text = valid_unicode(text)
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        return _Silence("", failure=f"the endpoint's answer is no chat completion: {clip(str(completion))}")
    if refusal or (finish == "content_filter" and not text):
        return Reply("", tokens=tokens, failure=f"refused: {refusal or 'by the content filter of the endpoint'}")
    return Reply(text, truncated=finish == "length", tokens=tokens)
