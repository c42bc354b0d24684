"""Says in one line each what is wrong with a config: where, which key, what was found, what was expected."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from rlsf.config.schema import NAME
from rlsf.config.sections import Spec, paths_to, user_path
from rlsf.config.yaml_text import Path
from rlsf.text import did_you_mean
from rollouts.config import Section

_EXPECTED: dict[str, str] = {
    "greater_than": "a number above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    "too_short": "at least {min_length} item(s)",
    "string_too_short": "at least {min_length} character(s)",
    "string_too_long": "at most {max_length} characters",
    "too_long": "at most {max_length} item(s)",
    "literal_error": "one of {expected}",
    "missing": "a value",
}
_EXPECTED_STEMS: dict[str, str] = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "model": "a section with keys of its own",
    "dict": "a section with keys of its own",
}


def problems(error: ValidationError, root: type[Section], origin: Callable[[Path], str]) -> list[str]:
    """One line for each value that is wrong.

    Args:
        error: what pydantic found.
        root: the model it was checked against.
        origin: says where the value at a path comes from: file and line, or the override.
    """
    lines: dict[tuple[Path, str], tuple[str, list[str]]] = {}
    for item in error.errors(include_url=False):
        path, spec = user_path(root, item["loc"])
        path, found, expected = _problem(path, spec, item, root)
        lines.setdefault((path, found), (found, []))[1].append(expected)
    # A list of one wrong item is also called too short, and a section with one wrong key no number.
    within = {path[:length] for path, _ in lines for length in range(len(path))}
    return [
        ": ".join(part for part in (origin(path), dotted(path), found + _either(expected)) if part)
        for (path, _), (found, expected) in lines.items()
        if path not in within
    ]


def _either(expected: list[str]) -> str:
    first, *others = dict.fromkeys(expected)
    return " or ".join([first, *[other.removeprefix("expected ") for other in others]])


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


def shown(value: Any) -> str:
    """A value as a message shows it."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _problem(path: Path, spec: Spec, item: Any, root: type[Section]) -> tuple[Path, str, str]:
    """Path, what was found (empty where that says nothing), and what to do."""
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return path, "", _unknown_key(path, item["loc"], root)
    is_key = item["loc"][-1:] == ("[key]",)
    if kind == "invalid_key" or (is_key and kind == "string_type"):
        return path, "", "keys must be text; put this one into quotes"
    if is_key:
        return path, f"found the key {shown(value)}; ", _expected(kind, context, item["msg"])
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _wrong_kind(path, spec, value)
    if kind == "value_error":
        return _from_validator(path, spec, str(context["error"]))
    if spec.kinds and isinstance(value, str) and value in spec.kinds:
        return path, f"found {shown(value)}; ", f"expected a section; write {dotted(path)}.kind: {value}"
    if kind == "string_pattern_mismatch":
        return path, f"found {shown(value)}; ", f"expected {_pattern(context['pattern'], spec)}"
    if kind == "missing":
        return path, "", "missing; it has no default"
    return (
        path,
        f"found {shown(value)}; ",
        f"{_expected(kind, context, item['msg'])}{_advice(spec, kind, value, context)}",
    )


def _expected(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind].format(**context)}"
    stem = kind.split("_")[0]
    return f"expected {_EXPECTED_STEMS[stem]}" if stem in _EXPECTED_STEMS else message[:1].lower() + message[1:]


def _pattern(pattern: str, spec: Spec) -> str:
    if pattern == NAME:
        return "letters, digits, '_', '.' and '-', not starting with '.' or '-'"
    description = spec.description.split("\n")[0].rstrip(".")
    return description[:1].lower() + description[1:] or f"text that matches {pattern}"


def _advice(spec: Spec, kind: str, value: Any, context: Mapping[str, Any]) -> str:
    if kind == "literal_error":
        return did_you_mean(str(value), re.findall(r"'([^']*)'", context["expected"]))
    if spec.is_text and kind == "string_type" and value is not None and not isinstance(value, list | dict):
        return "; put it into quotes"
    return ""


def _unknown_key(path: Path, location: tuple[Any, ...], root: type[Section]) -> str:
    key = str(path[-1])
    parent, spec = user_path(root, location[:-1])
    assert spec.section is not None  # only a section refuses keys
    unknown, kinds = "unknown key", user_path(root, location[:-2])[1].kinds if len(location) > 1 else {}
    if kinds:
        unknown = f"unknown key of kind {location[-2]}"
        others = [kind for kind, section in kinds.items() if key in section.model_fields]
        if others:
            return f"{unknown}; it belongs to kind {' and '.join(others)}"
    near = did_you_mean(key, spec.section.model_fields)
    if near:
        return unknown + near
    elsewhere = list(dict.fromkeys(paths_to(root, key)))
    if elsewhere:
        return f"{unknown} here; did you mean {' or '.join(elsewhere)}?"
    return f"{unknown}; {dotted(parent) or 'the top level'} knows {', '.join(spec.section.model_fields)}"


def _wrong_kind(path: Path, spec: Spec, value: Any) -> tuple[Path, str, str]:
    valid = ", ".join(spec.kinds)
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind is None:
        return (*path, "kind"), "", f"missing; expected one of {valid}"
    return (*path, "kind"), f"found {shown(kind)}; ", f"expected one of {valid}{did_you_mean(str(kind), spec.kinds)}"


def _from_validator(path: Path, spec: Spec, message: str) -> tuple[Path, str, str]:
    """Validators of the schema begin their messages with the key, seen from their own section."""
    key, _, rest = message.partition(": ")
    if spec.section is not None and rest and key.split(".")[0] in spec.section.model_fields:
        return (*path, *key.split(".")), "", rest
    return path, "", message
