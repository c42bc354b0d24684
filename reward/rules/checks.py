"""How each kind of rule is checked on a completion."""

import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any, NoReturn

import regex

from reward.base import prompt_of
from reward.config import DetectorRule, ExpressionRule, FormatRule, PatternRule, RuleConfig, WordsRule
from reward.config.rules import VARIABLES
from reward.excerpts import excerpt, shortened
from reward.numerals import numbers_in
from reward.patterns import TIME_LIMIT
from reward.rules.detectors import Span, detect, stands_in
from reward.rules.expressions import Expression, UndecidedError, Value, number_of, written
from reward.rules.words import WordFinder, read_words
from reward.types import RewardContext
from rollouts.types import Prompt, Rollout

MOST_SHOWN = 5
"""Places at which a rule is broken that the evidence names."""


@dataclass(frozen=True, slots=True)
class Breach:
    """Why a rule is broken."""

    why: str
    found: tuple[Mapping[str, Any], ...] = ()
    """Excerpts of the completion."""


Check = Callable[[Rollout, RewardContext], Breach | None]
"""None: the rule is kept."""


def make_check(rule: RuleConfig) -> Check:
    """Raises RewardError where the rule's file of words cannot be read."""
    match rule:
        case PatternRule():
            return _pattern(rule)
        case WordsRule():
            return _words(rule)
        case ExpressionRule():
            return _expression(rule)
        case FormatRule():
            return _SHAPES[rule.shape]
        case DetectorRule():
            return _detectors(rule)


def _pattern(rule: PatternRule) -> Check:
    source = rule.require or rule.forbid or ""
    pattern = regex.compile(source)

    def check(rollout: Rollout, context: RewardContext) -> Breach | None:
        text = _said(rollout)
        try:
            match = pattern.search(text, timeout=TIME_LIMIT)
        except TimeoutError:  # a breach either way: otherwise such completions would pay
            context.count("timed_out", 1)
            return Breach(f"{source!r} took longer than {TIME_LIMIT:g} s")
        if rule.require is not None:
            return None if match else Breach(f"{source!r} is nowhere in it")
        return None if match is None else Breach(f"{source!r} is in it", (excerpt(text, *match.span()),))

    return check


def _words(rule: WordsRule) -> Check:
    finder = WordFinder([*rule.words, *(() if rule.file is None else read_words(rule.file))])

    def check(rollout: Rollout, context: RewardContext) -> Breach | None:
        text = _said(rollout)
        found = _excerpts(text, finder.find(text))
        return Breach("words that must not occur", found) if found else None

    return check


def _expression(rule: ExpressionRule) -> Check:
    expression = Expression(rule.holds, VARIABLES)

    def check(rollout: Rollout, context: RewardContext) -> Breach | None:
        values = _variables(rollout, context)
        try:
            if expression.holds(values):
                return None
            why = f"`{rule.holds}` does not hold"
        except UndecidedError as error:
            why = f"`{rule.holds}` cannot be decided: {error}"
        known = ", ".join(f"{name} = {_shown(values[name])}" for name in expression.names)
        return Breach(f"{why}; {known}" if known else why)

    return check


def _variables(rollout: Rollout, context: RewardContext) -> dict[str, Value]:
    """What an expression may speak of; the keys are `VARIABLES`."""
    answer = context.extract(rollout)
    number = None if answer is None else number_of(answer)
    question = prompt_of(rollout, context).text
    numbers = (number_of(written) for written in numbers_in(question))
    return {
        "answer": answer if number is None else number,
        "text": _said(rollout),
        "question": question,
        "numbers": tuple(number for number in numbers if number is not None),
        "tokens": Fraction(len(rollout.completion_ids)),
    }


def _shown(value: Value) -> str:
    match value:
        case None:
            return "None"
        case str():
            return repr(shortened(value, 60))
        case tuple():
            return shortened(f"[{', '.join(map(written, value))}]", 60)
        case _:
            return shortened(written(value), 60)


def _detectors(rule: DetectorRule) -> Check:
    def check(rollout: Rollout, context: RewardContext) -> Breach | None:
        asked = _all_words(prompt_of(rollout, context))
        text = _said(rollout)
        found: list[dict[str, Any]] = []
        for kind in rule.forbid:
            new = (span for span in detect(kind, text) if not stands_in(text[slice(*span)], asked))
            found += [{"kind": kind, **place} for place in _excerpts(text, new)]
        kinds = dict.fromkeys(place["kind"] for place in found)
        return Breach(", ".join(kinds), tuple(found[:MOST_SHOWN])) if found else None

    return check


def _all_words(prompt: Prompt) -> str:
    if isinstance(prompt.content, str):
        return prompt.content
    return "\n".join(message["content"] for message in prompt.content)


def _excerpts(text: str, spans: Iterable[Span]) -> tuple[dict[str, Any], ...]:
    return tuple(excerpt(text, *span) for span in islice(spans, MOST_SHOWN))


def _is_json(rollout: Rollout, context: RewardContext) -> Breach | None:
    text = _said(rollout)
    try:  # numbers stay text: Python reads only so many digits
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        place = (error.pos, min(error.pos + 1, len(text)))
        return Breach(f"no JSON: {error.msg}", _excerpts(rollout.text, [place]))
    except (RecursionError, ValueError) as error:
        return Breach(f"no JSON: {'nested too deeply' if isinstance(error, RecursionError) else error}")
    return None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is a number of JavaScript, not of JSON")


def _has_answer(rollout: Rollout, context: RewardContext) -> Breach | None:
    if context.extract(rollout) is not None:
        return None
    return Breach("cut off: it has no answer" if rollout.truncated else "no answer stands where one should")


def _is_complete(rollout: Rollout, context: RewardContext) -> Breach | None:
    return Breach(f"cut off at {rollout.sampling.max_tokens} tokens") if rollout.truncated else None


def _says_something(rollout: Rollout, context: RewardContext) -> Breach | None:
    is_visible = any(unicodedata.category(character)[0] not in "ZC" for character in _said(rollout))
    return None if is_visible else Breach("nothing but white space and invisible characters")


def _said(rollout: Rollout) -> str:
    """The completion without the stop string that ended it."""
    return rollout.text.removesuffix(next((s for s in rollout.sampling.stop if rollout.text.endswith(s)), ""))


_SHAPES: dict[str, Check] = {
    "json": _is_json,
    "answer": _has_answer,
    "complete": _is_complete,
    "nonempty": _says_something,
}
