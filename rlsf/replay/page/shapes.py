"""Whether evidence has the shape that a reward of this project gives it."""

from collections.abc import Mapping
from typing import Any, TypeGuard


def is_count(value: Any) -> TypeGuard[int | float]:
    """Of votes, say: no larger than a bar can be drawn for."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e9


def is_range(value: Any, longest: int) -> bool:
    """Whether it is [start, end] with 0 ≤ start ≤ end ≤ longest."""
    whole = isinstance(value, list) and len(value) == 2 and all(type(edge) is int for edge in value)
    return whole and 0 <= value[0] <= value[1] <= longest


def are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def are_mappings(value: Any, *keys: str) -> TypeGuard[list[Mapping[str, Any]]]:
    """Whether it is a list, and no empty one, of mappings that all have these keys."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) and v.keys() >= {*keys} for v in value)
