"""Comments from outside: which answers they are about, and what is wrong with a file of them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from reward.config import AnswerConfig
from reward.feedback import read_feedback
from reward.types import RewardError
from rlsf.config import check_config
from rlsf.config.schema import RunConfig
from rollouts.types import Message, Prompt, Rollout
from tests.reward_fakes import context, prompt, rollout


def said(
    folder: Path,
    rows: Sequence[object],
    text: str = "12",
    *,
    cut: bool = False,
    asked: Prompt | None = None,
    answer: AnswerConfig | None = None,
    clusters: dict[str, int] | None = None,
) -> str | None:
    """What a file of `rows` says about an answer to "What is 7 + 5?", prompt "p"."""
    path = folder / "comments.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    known = context(
        asked or prompt(),
        answer=answer or AnswerConfig(),
        equivalent=None if clusters is None else lambda answers: [clusters[answer] for answer in answers],
    )
    return read_feedback(str(path)).on(rollout(text, cut=cut), known)


BY_ID = {"prompt_id": "p", "feedback": "by id"}
BY_WORDS = {"prompt": "What is  7 + 5?\n", "feedback": " by its words "}


def test_a_question_is_found_by_its_id_and_by_its_words(tmp_path: Path) -> None:
    assert said(tmp_path, [BY_ID]) == "by id"
    assert said(tmp_path, [BY_WORDS]) == "by its words"
    chat = Prompt("p", "t", (Message(role="system", content="S"), Message(role="user", content="What is 7 + 5?")))
    assert said(tmp_path, [BY_WORDS], asked=chat) == "by its words"
    assert said(tmp_path, [{**BY_ID, "prompt_id": "q"}, {**BY_WORDS, "prompt": "What is 7 - 5?"}]) is None


def test_all_that_is_said_about_an_answer_is_passed_on(tmp_path: Path) -> None:
    rows = [BY_WORDS, BY_ID, {**BY_ID, "feedback": "again"}, {**BY_ID, "answer": "12", "feedback": "on this one"}]
    assert said(tmp_path, rows) == "by id\nagain\non this one\nby its words"
    assert said(tmp_path, rows, "13") == "by id\nagain\nby its words"


@pytest.mark.parametrize("written", ["12", 12, 12.0, "12.0", "The answer is 12.", "7 + 5 = 12"])
def test_a_comment_on_an_answer_is_found_however_that_is_written(tmp_path: Path, written: object) -> None:
    rows = [{**BY_ID, "answer": written}]
    assert said(tmp_path, rows, "It is 12") == "by id"
    assert said(tmp_path, rows, "13") is None
    assert said(tmp_path, rows, "no idea") is None


def test_a_comment_on_what_has_no_answer_is_found_by_its_words(tmp_path: Path) -> None:
    rows = [{**BY_ID, "answer": "well,  let me see"}]
    assert said(tmp_path, rows, "well, let me see") == "by id"
    assert said(tmp_path, rows, "well, let me see", cut=True) == "by id"
    assert said(tmp_path, [{**BY_ID, "answer": "12"}], "12 is", cut=True) is None


def test_a_bare_answer_is_found_where_the_task_wants_it_in_a_box(tmp_path: Path) -> None:
    boxed = AnswerConfig(kind="boxed")
    assert said(tmp_path, [{**BY_ID, "answer": "1/2"}], r"so \boxed{1/2}", answer=boxed) == "by id"
    assert said(tmp_path, [{**BY_ID, "answer": r"\boxed{1/2}"}], r"so \boxed{1/2}", answer=boxed) == "by id"
    assert said(tmp_path, [{**BY_ID, "answer": "1/3"}], r"so \boxed{1/2}", answer=boxed) is None


def test_answers_that_mean_the_same_share_their_comments(tmp_path: Path) -> None:
    rows = [{**BY_ID, "answer": "a half"}]
    text = AnswerConfig(kind="text")
    assert said(tmp_path, rows, "one half", answer=text, clusters={"a half": 0, "one half": 0}) == "by id"
    assert said(tmp_path, rows, "one third", answer=text, clusters={"a half": 0, "one third": 1}) is None


def test_the_rollout_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "comments.jsonl"
    path.write_text(json.dumps({**BY_ID, "answer": "13"}))
    answer: Rollout = rollout("12")
    before = replace(answer)
    read_feedback(str(path)).on(answer, context(prompt()))
    assert answer == before


GOOD = json.dumps(BY_ID) + "\n"
MALFORMED = {
    "broken": (GOOD + "\n{'prompt_id'", [":3: not valid JSON: Expecting property name"]),
    "deep": ("[" * 100_000, [":1: not valid JSON"]),
    "a list": (GOOD + "[1]", [":2: found a list", '{"prompt_id": ..., "feedback": ...}']),
    "a typo": ('{"promt": "x", "feedback": "y"}', [":1: unknown key 'promt'; did you mean 'prompt'?"]),
    "another column": (
        '{"prompt_id": "p", "reward": 1, "feedback": "y"}',
        [":1: unknown key 'reward'; a line may hold prompt_id, prompt, answer, feedback"],
    ),
    "about nothing": ('{"feedback": "y"}', [':1: expected either "prompt_id" or "prompt"']),
    "about two": ('{"prompt_id": "p", "prompt": "x", "feedback": "y"}', [':1: expected either "prompt_id" or']),
    "no comment": ('{"prompt_id": "p"}', [":1: 'feedback' is null; expected some text"]),
    "a blank comment": ('{"prompt_id": "p", "feedback": " "}', [""":1: 'feedback' is " "; expected some text"""]),
    "a number for an id": ('{"prompt_id": 3, "feedback": "y"}', [":1: 'prompt_id' is 3; expected some text"]),
    "a truth as answer": (
        '{"prompt_id": "p", "feedback": "y", "answer": true}',
        [":1: 'answer' is true; expected some text"],
    ),
    "half a character": ('{"prompt_id": "p", "feedback": "\\ud83d"}', [":1: 'feedback' holds half a character"]),
    "latin-1": (GOOD.encode() + b'{"prompt_id": "\xe4"}', [":2: not UTF-8 text"]),
    "nothing": ("\n \n", [": the file has no comments"]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_named_with_the_line(tmp_path: Path, name: str) -> None:
    content, expected = MALFORMED[name]
    path = tmp_path / "comments.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RewardError) as caught:
        read_feedback(str(path))
    assert str(caught.value).startswith(f"{path}{expected[0]}"), caught.value
    assert all(words in str(caught.value) for words in expected)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"no\.jsonl: cannot be read: No such file"):
        read_feedback(str(tmp_path / "no.jsonl"))
    with pytest.raises(RewardError, match="cannot be read: Is a directory"):
        read_feedback(str(tmp_path))
    with pytest.raises(RewardError, match="cannot be read: Could not determine home"):
        read_feedback("~nobody-of-that-name/x.jsonl")


def test_a_spreadsheets_mark_and_line_ends_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "comments.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + (GOOD.strip() + "\r\n\r\n" + GOOD.strip() + "\r\n").encode())
    assert read_feedback(str(path)).on(rollout("12"), context(prompt())) == "by id\nby id"


def test_a_config_check_looks_for_the_file_of_every_reflection(tmp_path: Path) -> None:
    (tmp_path / "comments.jsonl").write_text(GOOD)

    def found(path: Path) -> list[str]:
        part = {"reward": {"kind": "reflection", "feedback": str(path)}}
        task = {"name": "a", "source": {"kind": "reasoning_gym", "dataset": "gcd"}}
        reward = {"kind": "weighted_sum", "components": {"talk": part}}
        return check_config(RunConfig(name="x", output_dir=str(tmp_path), tasks=[task], reward=reward))

    key = "reward.components.talk.reward.feedback"
    assert found(tmp_path / "comments.jsonl") == []
    assert found(tmp_path / "coments.jsonl") == [
        f"{key}: there is no {tmp_path / 'coments.jsonl'}; did you mean {tmp_path / 'comments.jsonl'}?"
    ]
    assert found(tmp_path) == [f"{key}: {tmp_path} is a directory; name the file"]
