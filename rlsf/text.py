"""What counts as text, and which text was meant."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def is_unicode(value: Any) -> bool:
    """Whether all text in it, at any depth, can be written as UTF-8: half a character (a lone surrogate) cannot."""
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, Mapping):
        return all(map(is_unicode, value.items()))
    return not isinstance(value, list | tuple) or all(map(is_unicode, value))


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """A question to end a message about an unknown name with; empty where no valid one is like it."""
    near = difflib.get_close_matches(name, list(valid), 1)
    return f"; did you mean {near[0]}?" if near else ""
