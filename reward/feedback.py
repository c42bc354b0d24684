"""Comments from outside on questions and answers: a person's, a better model's, a tool's."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reward.answers import fold
from reward.base import prompt_of
from reward.types import RewardContext, RewardError
from rollouts.types import Rollout

KEYS = ("prompt_id", "prompt", "answer", "feedback")
"""What a line may hold."""


@dataclass(frozen=True, slots=True)
class Comment:
    """One line of the file."""

    text: str
    answer: str | None
    """The answer that it is about, as its author wrote it; None is about every answer to the question."""


class Feedback:
    """The comments of a file, by the question that they are about."""

    def __init__(self, by_id: Mapping[str, Sequence[Comment]], by_question: Mapping[str, Sequence[Comment]]) -> None:
        """`by_question` has the words of the questions as keys, runs of white space folded to one space."""
        self._by_id = by_id
        self._by_question = by_question

    def on(self, rollout: Rollout, context: RewardContext) -> str | None:
        """All that is said about the rollout, one comment a line in the order of the file, those found by the id of its
        prompt first; None where nothing is."""
        prompt = prompt_of(rollout, context)
        comments = [*self._by_id.get(prompt.id, ()), *self._by_question.get(_spaced(prompt.text), ())]
        said = [c.text for c in comments if c.answer is None or _gives(rollout, c.answer, context)]
        return "\n".join(said) or None


def read_feedback(path: str) -> Feedback:
    """The comments of a JSONL file, one {"prompt_id" or "prompt", "feedback"} per line, with "answer" where it is about
    one answer alone. "prompt" is the question as the model is asked it (`Prompt.text`).

    Raises:
        RewardError: the file cannot be read, is empty, or has a line that is no such object; with file and line.
    """
    by_id: dict[str, list[Comment]] = {}
    by_question: dict[str, list[Comment]] = {}
    for where, row in _rows(path):
        comment = Comment(_text(row, "feedback", where), _text(row, "answer", where) if "answer" in row else None)
        if ("prompt_id" in row) == ("prompt" in row):
            raise RewardError(f'{where}: expected either "prompt_id" or "prompt", to say what the comment is about')
        if "prompt_id" in row:
            by_id.setdefault(_text(row, "prompt_id", where), []).append(comment)
        else:
            by_question.setdefault(_spaced(_text(row, "prompt", where)), []).append(comment)
    if not by_id and not by_question:
        raise RewardError(f"{path}: the file has no comments")
    return Feedback(by_id, by_question)


def _rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_content(path).split("\n"), 1):  # splitlines() would split inside JSON strings too
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RewardError(f"{where}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise RewardError(
                f'{where}: found a {type(row).__name__}; expected {{"prompt_id": ..., "feedback": ...}} on each line'
            )
        for key in row:
            if key not in KEYS:
                near = difflib.get_close_matches(key, KEYS, 1)
                mend = f"did you mean {near[0]!r}?" if near else f"a line may hold {', '.join(KEYS)}"
                raise RewardError(f"{where}: unknown key {key!r}; {mend}")
        yield where, row


def _content(path: str) -> str:
    try:
        return Path(path).expanduser().read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RewardError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder of nobody
        raise RewardError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if key == "answer" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise RewardError(f"{where}: {key!r} is {json.dumps(value)}; expected some text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise RewardError(f"{where}: {key!r} holds half a character (a lone surrogate), which is no valid text")
    return value.strip()


def _gives(rollout: Rollout, written: str, context: RewardContext) -> bool:
    """Whether the rollout gives the answer that somebody wrote down, in these words or in others."""
    if _spaced(rollout.text) == _spaced(written):
        return True
    answer = context.extract(rollout)
    if not answer:
        return False
    # A bare "12" is an answer even where the task wants it in a box.
    other = context.extract(replace(rollout, text=written)) or written
    if fold(answer) == fold(other):
        return True
    return context.equivalent is not None and len(set(context.equivalent([answer, other]))) == 1


def _spaced(text: str) -> str:
    return " ".join(text.split())
