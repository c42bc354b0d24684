"""From a YAML file and command-line overrides to a `RunConfig`, or to one message that says what to mend.

An override is `key=value` or `--key=value`; the key is dotted, list items go by index and tasks also by name
(`tasks.sums.split.test=50`); the value is YAML, or, for a setting that is text, simply the text. A mapping is merged
into the section that it meets, everything else replaces what was there; of two overrides of one key the last counts.

An override of `kind` exchanges a section. The file's keys that the new kind has with the same type stay (a learning
rate, say); its other keys belong to the old kind and are left out with a warning. What was set on the command line
always stays, so a key that the new kind does not know is an error there.
"""

import logging
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from rlsf.config.overrides import Override, apply_override, leaves, parse_override
from rlsf.config.problems import dotted, problems, shown
from rlsf.config.schema import RunConfig
from rlsf.config.sections import Spec, same_field, spec_of, spec_of_field
from rlsf.config.yaml_text import Document, dump, parse
from rlsf.config.yaml_text import Path as KeyPath
from rlsf.errors import ConfigError
from rlsf.paths import expand, unreachable
from rlsf.text import is_unicode
from rollouts.config import Section

log = logging.getLogger(__name__)


S = TypeVar("S", bound=Section)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the config of a run; see `load_section`."""
    return load_section(path, RunConfig, overrides)


def load_section(path: Path | str | None, schema: type[S], overrides: Sequence[str] = ()) -> S:
    """Read a config.

    Args:
        path: the YAML file; None where there is none, and all but the overrides are defaults.
        schema: of its top level.
        overrides: settings of the command line, see above; later ones win.

    Raises:
        ConfigError: the file cannot be read, or something in it is wrong. All wrong values are listed, one a line.
    """
    document = read_document(path) if path is not None else Document({}, {})
    if document.value is None:
        required = [f"`{name}`" for name, field in schema.model_fields.items() if field.is_required()]
        needed = f"; a config needs at least {' and '.join(required)}" if required else ""
        raise ConfigError(f"{path}: the file is empty{needed}")
    if not isinstance(document.value, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found {shown(document.value)}")
    layers = _Layers(str(path or "--set"), document.value, document.lines, {}, {})
    data = deepcopy(document.value)
    for override in map(parse_override, overrides):
        target = apply_override(data, override)
        layers.targets[target] = override
        layers.set_by.update({(*target, *leaf): override for leaf in leaves(override.value)})
    _settle(data, Spec({}, schema, None), (), layers)
    _check_texts(data, layers)
    if isinstance(data.get("output_dir"), str):
        data["output_dir"] = str(expand(data["output_dir"]))
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(problems(error, schema, layers.origin))) from None


def read_document(path: Path | str) -> Document:
    """The YAML of a file, unchecked. Raises ConfigError where it cannot be read, or is none."""
    return parse(_read(Path(path)), str(path))


def resolved_yaml(config: RunConfig) -> str:
    """Every setting of a run, defaults included, as YAML that `load_config` reads back to an equal config."""
    return dump(config.model_dump(mode="json"))


@dataclass(frozen=True)
class _Layers:
    """Where each value comes from."""

    file: str
    file_data: Any
    lines: dict[KeyPath, int]
    targets: dict[KeyPath, Override]
    """By the path that an override names."""
    set_by: dict[KeyPath, Override]
    """By the path of each single value in it."""

    def origin(self, path: KeyPath) -> str:
        """Override, or file and line, of the value at `path`, or of the nearest section around it."""
        prefixes = [path[:length] for length in range(len(path), 0, -1)]
        for prefix in prefixes:  # an override replaces all that the file has below its key
            if prefix in self.set_by:
                return str(self.set_by[prefix])
        return next((f"{self.file}:{self.lines[prefix]}" for prefix in prefixes if prefix in self.lines), self.file)

    def is_overridden(self, path: KeyPath) -> bool:
        """Whether the value at `path`, or anything in it, was set on the command line."""
        return any(key[: len(path)] == path for key in self.set_by)

    def in_file(self, path: KeyPath) -> Any:
        value = self.file_data
        for key in path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return None
        return value


def _check_texts(data: Any, layers: _Layers) -> None:
    for path, text in _texts(data):
        if not is_unicode(text):
            raise ConfigError(
                f"{layers.origin(path)}: {dotted(path)}: found half a character (a lone surrogate such as \\ud83d, or "
                "a byte that is no UTF-8); write the whole one"
            )


def _texts(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Every text at and below `path`, keys included."""
    if isinstance(value, str):
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(key, str):
            yield path, key
        yield from _texts(item, (*path, key))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: this is a directory; name the YAML file") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(unreachable(path, error)) from None


def _settle(value: Any, spec: Spec, path: KeyPath, layers: _Layers) -> Any:
    """What stands at `path` once kinds are known: missing kinds filled in, keys of an old kind dropped, text kept."""
    if spec.is_text and path in layers.targets:
        return layers.targets[path].as_text
    if isinstance(value, dict):
        if spec.kinds and spec.default_kind is not None:
            value.setdefault("kind", spec.default_kind)
        if spec.kinds:
            _drop_keys_of_old_kind(value, spec, path, layers)
        kind = value.get("kind")
        section = spec.at(kind) if isinstance(kind, str | None) else None
        for key, item in value.items():
            if section is not None:
                field = section.model_fields.get(key)
                value[key] = _settle(item, spec_of_field(field), (*path, key), layers) if field is not None else item
            elif spec.item is not None:
                value[key] = _settle(item, spec_of(spec.item), (*path, key), layers)
    if isinstance(value, list) and spec.item is not None:
        return [_settle(item, spec_of(spec.item), (*path, i), layers) for i, item in enumerate(value)]
    return value


def _drop_keys_of_old_kind(value: dict[Any, Any], spec: Spec, path: KeyPath, layers: _Layers) -> None:
    before = layers.in_file(path)
    if not isinstance(before, dict) or not layers.is_overridden((*path, "kind")):
        return
    old_kind, new_kind = str(before.get("kind", spec.default_kind)), str(value["kind"])
    if old_kind == new_kind or not {old_kind, new_kind} <= spec.kinds.keys():
        return
    old, new = spec.kinds[old_kind], spec.kinds[new_kind]
    for key in [key for key in value if key in old.model_fields and key != "kind"]:
        if not same_field(key, old, new) and not layers.is_overridden((*path, key)):
            del value[key]
            log.warning(
                "%s: %s.%s is left out: it belongs to kind %s, and the command line chose %s",
                layers.origin((*path, key)), dotted(path), key, old_kind, new_kind,
            )  # fmt: skip
