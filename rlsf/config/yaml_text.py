"""YAML as people expect it: the scalars of YAML 1.2's core schema, no repeated keys, and the line of every key.

YAML 1.1, which PyYAML implements, reads 1e-5 as text, `no` as false, 010 as 8 and 2024-01-01 as a date.
"""

import re
from dataclasses import dataclass
from typing import Any

import yaml

from rlsf.errors import ConfigError

Path = tuple[str | int, ...]
"""Where a value stands: keys and list indices from the top."""


@dataclass(frozen=True)
class Document:
    """A parsed YAML text."""

    value: Any
    lines: dict[Path, int]
    """Line of every key and list item, counted from 1."""


_CORE_SCHEMA: list[tuple[str, str, list[str | None]]] = [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", None]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
]
_MERGE = "tag:yaml.org,2002:merge"


# Python stops converting text to whole numbers at some length, which users may change; nobody needs this many digits.
_LONGEST_INT = 1000


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - replaces the 1.1 rules of the parent

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError) as error:  # what PyYAML raises for `!!int abc` and its like
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            text = str(node.value)
            shown = text if len(text) <= 40 else f"{text[:40]}... ({len(text)} characters)"
            problem = f"{shown!r} cannot be read as {tag}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


class _OverrideLoader(_Loader):
    """Also reads Python's None, which wandb's agent writes for null."""


class _Dumper(yaml.SafeDumper):
    """Quotes a text that either YAML version would read as something else."""


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value
    if len(text) > _LONGEST_INT:
        raise ValueError("too long")
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


for _tag, _pattern, _first in _CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_implicit_resolver(_MERGE, re.compile(r"^<<$"), ["<"])
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_OverrideLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^None$"), ["N"])


def parse(text: str, name: str, *, override: bool = False) -> Document:
    """Read one YAML document.

    Args:
        text: the YAML.
        name: what messages call it: the file's path, or the override it comes from.
        override: read `None` as null too.

    Raises:
        ConfigError: a syntax error, a repeated key, or a value that contains itself; with the line.
    """
    lines: dict[Path, int] = {}
    try:
        loader = (_OverrideLoader if override else _Loader)(text)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ConfigError(
            f"{name}:{line}: not valid YAML: it contains the control character U+{error.character:04X}"
        ) from None
    try:
        node = loader.get_single_node()
        if node is None:
            return Document(None, {})
        _note_lines(node, (), lines, [], name)
        return Document(loader.construct_document(node), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark is not None else name
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{place}: not valid YAML: {problem}{_hint(problem)}") from error
    except RecursionError:
        raise ConfigError(f"{name}: not valid YAML: it is nested too deeply") from None
    finally:
        loader.dispose()


def dump(value: Any) -> str:
    """YAML that `parse` reads back to the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _note_lines(node: yaml.Node, path: Path, lines: dict[Path, int], parents: list[yaml.Node], name: str) -> None:
    if any(node is parent for parent in parents):
        raise ConfigError(f"{name}:{node.start_mark.line + 1}: an alias (*) stands inside the value it refers to")
    inside = [*parents, node]
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines.setdefault((*path, index), item.start_mark.line + 1)
            _note_lines(item, (*path, index), lines, inside, name)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag != _MERGE and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ConfigError(
                        f"{name}:{line}: the key {key.value!r} stands twice (line {seen[key.value]} too); remove one"
                    )
                seen[key.value] = line
                lines.setdefault((*path, key.value), line)
            _note_lines(value, path if key.tag == _MERGE else (*path, str(key.value)), lines, inside, name)


def _hint(problem: str) -> str:
    if r"'\t'" in problem:
        return "; indent with spaces, not tabs"
    if "mapping values are not allowed" in problem:
        return "; put text that contains ': ' into quotes"
    return ""
