"""Rows as Arrow tables, for Parquet files and datasets.

A column has one type there: `prompt` is split into `prompt` (text) and `messages`. What its type cannot hold, half a
character or a message with more than role, content and name, stands as JSON text in `exact`, and in its own column as
well as can be.
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from rlsf.replay.exchange.rows import Row
from rlsf.text import is_unicode

if TYPE_CHECKING:
    import pyarrow as pa

MESSAGE = ("role", "content", "name")
_SURROGATE = re.compile("[\ud800-\udfff]")


@cache
def schema() -> "pa.Schema":
    """Of the rows of rollouts."""
    import pyarrow as pa

    text, count, number = pa.string(), pa.int64(), pa.float64()
    sampling = {
        "temperature": number,
        "top_p": number,
        "top_k": count,
        "max_tokens": count,
        "n": count,
        "stop": pa.list_(text),
        "json_schema": text,
    }
    return pa.schema(
        {
            "group": text,
            "position": count,
            "group_size": count,
            "rollout_id": text,
            "task": text,
            "iteration": count,
            "policy_version": count,
            "prompt_id": text,
            "prompt": text,
            "messages": messages_type(),
            "completion": text,
            "reward": number,
            "finish_reason": text,
            "components": text,
            "evidence": text,
            "metadata": text,
            "priority": number,
            "sampling": pa.struct(sampling),
            "prompt_ids": pa.list_(count),
            "completion_ids": pa.list_(count),
            "logprobs": pa.list_(number),
            "reference_logprobs": pa.list_(number),
            "prompt_task": text,
            "rollout_group": text,
            "rollout_prompt": text,
            "exact": text,
        }
    )


def messages_type(fields: Sequence[str] = MESSAGE) -> "pa.DataType":
    """Of a chat, whose messages have these fields."""
    import pyarrow as pa

    return pa.list_(pa.struct({name: pa.string() for name in fields}))


def to_batch(rows: Sequence[Row]) -> "pa.RecordBatch":
    """Raises ValueError, naming the group, where a number does not fit its column."""
    return batch_of([_to_columns(row) for row in rows], schema())


def batch_of(rows: Sequence[Row], schema: "pa.Schema") -> "pa.RecordBatch":
    """Raises ValueError where a value does not fit its column."""
    import pyarrow as pa

    try:
        return pa.RecordBatch.from_pylist(list(rows), schema=schema)
    except (pa.ArrowException, OverflowError) as error:
        for row in rows if len(rows) > 1 else ():
            batch_of([row], schema)
        raise ValueError(f"group {rows[0].get('group')!r} does not fit the columns: {error}") from error


def from_batch(table: "pa.RecordBatch | pa.Table") -> Iterator[Row]:
    """The rows again."""
    for row in table.to_pylist():
        messages, exact = row.pop("messages", None), row.pop("exact", None)
        if row.get("prompt") is None and isinstance(messages, list):
            row["prompt"] = [_without_nulls(message) for message in messages]
        if isinstance(exact, str):
            row |= json.loads(exact)
        yield row


def _without_nulls(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if value is not None}


def _to_columns(row: Row) -> Row:
    exact = {name: value for name, value in row.items() if not _fits(name, value)}
    columns = row | {name: without_surrogates(value) for name, value in exact.items()}
    if not isinstance(columns["prompt"], str):
        columns |= {"messages": [_as_message(message) for message in columns["prompt"]], "prompt": None}
    return columns | {"exact": json.dumps(exact, allow_nan=False) if exact else None}


def _as_message(message: Row) -> Row:
    return {name: message[name] for name in MESSAGE if isinstance(message.get(name), str)}


def _fits(name: str, value: Any) -> bool:
    if name == "prompt" and isinstance(value, list):
        return all(m.keys() <= set(MESSAGE) and all(isinstance(v, str) for v in m.values()) for m in value) and (
            is_unicode(value)
        )
    return is_unicode(value)


def without_surrogates(value: Any) -> Any:
    """With the replacement character U+FFFD for each half of a character, at any depth."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {name: without_surrogates(item) for name, item in value.items()}
    return value
