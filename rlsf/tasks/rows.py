"""From a row of data to a `Prompt`: wording, messages, reference and metadata, each checked with the row's place."""

import datetime
import difflib
import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rlsf.config.schema import DatasetsSource, FileSource, TaskConfig
from rlsf.errors import DataError
from rlsf.text import is_unicode
from rollouts.types import Message, Prompt

DEEPEST = 64
"""Levels of lists and objects in a column."""
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt on its way into a split."""

    prompt: Prompt
    key: str
    """The row's question, folded: what the user says, whether it came as text or as a chat, without system message and
    template. Rows of one key go to the same split."""
    words: str
    """The question and its system message, folded. Rows of the same words are duplicates."""
    group: str
    """Rows that share it go to the same split."""
    where: str
    """For messages: file and line."""

    @property
    def is_labelled(self) -> bool:
        return self.prompt.reference is not None or bool(self.prompt.grading)


def make_row(
    config: TaskConfig,
    question: str | list[Message],
    where: str,
    *,
    reference: str | None,
    group: str | None = None,
    grading: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Row:
    """Word a question as the task says."""
    content = _word(config, question, where)
    key = folded(question if isinstance(question, str) else _conversation(question))
    system = [] if isinstance(content, str) else [folded(m["content"]) for m in content if m["role"] == "system"]
    prompt = Prompt(
        id=f"{config.name}-{_digest(content)}",
        task=config.name,
        content=content,
        reference=reference,
        grading=grading or {},
        metadata=metadata or {},
    )
    return Row(prompt, key, json.dumps([*system, key]), key if group is None else group, where)


def folded(text: str) -> str:
    """One spelling for texts that a reader takes for the same: lower case, single spaces, composed characters (NFC)."""
    return unicodedata.normalize("NFC", " ".join(unicodedata.normalize("NFC", text).split()).casefold())


def _conversation(messages: list[Message]) -> str:
    """What is said beside the system message; a lone message is its text."""
    said = [message for message in messages if message["role"] != "system"]
    if len(said) == 1:
        return said[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in said)


def row_from_columns(
    config: TaskConfig, source: FileSource | DatasetsSource, columns: Mapping[str, Any], where: str
) -> Row:
    """Raises DataError, naming the row and the column, if the row cannot be made into a prompt."""
    for name, value in columns.items():
        if _is_deeper(value, DEEPEST):
            raise DataError(
                f"{where}: the column {name!r} is nested more than {DEEPEST} levels deep; flatten or remove it"
            )
        if not is_unicode((name, value)):
            raise DataError(
                f"{where}: the column {name!r} holds half a character (a lone surrogate such as \\ud83d), which is no "
                "valid text; export the data again, or remove it"
            )
    question = _question(_cell(columns, source.prompt_column, "prompt_column", where), source.prompt_column, where)
    used = {source.prompt_column}
    reference = None
    if source.reference_column is not None and source.reference_column in columns:
        used.add(source.reference_column)
        reference = reference_of(columns[source.reference_column], source.reference_column, where)
    group = None
    if source.group_column is not None:
        value = _cell(columns, source.group_column, "group_column", where)
        group = None if value is None else json.dumps(_plain(value), sort_keys=True)
    metadata = {name: _plain(value) for name, value in columns.items() if name not in used}
    return make_row(config, question, where, reference=reference, group=group, metadata=metadata)


def _cell(columns: Mapping[str, Any], name: str, setting: str, where: str) -> Any:
    if name in columns:
        return columns[name]
    near = difflib.get_close_matches(name, columns, 1)
    guess = f"; did you mean {near[0]!r}?" if near else f"; set source.{setting} to one of them"
    raise DataError(f"{where}: there is no column {name!r} (source.{setting}); columns: {', '.join(columns)}{guess}")


def _question(value: Any, column: str, where: str) -> str | list[Message]:
    if value is None or value in ("", []) or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{where}: the column {column!r} is empty; every row needs a prompt")
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        messages = [_message(item, f"{where}: column {column!r}, message {i}") for i, item in enumerate(value, 1)]
        if not any(message["role"] == "user" for message in messages):
            raise DataError(f"{where}: the chat in column {column!r} has no message of the user; there is no question")
        return messages
    raise DataError(
        f"{where}: the column {column!r} holds a {type(value).__name__}; expected text or a list of chat messages"
    )


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
        raise DataError(f"{where}: expected {{role: ..., content: ...}}, found {str(item)[:60]!r}")
    if item["role"] not in ROLES:
        raise DataError(f"{where}: unknown role {item['role']!r}; expected one of {', '.join(ROLES)}")
    if not isinstance(item["content"], str):
        raise DataError(f"{where}: content must be text, found a {type(item['content']).__name__}")
    if item["role"] == "user" and not item["content"].strip():
        raise DataError(f"{where}: the user's message is empty; every one needs words")
    message = Message(role=item["role"], content=item["content"])
    if item.get("name") is not None:
        message["name"] = str(item["name"])
    return message


def reference_of(value: Any, column: str, where: str) -> str | None:
    """The right answer as text; None for an empty cell. Raises DataError, naming the row, for what is no answer."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        if not _is_finite(value):
            raise DataError(
                f"{where}: the reference in column {column!r} is {value}; expected a finite number, or null where "
                "there is no answer"
            )
        return format(value, "f") if isinstance(value, Decimal) else str(value)
    raise DataError(
        f"{where}: the reference in column {column!r} is a {type(value).__name__}; expected text or a number, as the "
        "model should answer"
    )


def _word(config: TaskConfig, question: str | list[Message], where: str) -> str | tuple[Message, ...]:
    if isinstance(question, str):
        text = config.template.replace("{prompt}", question)
        if not config.chat:
            return text
        messages = [Message(role="user", content=text)]
    elif not config.chat:
        raise DataError(f"{where}: the prompt is a list of chat messages, but chat: false wants plain text")
    else:
        messages = list(question)
        if messages[-1]["role"] == "assistant":
            raise DataError(f"{where}: the last message is the assistant's; there is nothing left to answer")
    if config.system is not None and messages[0]["role"] != "system":
        messages.insert(0, Message(role="system", content=config.system))
    return tuple(messages)


def _digest(content: str | tuple[Message, ...]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _is_finite(value: float | Decimal) -> bool:
    if isinstance(value, Decimal):
        return value.is_finite()
    return isinstance(value, int) or math.isfinite(value)  # an integer may be larger than any float


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested in each other more than `levels` deep."""
    if not isinstance(value, dict | list | tuple):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in items)


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: metadata is kept with every rollout."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
