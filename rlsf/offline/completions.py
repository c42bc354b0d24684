"""Completions that come as text: a JSONL file with one row per completion, or one per prompt.

`prompt` is text or a list of chat messages; `completion` is text, or `completions` a list of texts. May stand beside
them: `prompt_id`, `reference`, `finish_reason` ("length" was cut off and has no answer; of `completions` also a list),
`temperature`, and `group`. Rows of one prompt form a group, in the order in which they come, unless `group` says
otherwise. Other columns are metadata of the prompt where all its rows agree on them; those that scoring itself writes
are not, since their evidence may name the reference.
"""

import difflib
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlsf.config.schema import TaskConfig
from rlsf.errors import DataError
from rlsf.offline.config import ScoreConfig
from rlsf.tasks.files import read_file
from rlsf.tasks.rows import row_from_columns
from rollouts.types import FinishReason, Prompt

SHAPES = ("completion", "completions")
RESULTS = ("reward", "components", "evidence")
"""Columns that scoring writes, in place of those that a row has already."""
_NO_METADATA = (*SHAPES, *RESULTS, "prompt_id", "group", "temperature", "finish_reason")
_FINISHED: dict[Any, FinishReason] = {None: "stop", "stop": "stop", "length": "length"}


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion, and the row it came from."""

    where: str
    """For messages: file and line."""
    position: int
    """In the file, counted from 0."""
    columns: Mapping[str, Any]
    """The row as it was read; of a row of several completions, with this one in their place."""
    text: str
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class CompletionGroup:
    """Completions that are compared with each other."""

    id: str
    prompt: Prompt
    temperature: float
    """At which they were drawn."""
    completions: tuple[Completion, ...]


def read_completions(path: Path, config: ScoreConfig, *, labels: bool = True) -> list[CompletionGroup]:
    """The groups of a file, in the order in which they begin.

    Args:
        labels: whether anything compares with references: then the rows of a prompt must agree on it.

    Raises:
        DataError: the file is missing, empty or broken, or a row is; with file and line.
    """
    if path.suffix.lower() not in (".jsonl", ".json"):
        raise DataError(f"{path}: expected a .jsonl file with one {{...}} a line (or .json with an array of them)")
    task, rows, position = config.task, [], 0
    for where, columns in read_file(path):
        row = _row(columns, where, task, config, position)
        rows.append(row)
        position += len(row.completions)
    _check_one_shape(rows)
    prompts = _prompts(rows, labels)
    groups: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    return [_group(id, members, prompts) for id, members in groups.items()]


@dataclass(frozen=True, slots=True)
class _Row:
    where: str
    shape: str
    group: str
    prompt: Prompt
    temperature: float
    completions: tuple[Completion, ...]


def _row(columns: Mapping[str, Any], where: str, task: TaskConfig, config: ScoreConfig, position: int) -> _Row:
    shape = _shape(columns, where)
    if "prompt" not in columns:
        raise DataError(f"{where}: there is no column 'prompt'{_others(columns, 'prompt')}")
    prompt = row_from_columns(task, task.source, columns, where).prompt  # type: ignore[arg-type]
    _check_json(columns, where)
    name = _name(columns, "prompt_id", where) or prompt.id
    metadata = {key: value for key, value in prompt.metadata.items() if key not in _NO_METADATA}
    return _Row(
        where,
        shape,
        group=_name(columns, "group", where) or name,
        prompt=replace(prompt, id=name, metadata=metadata),
        temperature=_temperature(columns, where, config.sampling.temperature),
        completions=_completions(columns, shape, where, position),
    )


def _shape(columns: Mapping[str, Any], where: str) -> str:
    shapes = [shape for shape in SHAPES if shape in columns]
    if not shapes:
        raise DataError(f"{where}: there is neither 'completion' nor 'completions'{_others(columns, 'completion')}")
    if len(shapes) > 1:
        raise DataError(f"{where}: the row has both 'completion' and 'completions'; keep one of them")
    return shapes[0]


def _others(columns: Mapping[str, Any], name: str) -> str:
    near = difflib.get_close_matches(name, columns, 1)
    return f"; columns: {', '.join(columns) or 'none'}" + (f"; did you mean {near[0]!r}?" if near else "")


def _check_json(columns: Mapping[str, Any], where: str) -> None:
    """Python reads NaN and Infinity, which no other reader of the output would."""
    try:
        json.dumps(columns, allow_nan=False)
    except ValueError:
        raise DataError(f"{where}: the row holds NaN or an infinity, which is no JSON; write null instead") from None


def _name(columns: Mapping[str, Any], column: str, where: str) -> str | None:
    value = columns.get(column)
    if value is None or (isinstance(value, str) and value):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{where}: {column} is {json.dumps(value)[:60]}; expected text or a whole number")


def _temperature(columns: Mapping[str, Any], where: str, default: float) -> float:
    value = columns.get("temperature")
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise DataError(f"{where}: temperature is {json.dumps(value)[:60]}; expected a number of at least 0")
    return float(value)


def _completions(columns: Mapping[str, Any], shape: str, where: str, position: int) -> tuple[Completion, ...]:
    texts, reasons = columns[shape], columns.get("finish_reason")
    if shape == "completion":
        texts, reasons = [texts], [reasons]
    elif not isinstance(texts, list) or not texts:
        raise DataError(f"{where}: completions must be a list of at least one text, found {json.dumps(texts)[:60]}")
    elif not isinstance(reasons, list):
        reasons = [reasons] * len(texts)
    elif len(reasons) != len(texts):
        raise DataError(f"{where}: {len(texts)} completions, but {len(reasons)} entries in finish_reason")
    found = []
    for offset, (text, reason) in enumerate(zip(texts, reasons, strict=True)):
        if not isinstance(text, str):
            raise DataError(
                f"{where}: a completion must be text, found {json.dumps(text)[:60]}; of a chat give the words of the "
                "assistant's last message"
            )
        if not isinstance(reason, str | None) or reason not in _FINISHED:
            raise DataError(
                f'{where}: finish_reason is {json.dumps(reason)[:60]}; expected "stop" or "length" (cut off at the '
                "largest length)"
            )
        own = {"completion": text} | ({"finish_reason": reason} if "finish_reason" in columns else {})
        # In the place of the list, so that the row still reads as it was written.
        row = {("completion" if name == shape else name): own.get(name, value) for name, value in columns.items()} | own
        found.append(Completion(where, position + offset, row, text, _FINISHED[reason]))
    return tuple(found)


def _check_one_shape(rows: Sequence[_Row]) -> None:
    first = rows[0]
    other = next((row for row in rows if row.shape != first.shape), None)
    if other is not None:
        raise DataError(
            f"{other.where}: the row has {other.shape!r}, and {first.where} has {first.shape!r}; write all rows of a "
            "file alike"
        )


def _prompts(rows: Sequence[_Row], labels: bool) -> dict[str, Prompt]:
    """By id. Every row of a prompt must ask the same, and have the same reference where labels are read."""
    same: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        same[row.prompt.id].append(row)
    return {id: _prompt(members, labels) for id, members in same.items()}


def _prompt(rows: Sequence[_Row], labels: bool) -> Prompt:
    first = rows[0]
    for row in rows:
        if row.prompt.content != first.prompt.content:
            raise DataError(
                f"{row.where}: prompt_id {first.prompt.id!r} is that of another prompt in {first.where}; give each "
                "prompt an id of its own, or none"
            )
        if labels and row.prompt.reference != first.prompt.reference:
            raise DataError(
                f"{row.where}: the reference is {row.prompt.reference!r}, and {first.where} has "
                f"{first.prompt.reference!r} for the same prompt; mend one of them, or give them different prompt_ids"
            )
    agreed = {
        name: value
        for name, value in first.prompt.metadata.items()
        if all(name in row.prompt.metadata and row.prompt.metadata[name] == value for row in rows)
    }
    return replace(first.prompt, metadata=agreed)


def _group(id: str, rows: Sequence[_Row], prompts: Mapping[str, Prompt]) -> CompletionGroup:
    first = rows[0]
    for row in rows:
        if row.prompt.id != first.prompt.id:
            raise DataError(
                f"{row.where}: group {id!r} holds another prompt in {first.where}; a group is of one prompt"
            )
        if row.temperature != first.temperature:
            raise DataError(
                f"{row.where}: temperature {row.temperature:g}, and {first.where} of the same group has "
                f"{first.temperature:g}; give rows of different temperatures a `group` of their own"
            )
    completions = tuple(completion for row in rows for completion in row.completions)
    return CompletionGroup(id, prompts[first.prompt.id], first.temperature, completions)
