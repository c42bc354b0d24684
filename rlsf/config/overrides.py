"""Settings from the command line: `a.b=c`, and `--a.b=c` as wandb's agent writes it."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlsf.config.yaml_text import Path, parse
from rlsf.errors import ConfigError


@dataclass(frozen=True)
class Override:
    """One setting, before it is known what stands at its key."""

    text: str
    """As it was given."""
    keys: tuple[str, ...]
    raw: str
    """What stands behind the equals sign."""
    value: Any
    """The same, read as YAML; `raw` where it is none."""

    @property
    def as_text(self) -> str | None:
        """The value for a setting that is text: as it was given, unless it is quoted or null."""
        is_quoted = isinstance(self.value, str) and self.raw.lstrip().startswith(("'", '"'))
        is_null = self.value is None and "#" not in self.raw  # YAML reads "# 1" as a comment
        return self.value if is_quoted or is_null else self.raw

    def __str__(self) -> str:
        return f"override {self.text}"


def parse_override(text: str) -> Override:
    """Raises ConfigError if there is no key or no equals sign."""
    key, equals, raw = text.removeprefix("--").partition("=")
    keys = tuple(part.strip() for part in key.split("."))
    if not equals:
        raise ConfigError(f"override {text!r}: expected key=value, such as algorithm.learning_rate=1e-5")
    if not all(keys):
        raise ConfigError(f"override {text!r}: the key has an empty part; expected a form such as sampling.n=8")
    try:
        value = parse(raw, f"override {text}", override=True).value
    except ConfigError:
        value = raw  # "{prompt} Answer:" is no YAML, and a fine template
    return Override(text, keys, raw, value)


def apply_override(data: dict[Any, Any], override: Override) -> Path:
    """Put a setting into `data`, in place. A mapping is merged into the section that it meets; anything else replaces.

    Returns:
        The path of the key.

    Raises:
        ConfigError: the key leads through a value that is no section, or to a list item that is not there.
    """
    node: Any = data
    rest: Sequence[str] = override.keys
    path: Path = ()
    while True:
        key, rest = _step(node, rest, path, override)
        path = (*path, key)
        if not rest:
            break
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]
    before = node.get(key) if isinstance(node, dict) else node[key]
    node[key] = _merged(before, override.value)
    return path


def _step(node: Any, keys: Sequence[str], path: Path, override: Override) -> tuple[Any, Sequence[str]]:
    if isinstance(node, dict):
        return keys[0], keys[1:]
    here = ".".join(map(str, path))
    if not isinstance(node, list):
        raise ConfigError(f"{override}: {here} is {node!r}, not a section, so there is no {keys[0]!r} in it")
    names = [item.get("name") if isinstance(item, dict) else None for item in node]
    for length in range(len(keys), 0, -1):  # a task's name may itself contain dots
        name = ".".join(keys[:length])
        if name in names:
            return names.index(name), keys[length:]
    if keys[0].isdecimal() and int(keys[0]) < len(node):
        return int(keys[0]), keys[1:]
    known = [str(name) for name in names if name is not None]
    near = difflib.get_close_matches(keys[0], known, 1)
    guess = f"; did you mean {here}.{near[0]}?" if near else ""
    valid = f"; names: {', '.join(known)}" if known and not near else ""
    count = f"{len(node)} item{'s' if len(node) != 1 else ''}, counted from 0"
    raise ConfigError(f"{override}: {here} has no {keys[0]!r} ({count}){guess}{valid}")


def _merged(before: Any, value: Any) -> Any:
    if not (isinstance(before, dict) and isinstance(value, dict)):
        return value
    return before | {key: _merged(before.get(key), item) for key, item in value.items()}


def leaves(value: Any) -> Iterator[Path]:
    """Paths of everything in a tree of mappings that is no mapping itself; lists count as one."""
    if not isinstance(value, dict) or not value:
        yield ()
        return
    for key, item in value.items():
        for leaf in leaves(item):
            yield (key, *leaf)
