"""Conditions that a user writes, such as `answer <= max(numbers)`. Python's own `eval` never sees them.

The text is parsed with Python's grammar and built up from the few pieces below; whatever else it holds is refused.
There is no attribute, no assignment, no loop, no power, and no call but to the ten functions, so nothing outside is in
reach; and nothing grows: numbers are exact fractions of at most `LARGEST` bits, and text cannot be joined or repeated.
"""

import ast
import difflib
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, Inexact, localcontext
from fractions import Fraction
from typing import Any

from reward.numerals import bare_number, canonical_number, number_value

Value = Fraction | str | tuple[Fraction, ...] | None
"""What a variable can be."""

LARGEST = 8192
"""Bits of a number's numerator and of its denominator."""
MOST_PARTS = 200
"""Nodes of an expression's tree."""
MOST_DIGITS = 100
"""That `round` may keep or cut."""

_Built = Callable[[Mapping[str, Value]], Any]


class UndecidedError(ValueError):
    """An expression has no value for these variables; the message says which part, and why."""


class Expression:
    """A condition over `names`.

    Raises:
        ValueError: the text is no such condition; the message shows the part that is not.
    """

    def __init__(self, text: str, names: Sequence[str]) -> None:
        tree = _parse(text.strip())
        mentioned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        self._holds = _condition(tree, names)
        self.names = tuple(name for name in names if name in mentioned)
        """Those that it mentions."""

    def holds(self, values: Mapping[str, Value]) -> bool:
        """Raises UndecidedError where a part that decides has no value: a sum of text, the largest of no numbers."""
        return self._holds(values)


def number_of(text: str) -> Fraction | None:
    """The number that a text consists of; None for other text, and for numbers beyond `LARGEST`."""
    found = bare_number(text)
    number = None if found is None else number_value(canonical_number(found))
    return number if number is not None and _fits(number) else None


def written(number: Fraction) -> str:
    """As a decimal where that is exact, else as a fraction."""
    with localcontext() as context:
        context.prec = 2 * LARGEST
        decimal = Decimal(number.numerator) / Decimal(number.denominator)
        return str(number) if context.flags[Inexact] else format(decimal, "f")


def _parse(text: str) -> ast.expr:
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is no expression: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # a NUL; too deep for Python's parser
        raise ValueError(f"{text!r} is no expression: {str(error) or 'it is nested too deeply'}") from error
    parts = sum(1 for _ in ast.walk(tree))
    if parts > MOST_PARTS:
        raise ValueError(f"the expression has {parts} parts; at most {MOST_PARTS} are read")
    return tree


def _condition(node: ast.expr, names: Sequence[str]) -> _Built:
    """What is true or false: comparisons, and `and`, `or`, `not` over them. `answer == 1 or 2` is none: in Python it
    would always hold."""
    match node:
        case ast.BoolOp(op=joined, values=parts):
            conditions = [_condition(part, names) for part in parts]
            decide = all if isinstance(joined, ast.And) else any
            return lambda values: decide(condition(values) for condition in conditions)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            condition = _condition(part, names)
            return lambda values: not condition(values)
        case ast.Compare(left=left, ops=signs, comparators=others):
            pairs = zip(signs, [left, *others[:-1]], others, strict=True)
            comparisons = [_comparison(node, sign, before, after, names) for sign, before, after in pairs]
            return lambda values: all(comparison(values) for comparison in comparisons)
        case _:
            _value(node, names)
            raise ValueError(f"`{ast.unparse(node)}` is neither true nor false: compare it with something")


def _comparison(node: ast.expr, sign: ast.cmpop, left: ast.expr, right: ast.expr, names: Sequence[str]) -> _Built:
    if isinstance(sign, ast.Is | ast.IsNot) and not (isinstance(right, ast.Constant) and right.value is None):
        raise ValueError(f"`{ast.unparse(node)}`: `is` goes with None alone; write ==")
    return _apply(node, _COMPARISONS[type(sign)], [_value(left, names), _value(right, names)])


def _value(node: ast.expr, names: Sequence[str]) -> _Built:
    """What is a number, a text, a list or None."""
    match node:
        case ast.Constant(value=constant):
            value = _constant(node, constant)
            return lambda values: value
        case ast.Name(id=name) if name in names:
            return lambda values: values[name]
        case ast.Name(id=name):
            raise ValueError(_unknown(name, names))
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            items = [_value(part, names) for part in parts]
            return lambda values: tuple(item(values) for item in items)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=part):
            return _apply(node, _negative if isinstance(sign, ast.USub) else _number, [_value(part, names)])
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _ARITHMETIC:
            return _apply(node, _ARITHMETIC[type(sign)], [_value(left, names), _value(right, names)])
        case ast.Subscript(value=part, slice=index) if not isinstance(index, ast.Slice):
            return _apply(node, _item, [_value(part, names), _value(index, names)])
        case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in _FUNCTIONS:
            function, least, most = _FUNCTIONS[name]
            if not least <= len(parts) <= most:
                raise ValueError(f"`{ast.unparse(node)}`: that is not how many arguments {name} takes")
            return _apply(node, function, [_value(part, names) for part in parts])
        case _:
            raise ValueError(
                f"`{ast.unparse(node)}` ({type(node).__name__}) is not allowed: an expression has + - * / // %, "
                f"comparisons, and, or, not, lists, items, and {', '.join(_FUNCTIONS)}"
            )


def _apply(node: ast.expr, function: Callable[..., Any], parts: Sequence[_Built]) -> _Built:
    where = ast.unparse(node)

    def built(values: Mapping[str, Value]) -> Any:
        arguments = [part(values) for part in parts]
        try:
            result = function(*arguments)
            if isinstance(result, Fraction) and not _fits(result):
                raise UndecidedError(f"the result is beyond {LARGEST} bits")
        except (UndecidedError, ZeroDivisionError) as error:
            reason = "division by zero" if isinstance(error, ZeroDivisionError) else error
            raise UndecidedError(f"`{where}`: {reason}") from None
        return result

    return built


def _constant(node: ast.expr, constant: Any) -> Value:
    if constant is None or isinstance(constant, str):
        return constant
    if isinstance(constant, int | float) and not isinstance(constant, bool) and math.isfinite(constant):
        number = Fraction(repr(constant))  # 0.1 is what was written, not the nearest float
        if _fits(number):
            return number
    raise ValueError(f"`{ast.unparse(node)}` is not allowed: values are numbers, text and None")


def _unknown(name: str, names: Sequence[str]) -> str:
    if name in _FUNCTIONS:
        return f"`{name}` is a function: write {name}(...)"
    near = difflib.get_close_matches(name, [*names, *_FUNCTIONS], 1)
    return f"there is no `{name}`" + (f"; did you mean {near[0]}?" if near else f", only {', '.join(names)}")


def _fits(number: Fraction) -> bool:
    return max(number.numerator.bit_length(), number.denominator.bit_length()) <= LARGEST


# The pieces. Each takes values of any kind, and says which it cannot work with.


def _number(value: Any) -> Fraction:
    if isinstance(value, Fraction):
        return value
    kind = "None" if value is None else "a list" if isinstance(value, tuple) else f"the text {value[:40]!r}"
    raise UndecidedError(f"a number is needed, not {kind}")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise UndecidedError(f"text is needed, not {'None' if value is None else 'a number or list'}")


def _negative(value: Any) -> Fraction:
    return -_number(value)


def _item(value: Any, index: Any) -> Any:
    position = _number(index)
    if not isinstance(value, str | tuple) or position.denominator != 1:
        raise UndecidedError("an item is a whole number's place in a list or text")
    if not -len(value) <= position < len(value):
        raise UndecidedError(f"there are only {len(value)}")
    return value[int(position)]


def _contains(value: Any, collection: Any) -> bool:
    return value in collection if isinstance(collection, tuple) else _text(value) in _text(collection)


def _all_numbers(*values: Any) -> list[Fraction]:
    listed = values[0] if len(values) == 1 and isinstance(values[0], tuple) else values
    return [_number(value) for value in listed]


def _some_numbers(*values: Any) -> list[Fraction]:
    numbers = _all_numbers(*values)
    if not numbers:
        raise UndecidedError("there are no numbers")
    return numbers


def _length(value: Any) -> Fraction:
    return Fraction(len(value if isinstance(value, tuple) else _text(value)))


def _rounded(value: Any, digits: Any = Fraction(0)) -> Fraction:
    places = _number(digits)
    if places.denominator != 1 or abs(places) > MOST_DIGITS:
        raise UndecidedError(f"digits are a whole number from -{MOST_DIGITS} to {MOST_DIGITS}")
    return Fraction(round(_number(value), int(places)))


def _as_number(value: Any) -> Fraction:
    if isinstance(value, str):
        number = number_of(value)
        if number is not None:
            return number
    return _number(value)


def _arithmetic(compute: Callable[[Fraction, Fraction], Any]) -> Callable[[Any, Any], Fraction]:
    return lambda left, right: Fraction(compute(_number(left), _number(right)))


def _order(compare: Callable[[Fraction, Fraction], bool]) -> Callable[[Any, Any], bool]:
    return lambda left, right: compare(_number(left), _number(right))


_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: _order(operator.lt),
    ast.LtE: _order(operator.le),
    ast.Gt: _order(operator.gt),
    ast.GtE: _order(operator.ge),
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: _contains,
    ast.NotIn: lambda value, collection: not _contains(value, collection),
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Fraction]] = {
    ast.Add: _arithmetic(operator.add),
    ast.Sub: _arithmetic(operator.sub),
    ast.Mult: _arithmetic(operator.mul),
    ast.Div: _arithmetic(operator.truediv),
    ast.FloorDiv: _arithmetic(operator.floordiv),
    ast.Mod: _arithmetic(operator.mod),
}
_FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "abs": (lambda value: abs(_number(value)), 1, 1),
    "min": (lambda *values: min(_some_numbers(*values)), 1, MOST_PARTS),
    "max": (lambda *values: max(_some_numbers(*values)), 1, MOST_PARTS),
    "len": (_length, 1, 1),
    "sum": (lambda *values: sum(_all_numbers(*values), Fraction(0)), 1, MOST_PARTS),
    "round": (_rounded, 1, 2),
    "int": (lambda value: Fraction(math.trunc(_as_number(value))), 1, 1),
    "float": (_as_number, 1, 1),
    "str": (lambda value: written(value) if isinstance(value, Fraction) else _text(value), 1, 1),
    "lower": (lambda value: _text(value).lower(), 1, 1),
}
"""What each does, and how few and how many arguments it takes."""
