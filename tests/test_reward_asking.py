"""Putting questions to a model and reading what comes back."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.asking import Asked, EngineWriter, ask, clip, find_json_object, needs_of, valid_unicode
from reward.config import (
    FrozenWriterConfig,
    JudgeConfig,
    LocalWriterConfig,
    OpenAIWriterConfig,
    PolicyWriterConfig,
)
from reward.types import Reply, RewardError
from rollouts.types import Message, Prompt, PromptTooLongError, Rollout, SamplingParams
from tests.reward_fakes import ScriptedEngine, ScriptedWriter, context

ANY_TEXT = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Z", "C"]))  # C: controls, NUL, lone surrogates
SCHEMA = {"type": "object", "properties": {"grade": {"type": "number"}, "better": {"enum": ["A", "B"]}}}


def number(reply: Reply) -> int | None:
    return int(reply.text) if reply.text.isdigit() else None


def put(
    writer: ScriptedWriter, *ids: str, more: Mapping[str, Any] | None = None, **settings: Any
) -> tuple[list[Asked[int] | None], dict[str, float]]:
    """The outcome of asking about each id, and what was counted."""
    counts: dict[str, float] = {}

    def count(name: str, amount: float) -> None:
        counts[name] = counts.get(name, 0) + amount

    services: dict[str, Any] = {"writers": lambda _: writer, "count": count, **(more or {})}
    config = JudgeConfig(by=FrozenWriterConfig(), **settings)
    questions = [Prompt(id, "t", f"About {id}:") for id in ids]
    return ask("judge", config, questions, number, context(**services), json_schema=SCHEMA), counts


def test_every_question_gets_its_replies_and_what_they_say() -> None:
    writer = ScriptedWriter(lambda id, index: f"{id}{index}")
    asked, counts = put(writer, "1", "2", samples=3)
    assert [case and case.readings for case in asked] == [(10, 11, 12), (20, 21, 22)]
    assert [reply.text for reply in asked[1].replies] == ["20", "21", "22"]  # type: ignore[union-attr]
    assert [(call.ids, call.n, call.schema) for call in writer.calls] == [(("1", "2"), 3, None)]
    assert counts == {"asked": 6, "unreadable": 0, "failed": 0, "tokens": 12}
    assert put(writer)[0] == []


def test_only_what_is_missing_is_asked_for_again_with_fresh_samples() -> None:
    replies = {"a": ["1", "x", "y", "2", "z", "4"], "b": ["5", "6", "7"], "c": ["x", "8", "9", "y", "0"]}
    writer = ScriptedWriter(lambda id, index: replies[id][index])
    asked, counts = put(writer, "a", "b", "c", samples=3, retries=3)
    assert [case.readings for case in asked if case] == [
        (1, None, None, 2, None, 4),
        (5, 6, 7),
        (None, 8, 9, None, 0),
    ]
    assert asked[0] is not None and asked[0].readable == [1, 2, 4] and asked[0].unreadable == 3
    calls = [(call.ids, call.n) for call in writer.calls]
    assert calls == [(("a", "b", "c"), 3), (("c",), 1), (("a",), 2), (("a", "c"), 1)]
    assert len({call.seed for call in writer.calls}) == 3  # one per attempt
    assert counts == {"asked": 14, "unreadable": 5, "failed": 0, "tokens": 14}


def test_replies_that_did_not_come_are_asked_for_again_and_are_not_unreadable() -> None:
    failing = Reply("", failure="timeout")
    writer = ScriptedWriter(lambda id, index: failing if index < 2 else "4")
    [asked], counts = put(writer, "a", samples=2, retries=1)
    assert asked is not None
    assert asked.readings == (None, None, 4, 4)
    assert asked.failures == ["timeout", "timeout"] and asked.unreadable == 0
    assert counts == {"asked": 4, "unreadable": 0, "failed": 2, "tokens": 2}


def test_greedy_asks_once_and_again_only_for_what_did_not_come() -> None:
    writer = ScriptedWriter(lambda id, index: "x" if id == "a" else Reply("", failure="down"))
    asked, _ = put(writer, "a", "b", samples=4, temperature=0, retries=2)
    assert [(call.ids, call.n) for call in writer.calls] == [(("a", "b"), 1), (("b",), 1), (("b",), 1)]
    assert [case.readable for case in asked if case] == [[], []]


def test_a_reply_that_stays_unreadable_stops_the_run_where_it_should() -> None:
    writer = ScriptedWriter(lambda id, index: "4" if id == "a" else "well, " * 2000)
    with pytest.raises(RewardError, match=r"judge: .* question 'b' cannot be read: it says 'well, well, .*…") as it:
        put(writer, "a", "b", unreadable="stop", retries=1)
    assert len(str(it.value)) < 900
    assert [(call.ids, call.n) for call in writer.calls] == [(("a", "b"), 4), (("b",), 4)]
    writer = ScriptedWriter(lambda id, index: Reply("", failure="connection refused"))
    with pytest.raises(RewardError, match=r"'a' cannot be read: it did not come \(connection refused\)"):
        put(writer, "a", unreadable="stop")
    writer = ScriptedWriter(lambda id, index: "x" if index == 1 else "4")
    with pytest.raises(RewardError, match="it says 'x'"):  # one of many is enough
        put(writer, "a", unreadable="stop", retries=0)
    writer = ScriptedWriter(lambda id, index: "x" if index < 4 else "4")
    assert put(writer, "a", unreadable="stop", retries=1)[0][0] is not None  # mended in time


def test_a_question_that_does_not_fit_is_none_and_counts_nothing() -> None:
    writer = ScriptedWriter(lambda id, index: None if id == "long" else "4")
    asked, counts = put(writer, "long", "a", samples=2, unreadable="stop")
    assert asked[0] is None and asked[1] is not None
    assert counts["asked"] == 2 and len(writer.calls) == 1


def test_seeds_depend_on_run_iteration_and_attempt_alone() -> None:
    def seeds(**more: Any) -> list[int]:
        writer = ScriptedWriter(lambda id, index: "x")
        put(writer, "a", more=more, retries=1)
        return [call.seed for call in writer.calls]

    assert seeds(seed=1, iteration=1) == seeds(seed=1, iteration=1)
    assert len({*seeds(seed=1, iteration=1), *seeds(seed=1, iteration=2), *seeds(seed=2, iteration=1)}) == 6


@pytest.mark.parametrize("given", [(), ("4",), ("4", "4", "4")])
def test_a_writer_that_gives_another_number_of_replies_is_found_out(given: tuple[str, ...]) -> None:
    class Miscounting(ScriptedWriter):
        def _answer(self, id: str, n: int) -> list[Reply] | None:
            return [Reply(text) for text in given]

    with pytest.raises(RewardError, match="expected 2 to each"):
        put(Miscounting(lambda *_: "4"), "a", samples=2)


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_json_is_asked_for_in_words_whose_echo_is_no_reply() -> None:
    writer = ScriptedWriter(lambda id, index: "4")
    put(writer, "a", reply="json")
    [question] = writer.questions
    assert question.content == (
        'About a:\n\nReply with a JSON object and nothing else: {"grade": <number>, "better": "A" or "B"}'
    )
    assert writer.calls[0].schema == SCHEMA
    assert isinstance(question.content, str) and find_json_object(question.content) is None


def test_json_is_asked_for_at_the_end_of_a_chat() -> None:
    engine = ScriptedEngine(lambda *_: "4")
    chat = (Message(role="system", content="Be brief."), Message(role="user", content="Well?"))
    ask(
        "judge", JudgeConfig(reply="json"), [Prompt("a", "t", chat)], number, context(engine=engine), json_schema=SCHEMA
    )
    system, user = engine.asked[0].content
    assert system == chat[0]
    assert user["role"] == "user" and user["content"].startswith("Well?\n\nReply with a JSON object")  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"grade": 4}', {"grade": 4}),
        ('```json\n{"grade": 4}\n```', {"grade": 4}),
        ('I say {so}: {"grade": {"a": [1]}} {"grade": 5}', {"grade": {"a": [1]}}),
        ('{"grade": 4', None),
        ("[4]", None),
        ("", None),
        ('{"a":' * 8000, None),
        ("{" * 20_000, None),
        ('{"a": ' + "[" * 20_000, None),
        ('{"' * 20_000, None),
        ('{"a": ' + "9" * 20_000 + "}", None),  # more digits than Python reads
    ],
)
def test_the_first_object_is_found_in_no_time(text: str, found: Any) -> None:
    started = time.monotonic()
    assert find_json_object(text) == found
    assert time.monotonic() - started < 2


@given(ANY_TEXT)
def test_whatever_is_said_is_an_object_or_none(text: str) -> None:
    assert find_json_object(text) is None or "{" in text


# -- engines -----------------------------------------------------------------------------------------------------------


def test_an_engine_is_held_to_a_schema_where_it_can_be() -> None:
    for able in (True, False):
        engine = ScriptedEngine(lambda *_: "4", cut=True, constrains_output=able)
        [[reply]] = EngineWriter(engine).ask([Prompt("a", "t", "?")], SamplingParams(), seed=5, json_schema=SCHEMA)  # type: ignore[misc]
        assert engine.sampling == SamplingParams(json_schema=json.dumps(SCHEMA) if able else None)
        assert engine.seeds == [5]
        assert reply == Reply("4", truncated=True, tokens=1, rollout=reply.rollout)
        assert isinstance(reply.rollout, Rollout) and reply.rollout.text == "4"


def test_an_engine_answers_greedily_once() -> None:
    engine = ScriptedEngine(lambda *_: "4")
    sampling = SamplingParams(temperature=0, n=3)
    [replies] = EngineWriter(engine).ask([Prompt("a", "t", "?")], sampling, seed=5, json_schema=None)
    assert replies is not None and len(replies) == 1


class SmallEngine(ScriptedEngine):
    """Takes no prompt of more than ten characters."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams, *, seed: int) -> list[list[Rollout]]:
        long = [prompt.id for prompt in prompts if len(prompt.content) > 10]
        if long:
            raise PromptTooLongError("too long", long)
        return super().generate(prompts, sampling, seed=seed)


def test_questions_that_do_not_fit_are_none_and_the_others_are_answered() -> None:
    writer = EngineWriter(SmallEngine(lambda question, _: question.content), context_key="by.max_model_len")  # type: ignore
    questions = [Prompt(id, "t", text) for id, text in [("a", "one"), ("b", "much too long"), ("c", "two")]]
    first, second, third = writer.ask(questions, SamplingParams(), seed=1, json_schema=None)
    assert second is None
    assert [reply.text for reply in [*(first or []), *(third or [])]] == ["one", "two"]
    with pytest.raises(RewardError, match=r"no question fits; raise by\.max_model_len"):
        writer.ask(questions[1:2], SamplingParams(), seed=1, json_schema=None)


def test_who_is_asked_says_what_is_needed() -> None:
    assert needs_of(PolicyWriterConfig()) == {"engine"}
    assert needs_of(FrozenWriterConfig()) == needs_of(LocalWriterConfig(source="lab")) == {"writers"}
    assert needs_of(OpenAIWriterConfig(model="m")) == frozenset()


# -- evidence ----------------------------------------------------------------------------------------------------------


def test_long_texts_are_cut_and_say_by_how_much() -> None:
    assert clip("short") == "short"
    assert clip("x" * 500) == "x" * 500
    assert clip("x" * 40_000) == "x" * 500 + "… (39500 more characters)"


@given(ANY_TEXT)
def test_whatever_is_clipped_can_be_written(text: str) -> None:
    clip(text, limit=5).encode()
    assert len(valid_unicode(text)) <= len(text)


def test_only_what_is_no_character_is_replaced() -> None:
    assert valid_unicode("é\ud800x\U0001f600\udc00") == "é\ufffdx\U0001f600\ufffd"
    assert valid_unicode("\ud800") == "\ufffd"
    assert valid_unicode("\x00\x1b") == "\x00\x1b"
