"""What counts as text."""

from collections.abc import Mapping
from typing import Any


def is_unicode(value: Any) -> bool:
    """Whether all text in it, at any depth, can be written as UTF-8: half a character (a lone surrogate) cannot."""
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, Mapping):
        return all(map(is_unicode, value.items()))
    return not isinstance(value, list | tuple) or all(map(is_unicode, value))
