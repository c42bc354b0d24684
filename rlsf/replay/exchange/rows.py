"""A group as rows, one per rollout, and what a row must look like to become a rollout again.

Floats, texts and token ids stand in columns of their own; what has no fixed shape (components, evidence, metadata of
the prompt) is JSON text. Everything that the store keeps of a group is in its rows.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reward.types import Score
from rlsf.config.problems import shown
from rlsf.errors import DataError
from rlsf.experience import Experience, Group
from rlsf.replay.codec import SAMPLING_FIELDS
from rollouts.types import Prompt, Rollout, SamplingParams

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Member:
    """One row, read: a rollout with its score, and the group that it belongs to."""

    where: str
    """For messages: file and line."""
    group: str
    position: int | None
    """In the group, counted from 0; None: as the rows come."""
    size: int | None
    """Rollouts of the group; None: as many as follow each other."""
    prompt: Prompt
    experience: Experience


def rows_of(group: Group) -> Iterator[Row]:
    """One row for each rollout.

    Raises:
        ValueError: something is no JSON; the message names the rollout.
    """
    for position, experience in enumerate(group.experiences):
        try:
            yield _row(group, position, experience)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"group {group.id!r}: rollout {experience.rollout.id!r} cannot be written as JSON: {error}"
            ) from error


def _row(group: Group, position: int, experience: Experience) -> Row:
    rollout, score, prompt = experience.rollout, experience.score, group.prompt
    return {
        "group": group.id,
        "position": position,
        "group_size": len(group.experiences),
        "rollout_id": rollout.id,
        "task": experience.task,
        "iteration": experience.iteration,
        "policy_version": rollout.policy_version,
        "prompt_id": prompt.id,
        "prompt": prompt.content if isinstance(prompt.content, str) else [dict(m) for m in prompt.content],
        "completion": rollout.text,
        "reward": score.value,
        "finish_reason": rollout.finish_reason,
        "components": json_text(score.components),
        "evidence": json_text(score.evidence),
        "metadata": json_text(prompt.metadata),
        "priority": experience.priority,
        "sampling": {name: _plain(getattr(rollout.sampling, name)) for name in SAMPLING_FIELDS},
        "prompt_ids": list(rollout.prompt_ids),
        "completion_ids": list(rollout.completion_ids),
        "logprobs": list(rollout.logprobs),
        "reference_logprobs": _plain(experience.reference_logprobs),
        "prompt_task": _unless(prompt.task, experience.task),
        "rollout_group": _unless(rollout.group_id, group.id),
        "rollout_prompt": _unless(rollout.prompt_id, prompt.id),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _unless(value: str, usual: str) -> str | None:
    """None stands for the usual: hardly a rollout differs."""
    return None if value == usual else value


def json_text(value: Any) -> str:
    """As people read it; half a character (a lone surrogate), which no file can hold, is written as an escape."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_mapping_to_dict)
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return json.dumps(value, allow_nan=False, default=_mapping_to_dict)


def _mapping_to_dict(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} {value!r} is no JSON")


def read_row(row: Mapping[str, Any], where: str) -> Member:
    """Raises DataError, naming the row and the column, where a column is missing or holds something else."""
    cells = {name: _cell(row, name, column, where) for name, column in COLUMNS.items()}
    return Member(
        where=where,
        group=cells["group"],
        position=cells["position"],
        size=cells["group_size"],
        prompt=Prompt(
            id=cells["prompt_id"],
            task=_or(cells["prompt_task"], cells["task"]),
            content=cells["prompt"] if isinstance(cells["prompt"], str) else tuple(cells["prompt"]),
            metadata=_parsed(cells, "metadata", where),
        ),
        experience=_experience(cells, where),
    )


def _experience(cells: Row, where: str) -> Experience:
    reference = cells["reference_logprobs"]
    return Experience(
        rollout=Rollout(
            id=cells["rollout_id"],
            prompt_id=_or(cells["rollout_prompt"], cells["prompt_id"]),
            group_id=_or(cells["rollout_group"], cells["group"]),
            prompt_ids=tuple(cells["prompt_ids"]),
            completion_ids=tuple(cells["completion_ids"]),
            text=cells["completion"],
            logprobs=tuple(map(float, cells["logprobs"])),
            finish_reason=cells["finish_reason"],
            policy_version=cells["policy_version"],
            sampling=_sampling(cells["sampling"], where),
        ),
        score=Score(
            value=None if cells["reward"] is None else float(cells["reward"]),
            components=_components(cells, where),
            evidence=_parsed(cells, "evidence", where),
        ),
        task=cells["task"],
        iteration=cells["iteration"],
        reference_logprobs=None if reference is None else tuple(map(float, reference)),
        priority=1.0 if cells["priority"] is None else float(cells["priority"]),
    )


def _or(value: str | None, usual: str) -> str:
    return usual if value is None else value


# -- what a column may hold --------------------------------------------------------------------------------------------

Fits = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Column:
    """What may stand in a column."""

    expected: str
    fits: Fits
    nullable: bool = False
    """Whether null says something: no reward, no reference log-probabilities."""
    optional: bool = False
    """Whether the column may be left out, and null stands for the usual."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    """SQLite and Arrow hold whole numbers of 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is int and abs(value) <= 2**53  # beyond, a float would be another number


def _is_object(value: Any) -> bool:
    return isinstance(value, str | dict)


def _each(fits: Fits) -> Fits:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("role")) and _is_text(value.get("content"))


def _is_prompt(value: Any) -> bool:
    return _is_text(value) or (value != [] and _each(_is_message)(value))


_TEXT, _COUNT = ("text", _is_text), ("a whole number of at least 0", _is_count)
_NUMBER = ("a finite number", _is_number)
_TOKENS, _LOGPROBS = ("a list of token ids", _each(_is_count)), ("a list of finite numbers", _each(_is_number))
_OBJECT = ("the JSON text of an object", _is_object)

COLUMNS: Mapping[str, Column] = {
    "group": Column(*_TEXT),
    "position": Column(*_COUNT, optional=True),
    "group_size": Column("a whole number of at least 1", lambda value: _is_count(value) and value > 0, optional=True),
    "rollout_id": Column(*_TEXT),
    "task": Column(*_TEXT),
    "iteration": Column(*_COUNT),
    "policy_version": Column(*_COUNT),
    "prompt_id": Column(*_TEXT),
    "prompt": Column("text, or a list of messages {role, content}", _is_prompt),
    "completion": Column(*_TEXT),
    "reward": Column(*_NUMBER, nullable=True),
    "finish_reason": Column('"stop" or "length"', lambda value: value in ("stop", "length")),
    "components": Column(*_OBJECT, optional=True),
    "evidence": Column(*_OBJECT, optional=True),
    "metadata": Column(*_OBJECT, optional=True),
    "priority": Column(*_NUMBER, optional=True),
    "sampling": Column("an object with temperature, top_p, and so on", lambda value: isinstance(value, dict)),
    "prompt_ids": Column(*_TOKENS),
    "completion_ids": Column(*_TOKENS),
    "logprobs": Column(*_LOGPROBS),
    "reference_logprobs": Column(*_LOGPROBS, nullable=True, optional=True),
    "prompt_task": Column(*_TEXT, optional=True),
    "rollout_group": Column(*_TEXT, optional=True),
    "rollout_prompt": Column(*_TEXT, optional=True),
}
"""In the order in which they are written."""

_SAMPLING: Mapping[str, tuple[str, Fits]] = {
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "top_k": ("a whole number", lambda value: type(value) is int and abs(value) < 2**63),
    "max_tokens": _COUNT,
    "n": _COUNT,
    "stop": ("a list of texts", _each(_is_text)),
    "json_schema": ("text or null", lambda value: value is None or _is_text(value)),
}


def _cell(row: Mapping[str, Any], name: str, column: Column, where: str) -> Any:
    if name not in row and not column.optional:
        raise DataError(
            f"{where}: there is no column {name!r}; columns: {', '.join(row) or 'none'}. Is it a file that `rlsf "
            "replay export` wrote (with --format rollouts)?"
        )
    value = row.get(name)
    if value is None and (column.nullable or column.optional):
        return None
    if not column.fits(value):
        raise DataError(f"{where}: {name} is {_found(value)}; expected {column.expected}")
    return value


def _found(value: Any) -> str:
    """A value of a message; of a list, the first entry that is no number, where numbers are among them."""
    if isinstance(value, list) and value:
        numbers = [_is_number(entry) for entry in value]
        if any(numbers) and not all(numbers):
            place = numbers.index(False)
            return f"a list whose entry {place + 1} is {_found(value[place])}"
    if isinstance(value, bytes):
        return "bytes"
    text = str(value) if isinstance(value, float) and not math.isfinite(value) else shown(value)
    return text.encode("utf-8", "backslashreplace").decode()[:80]


def _sampling(value: Mapping[str, Any], where: str) -> SamplingParams:
    if "temperature" not in value:
        raise DataError(f"{where}: sampling has no temperature; a log-probability means nothing without it")
    unknown = value.keys() - set(SAMPLING_FIELDS)
    if unknown:
        raise DataError(
            f"{where}: sampling has {min(unknown)!r}, which this rlsf does not know; it has "
            f"{', '.join(SAMPLING_FIELDS)}"
        )
    for name, setting in value.items():
        expected, fits = _SAMPLING[name]
        if not fits(setting):
            raise DataError(f"{where}: sampling.{name} is {_found(setting)}; expected {expected}")
    return SamplingParams(**{**value, "stop": tuple(value.get("stop", ()))})


def _components(cells: Row, where: str) -> dict[str, float]:
    components = _parsed(cells, "components", where)
    for name, value in components.items():
        if not _is_number(value):
            raise DataError(f"{where}: components: {name!r} is {_found(value)}; expected a finite number")
    return components


def _parsed(cells: Row, name: str, where: str) -> dict[str, Any]:
    value = cells[name]
    if not isinstance(value, str):
        value = json_text(value or {})
    try:
        parsed = json.loads(value, parse_constant=_refuse)
    except RecursionError:
        raise DataError(f"{where}: {name} is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{where}: {name} is no JSON text: {error}") from None
    if not isinstance(parsed, dict):
        raise DataError(f"{where}: {name} is {_found(parsed)}; expected the JSON text of an object")
    return parsed


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")
