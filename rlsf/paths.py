"""Paths as people write them: what stands there, and what they may have meant. Imports nothing heavy."""

import difflib
import re
from pathlib import Path

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def expand(path: str | Path) -> Path:
    """With the home folder for `~`; the `~name` of nobody stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_there(path: Path) -> bool:
    """Whether something stands at `path`.

    Raises:
        OSError, ValueError: nobody can tell: no permission on the way, a name too long, a NUL in it.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def why_missing(path: Path) -> str | None:
    """Why nothing can be read at `path`, ready for a message; None where something stands there."""
    try:
        return None if is_there(path) else f"there is no {path}{nearest(path)}"
    except (OSError, ValueError) as error:
        return unreachable(path, error)


def unreachable(path: Path, error: OSError | ValueError) -> str:
    """What an error of the file system says about `path`."""
    text = str(path)
    reason = getattr(error, "strerror", None) or str(error)
    return f"{text if len(text) <= 200 else text[:200] + '...'} cannot be reached: {reason}"


def nearest(path: Path) -> str:
    """The nearest name beside the first part of `path` that is not there, ready to be appended to a message."""
    try:
        missing = next((part for part in reversed([path, *path.parents]) if not is_there(part)), path)
        names = [entry.name for entry in missing.parent.iterdir()]
    except (OSError, ValueError):
        return ""
    near = difflib.get_close_matches(missing.name, names, n=1)
    if near:
        return f"; did you mean {missing.parent / near[0]}?"
    notes = [] if missing == path else [f"nor its folder {missing}"]
    notes += [] if path.is_absolute() else [f"relative paths start at {Path.cwd()}"]
    return f" ({'; '.join(notes)})" if notes else ""


def is_hub_id(source: str) -> bool:
    """Whether a model's source has the form of a hub id, such as `lab` or `google/gemma-3-1b-it`."""
    return _HUB_ID.fullmatch(source) is not None and not source.endswith(".gguf")


def packaged_module(source: str) -> str:
    """The module that `package:NAME` names; packages may be written as on PyPI, with hyphens."""
    return source.removeprefix("package:").replace("-", "_")
