"""A model behind an endpoint, against a real HTTP server that misbehaves in every way that endpoints do."""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import reward.openai_writer
from reward.config import JudgeConfig, OpenAIWriterConfig
from reward.grades import grade_schema
from reward.openai_writer import OpenAIWriter, shared_writer
from reward.rewards.judge import JudgeReward
from reward.types import Reply, RewardError
from rlsf.models.lab_tasks import LAB_DIR
from rollouts.config import TransformersEngineConfig
from rollouts.transformers_engine import TransformersEngine
from rollouts.types import Message, Prompt, SamplingParams
from tests.reward_fakes import context, group, prompt

KEY = "sk-very-secret"
ONCE = SamplingParams(max_tokens=8)


@dataclass
class Answer:
    """What the server sends: JSON, or the bytes as they are."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: bool = False
    """A space every tenth of a second, and never the body."""
    hang_up: bool = False


def chat(content: Any, *, finish: str = "stop", refusal: str | None = None, tokens: Any = 3) -> Answer:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5}
    return Answer(
        {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    )


def error(status: int, message: str, *, code: str | None = None, **headers: str) -> Answer:
    return Answer({"error": {"message": message, "type": "e", "param": None, "code": code}}, status, headers)


Script = Callable[[dict[str, Any], int], Answer]
"""(request, how many came before it) -> answer."""


class Endpoint:
    """An HTTP server on a free port that answers by its script and keeps what it was asked."""

    def __init__(self) -> None:
        self.script: Script = lambda request, index: chat("4")
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.busy = self.busiest = 0
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                endpoint._answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            index = len(self.requests)
            self.requests.append(request)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        try:
            answer = self.script(request, index)
            time.sleep(answer.delay)
        finally:
            with self._lock:
                self.busy -= 1  # before the reply leaves: whoever has it may ask again before this thread goes on
        with suppress(OSError):  # the client has given up
            self._send(handler, answer)

    def _send(self, handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        if answer.hang_up:
            handler.close_connection = True
            return
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        handler.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(1000 if answer.drip else len(body)))
        handler.end_headers()
        for _ in range(600 if answer.drip else 0):
            handler.wfile.write(b" ")
            time.sleep(0.1)
        handler.wfile.write(body)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    server = Endpoint()
    yield server
    server.close()


def config_of(endpoint: Endpoint, **settings: Any) -> OpenAIWriterConfig:
    return OpenAIWriterConfig(
        base_url=endpoint.url, model="m", **{"api_key_env": "TEST_KEY", "timeout": 10, "retries": 0, **settings}
    )


def ask(writer: OpenAIWriter, *texts: str, sampling: SamplingParams = ONCE, schema: Any = None) -> list[Any]:
    questions = [Prompt(f"q{index}", "t", text) for index, text in enumerate(texts)]
    return writer.ask(questions, sampling, seed=1, json_schema=schema)


def ask_one(endpoint: Endpoint, **settings: Any) -> Reply:
    [[reply]] = ask(OpenAIWriter(config_of(endpoint, **settings)), "2 + 2?")
    return reply


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_a_plain_prompt_is_one_user_message_and_a_chat_is_itself(endpoint: Endpoint) -> None:
    chatting = (Message(role="system", content="Be brief."), Message(role="user", content="2 + 2?"))
    questions = [Prompt("a", "t", "plain \ud800"), Prompt("b", "t", chatting)]
    config = config_of(endpoint, concurrency=1)
    OpenAIWriter(config).ask(questions, SamplingParams(temperature=0.5, max_tokens=7), seed=1, json_schema=None)
    plain, conversation = endpoint.requests
    assert plain == {
        "model": "m",
        "messages": [{"role": "user", "content": "plain \ufffd"}],
        "temperature": 0.5,
        "max_tokens": 7,
    }
    assert conversation["messages"] == list(chatting)
    assert endpoint.headers[0]["authorization"] == f"Bearer {KEY}"


def test_an_endpoint_without_a_key_gets_none_even_if_there_is_one(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert ask_one(endpoint, api_key_env=None).text == "4"
    assert "authorization" not in endpoint.headers[0]


def test_a_missing_key_is_named_before_anything_is_sent(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(RewardError, match="environment variable TEST_KEY is not set"):
        shared_writer(config_of(endpoint))
    assert endpoint.requests == []


def test_the_key_is_never_repeated(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    endpoint.script = lambda request, index: error(401, f"Incorrect API key provided: {KEY}")
    with pytest.raises(
        RewardError, match=r"Incorrect API key provided: \*\*\*.*check base_url, model, and the key"
    ) as it:
        ask_one(endpoint)
    assert KEY not in str(it.value) and KEY not in caplog.text


def test_replies_come_in_order_and_no_more_requests_run_at_once_than_allowed(endpoint: Endpoint) -> None:
    def echo(request: dict[str, Any], index: int) -> Answer:
        time.sleep(0.02 * (index % 3))
        return chat(request["messages"][0]["content"])

    endpoint.script = echo
    texts = [f"question {index}" for index in range(8)]
    writer = OpenAIWriter(config_of(endpoint, concurrency=3))
    replies = ask(writer, *texts, sampling=SamplingParams(n=3))
    assert [[reply.text for reply in group] for group in replies] == [[text] * 3 for text in texts]
    assert endpoint.busiest == 3
    assert [len(group) for group in ask(writer, "a", sampling=SamplingParams(n=3, temperature=0))] == [1]


def test_it_works_inside_an_event_loop(endpoint: Endpoint) -> None:
    async def notebook() -> str:
        return ask_one(endpoint).text

    assert asyncio.run(notebook()) == "4"


# -- what comes back ---------------------------------------------------------------------------------------------------


def test_a_reply_carries_its_text_its_tokens_and_whether_it_was_cut_off(endpoint: Endpoint) -> None:
    assert ask_one(endpoint) == Reply("4", tokens=3)
    endpoint.script = lambda request, index: chat("x" * 40_000, finish="length", tokens=10_000)
    assert ask_one(endpoint) == Reply("x" * 40_000, truncated=True, tokens=10_000)


@pytest.mark.parametrize("content", ["", None])
def test_nothing_said_is_an_empty_reply(endpoint: Endpoint, content: str | None) -> None:
    endpoint.script = lambda request, index: chat(content)
    assert ask_one(endpoint) == Reply("", tokens=3)


def test_half_a_character_in_a_reply_is_replaced(endpoint: Endpoint) -> None:
    endpoint.script = lambda request, index: Answer(json.dumps(chat("4 \ud83d!").body).encode())
    assert ask_one(endpoint).text == "4 \ufffd!"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (chat(None, refusal="I cannot grade 5 of that."), "refused: I cannot grade 5 of that."),
        (chat(None, finish="content_filter"), "refused: by the content filter"),
        (error(400, "flagged", code="content_filter"), "refused: .*flagged"),
        (error(400, "no", code="content_policy_violation"), "refused: .*content_policy_violation"),
        (error(400, "no", code="data_inspection_failed"), "refused: .*data_inspection_failed"),
        (error(403, "your input was flagged"), "refused: .*flagged"),
        (Answer(b"{garbage"), "cannot be read"),
        (Answer(b"[" * 200_000), "cannot be read"),
        (Answer(b'{"choices": {"0": 1}}'), "no chat completion"),
        (
            Answer(b'{"choices": [{"message": {"content": "4"}}], "usage": {"completion_tokens": 1e400}}'),
            "no chat comp",
        ),
        (Answer(b"\xff\xfe"), "cannot be read"),
        (Answer(b"<html>proxy</html>", headers={"Content-Type": "text/html"}), "no chat completion: <html>proxy"),
        (Answer({"error": {"message": "overloaded"}}), "no chat completion: .*overloaded"),
        (Answer({"choices": []}), "no chat completion"),
        (Answer({"choices": [{"message": None}]}), "no chat completion"),
        (chat(["4"]), "no chat completion"),
        (Answer([]), "no chat completion"),
        (Answer(None), "no chat completion"),
        (chat("4", tokens="many"), "no chat completion"),
        (Answer(b"", delay=2), "no reply within 0.5 s"),
        (Answer(b"", hang_up=True), "no connection to http.*disconnected"),
        (error(500, "oops"), "busy or broken: .*oops"),
        (error(429, "slow down"), "busy or broken: .*slow down"),
    ],
)
def test_what_is_no_reply_says_why(endpoint: Endpoint, answer: Answer, why: str) -> None:
    endpoint.script = lambda request, index: answer
    reply = ask_one(endpoint, timeout=0.5 if answer.delay else 10)
    assert reply.failure is not None and reply.text == ""
    assert re.search(why, reply.failure), reply.failure


def test_an_endpoint_that_drips_is_not_waited_for(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward.openai_writer, "_LONGEST_PAUSE", 0.1)
    endpoint.script = lambda request, index: Answer(b"", drip=True)
    started = time.monotonic()
    assert ask_one(endpoint, timeout=0.5).failure == "the reply was not complete after 0.6 s"
    assert time.monotonic() - started < 5


def test_an_endpoint_out_of_reach_says_so(endpoint: Endpoint) -> None:
    config = config_of(endpoint)
    endpoint.close()
    [[reply]] = ask(OpenAIWriter(config), "2 + 2?")
    assert reply.failure.startswith(f"no connection to {config.base_url}: ")


def test_busy_endpoints_are_asked_again(endpoint: Endpoint) -> None:
    troubles = [error(500, "oops"), error(429, "slow down", **{"Retry-After": "0.01"}), Answer(b"", hang_up=True)]
    endpoint.script = lambda request, index: troubles[index] if index < 3 else chat("4")
    assert ask_one(endpoint, retries=3) == Reply("4", tokens=3)
    assert len(endpoint.requests) == 4


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (error(401, "bad key"), "HTTP 401: .*bad key"),
        (error(403, "not yours"), "HTTP 403: .*not yours"),
        (error(404, "The model `m` does not exist"), "HTTP 404: .*The model `m` does not exist"),
        (Answer({"detail": "Not Found"}, 404), "HTTP 404: .*Not Found"),
        (Answer(b"<html>no such page", 404), "HTTP 404: <html>no such page"),
        (error(400, "temperature must be 1"), "HTTP 400: .*temperature must be 1"),
    ],
)
def test_what_asking_again_cannot_mend_stops_at_once(endpoint: Endpoint, answer: Answer, words: str) -> None:
    endpoint.script = lambda request, index: answer
    with pytest.raises(RewardError, match=f"does not answer as 'm': {words}"):
        ask(OpenAIWriter(config_of(endpoint, retries=5, concurrency=2)), *["a"] * 20)
    assert len(endpoint.requests) <= 4


def test_a_silent_endpoint_stops_the_run_after_so_many_questions(endpoint: Endpoint) -> None:
    answering = (4, 6)  # half a reply to the third question, and one to the fourth
    endpoint.script = lambda request, index: chat("4") if index in answering else error(503, "gone fishing")
    writer = OpenAIWriter(config_of(endpoint, concurrency=1, max_consecutive_failures=3))
    twice = SamplingParams(n=2)
    assert ask(writer, "a", "b", "c", "d", sampling=twice)[2][0] == Reply("4", tokens=3)
    ask(writer, "e", "f", sampling=twice)
    with pytest.raises(RewardError, match=r"is down: 3 questions in a row got no reply \(.*gone fishing"):
        ask(writer, *"ghijklm", sampling=twice)
    assert len(endpoint.requests) < 18  # of 26


def test_refusals_do_not_make_an_endpoint_down(endpoint: Endpoint) -> None:
    endpoint.script = lambda request, index: chat(None, refusal="no")
    replies = ask(OpenAIWriter(config_of(endpoint, max_consecutive_failures=1)), *["a"] * 5)
    assert [reply.failure for [reply] in replies] == ["refused: no"] * 5


def test_questions_that_do_not_fit_are_none(endpoint: Endpoint) -> None:
    def small(request: dict[str, Any], index: int) -> Answer:
        if len(request["messages"][0]["content"]) > 10:
            return error(400, "This model's maximum context length is 10 tokens.")
        return chat("4")

    endpoint.script = small
    writer = OpenAIWriter(config_of(endpoint))
    assert ask(writer, "long " * 9, "short") == [None, [Reply("4", tokens=3)]]
    with pytest.raises(RewardError, match="no question fits the context of m at"):
        ask(writer, "long " * 9)


# -- what endpoints differ in ------------------------------------------------------------------------------------------


def test_a_schema_goes_along_and_an_endpoint_that_refuses_it_is_asked_without_from_then_on(endpoint: Endpoint) -> None:
    schema = grade_schema(1, 5)
    writer = OpenAIWriter(config_of(endpoint, concurrency=1))
    assert ask(writer, "a", schema=schema) == [[Reply("4", tokens=3)]]
    given = endpoint.requests[0]["response_format"]
    assert given == {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, "strict": True}}

    def old(request: dict[str, Any], index: int) -> Answer:
        return error(400, "unknown field response_format") if "response_format" in request else chat("4")

    endpoint.script, endpoint.requests = old, []
    assert ask(writer, "a", "b", "c", schema=schema) == [[Reply("4", tokens=3)]] * 3
    assert ["response_format" in request for request in endpoint.requests] == [True, False, False, False]


def test_a_question_that_does_not_fit_costs_no_schema(endpoint: Endpoint) -> None:
    endpoint.script = lambda request, index: error(400, "prompt is too long") if index < 2 else chat("4")
    writer = OpenAIWriter(config_of(endpoint, concurrency=1))
    assert ask(writer, "a", "b", schema=grade_schema(1, 5)) == [None, [Reply("4", tokens=3)]]
    assert "response_format" in endpoint.requests[2]


def test_the_other_name_of_the_longest_reply_is_learned(endpoint: Endpoint) -> None:
    def new(request: dict[str, Any], index: int) -> Answer:
        if "max_tokens" in request:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return chat("4")

    endpoint.script = new
    writer = OpenAIWriter(config_of(endpoint, concurrency=1))
    assert ask(writer, "a", "b") == [[Reply("4", tokens=3)]] * 2
    assert [request.get("max_completion_tokens") for request in endpoint.requests] == [None, 8, 8]


# -- the judge on it ---------------------------------------------------------------------------------------------------


def test_a_judge_behind_a_hostile_endpoint_grades_by_what_it_could_read(endpoint: Endpoint) -> None:
    hostile = [
        chat('{"grade": 4}'),
        chat("garbage \x00 \ud800"),
        chat(""),
        chat(None, refusal="I will not say 5."),
        chat('{"grade": 5' + " " * 40_000, finish="length", tokens=10_000),
        Answer(b"", delay=4),
        error(503, "busy"),
        chat('```json\n{"grade": 2}\n```'),
    ]
    endpoint.script = lambda request, index: hostile[index]
    counts: dict[str, float] = {}
    by = config_of(endpoint, concurrency=1, timeout=2)
    judge = JudgeReward(JudgeConfig(by=by, samples=8, retries=0, reply="json"))
    assert judge.needs == frozenset()
    [[score]] = judge.score([group("12")], context(prompt(), count=lambda name, amount: counts.update({name: amount})))
    assert score.value == pytest.approx((3 - 1) / 4)  # mean of 4 and 2
    assert score.evidence["grades"] == [4, None, None, None, None, None, None, 2]
    assert score.evidence["unreadable"] == 3 and len(score.evidence["failures"]) == 3
    assert counts == {"asked": 8, "unreadable": 3, "failed": 3, "tokens": 3 * 4 + 10_000 + 3}
    assert len(json.dumps(score.evidence)) < 2000


# -- a real server -----------------------------------------------------------------------------------------------------


@pytest.fixture
def vllm_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a `vllm serve` of the lab model, for which a chat is its last message."""
    pytest.importorskip("vllm")
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "chat.jinja").write_text("{{ messages[-1]['content'] }}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "model": LAB_DIR,
        "served-model-name": "lab",
        "chat-template": tmp_path / "chat.jinja",
        "host": "127.0.0.1",
        "port": port,
        "api-key": KEY,
        "dtype": "float32",
        "max-model-len": 128,
        "max-num-seqs": 8,
        "structured-outputs-config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager", *arguments]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    log = tmp_path / "log"
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        until = time.monotonic() + 400
        while not _is_healthy(port):
            assert server.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with suppress(ProcessLookupError):  # the engine's processes are of the same group
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _is_healthy(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.mark.vllm
@pytest.mark.slow
def test_a_real_model_behind_a_real_server_judges(vllm_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by = OpenAIWriterConfig(base_url=vllm_server, model="lab", api_key_env="TEST_KEY")
    judge = JudgeReward(JudgeConfig(by=by, reply="json", template="{question}{answer}", max_tokens=40))
    [scores] = judge.score([group("12", "12", "13")], context(prompt()))
    assert scores[0] == scores[1]
    assert all(list(json.loads(said)) == ["grade"] for score in scores for said in score.evidence["judgements"])
    assert all(score.value is not None and 0 <= score.value <= 1 for score in scores)

    writer = OpenAIWriter(by)
    question, long = Prompt("q", "t", "12+7="), Prompt("l", "t", "12+7=" * 40)
    greedy = SamplingParams(temperature=0, max_tokens=8)
    none, [reply] = writer.ask([long, question], greedy, seed=1, json_schema=None)
    assert none is None
    assert reply.tokens > 0 and reply.failure is None and not reply.truncated

    engine = TransformersEngine(LAB_DIR, TransformersEngineConfig())
    [[expected]] = engine.generate([question], greedy, seed=1)
    assert reply.text == expected.text

    with pytest.raises(RewardError, match=r"does not answer as 'nobody': .*does not exist"):
        OpenAIWriter(by.model_copy(update={"model": "nobody"})).ask([question], greedy, seed=1, json_schema=None)
    monkeypatch.setenv("TEST_KEY", "wrong")
    with pytest.raises(RewardError, match=r"does not answer as 'lab': .*[Uu]nauthorized"):
        OpenAIWriter(by).ask([question], greedy, seed=1, json_schema=None)
