"""Finds the answer in a completion, and spells equal answers alike so that they can be counted.

An answer must stand where an answer stands, and a truncated completion has none. Each kind of `AnswerConfig`
has two steps: `find_answer` returns the answer as written, `canonical_answer` its canonical spelling. Two
answers with one canonical spelling are one vote; `reward.equivalence` merges others that mean the same.
"""

import re
from collections.abc import Callable

import regex

from reward.config import AnswerConfig
from reward.numerals import bare_number, canonical_number, find_number, number_span
from reward.patterns import TIME_LIMIT
from rollouts.types import Rollout

Span = tuple[int, int]
"""The first character, and one past the last."""


def make_extractor(config: AnswerConfig) -> Callable[[Rollout], str | None]:
    """The canonical answer of a rollout; None where it was truncated or states no answer.

    This is what `RewardContext.extract` wants, and what votes are counted over.
    """

    def extract(rollout: Rollout) -> str | None:
        found = answer_in_rollout(rollout, config)
        return None if found is None else canonical_answer(found, config)

    return extract


def answer_in_rollout(rollout: Rollout, config: AnswerConfig) -> str | None:
    """The answer of a rollout as written; None where it was truncated or states no answer."""
    span = answer_span(rollout, config)
    return None if span is None else _written(rollout.text, span, config)


def answer_span(rollout: Rollout, config: AnswerConfig) -> Span | None:
    """Where the answer of a rollout stands in its text; None where it was truncated or states no answer."""
    if rollout.truncated:
        return None
    text = rollout.text
    stop = next((stop for stop in rollout.sampling.stop if text.endswith(stop)), "")
    if config.kind in ("boxed", "tag"):  # these find their answer between marks of their own
        return find_span(text, config)
    if config.kind == "regex" and stop:  # the pattern may count on the stop string, or on the end before it
        found = find_span(text, config)
        if found is not None:
            start, end = found
            return _stripped(text, start, end - len(stop) if text.endswith(stop, start, end) else end)
    return find_span(text.removesuffix(stop), config)


def find_answer(text: str, config: AnswerConfig) -> str | None:
    """The answer in the text of a finished completion, as written, without surrounding space; None where
    there is none."""
    span = find_span(text, config)
    return None if span is None else _written(text, span, config)


def find_span(text: str, config: AnswerConfig) -> Span | None:
    """Where the answer stands in the text of a finished completion; None where there is none."""
    span = _find(text, config)
    return None if span is None else _stripped(text, *span)


def canonical_answer(answer: str, config: AnswerConfig) -> str:
    """The spelling shared by all answers that count as the same.

    `answer` is a found answer or a reference. Numbers become plain decimals (see
    `numerals.canonical_number`); other text is folded: white space, and case too except inside \\boxed{},
    where x and X are different variables.
    """
    if config.kind == "choice":
        letter = _choice(answer)
        return (answer[slice(*letter)] if letter else answer.strip(" ().:")).upper()
    if config.kind == "number":
        number = find_number(answer)
        return fold(answer) if number is None else canonical_number(number)
    if config.kind == "text":
        return fold(answer)
    number = bare_number(answer)
    if number is not None:
        return canonical_number(number)
    return fold(answer, case=config.kind != "boxed")


def fold(text: str, *, case: bool = True) -> str:
    """Runs of white space become one space; with `case`, letters lose their case."""
    text = " ".join(text.split())
    return text.casefold() if case else text


def _written(text: str, span: Span, config: AnswerConfig) -> str | None:
    written = text[slice(*span)]
    return find_number(written) if config.kind == "number" else written


def _stripped(text: str, start: int, end: int) -> Span | None:
    """The span without surrounding space; None where nothing is left."""
    start += len(text[start:end]) - len(text[start:end].lstrip())
    end = start + len(text[start:end].rstrip())
    return (start, end) if start < end else None


def _find(text: str, config: AnswerConfig) -> Span | None:
    match config.kind:
        case "number":
            return number_span(text)
        case "text":
            return 0, len(text)
        case "boxed":
            return _last_boxed(text)
        case "tag":
            tag = re.escape(config.tag)
            return _last(rf"(?s)<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", text)
        case "regex":
            return _last(config.pattern or "", text)
        case "choice":
            return _choice(text)


def _last(pattern: str, text: str) -> Span | None:
    """Of group 1 in the last match; None where that group took no part, and where the search takes too long."""
    try:
        spans = [match.span(1) for match in regex.finditer(pattern, text, timeout=TIME_LIMIT)]
    except TimeoutError:
        return None
    return spans[-1] if spans and spans[-1][0] >= 0 else None


def _last_boxed(text: str) -> Span | None:
    """Content of the last \\boxed{...}, its own braces balanced; None where it is never closed."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return start, position
    return None


_BARE_CHOICE = re.compile(r"\A\(?([A-Za-z])[).:]{0,2}\Z")
_STATED_CHOICE = re.compile(
    r"(?:[:=]\s*|(?i:\b(?:is|answer|option|choice|choose)\s+))(?i:option\s+)?\(?([A-Z])\)?\s?\.?\Z"
)
_LABELLED_CHOICE = re.compile(r"(?:\A|\s)\(?([A-Z])(?:[.:](?=\s)|\)(?=[\s.,;:]|\Z))")


def _choice(text: str) -> Span | None:
    """A letter alone ("B", "(b)."), stated at the end ("The answer is (B)."), or labelling the one option
    that is written out ("B) Paris"). A text that labels several options chooses none."""
    words = list(re.finditer(r"[^\s*`\"]+", text))
    folded = " ".join(word[0] for word in words)
    places = [place for word in words for place in range(word.start(), word.end() + 1)]  # of each folded character

    def letter(match: re.Match[str]) -> Span:
        return places[match.start(1)], places[match.start(1)] + 1

    for pattern in (_BARE_CHOICE, _STATED_CHOICE):
        match = pattern.search(folded)
        if match:
            return letter(match)
    labelled = _LABELLED_CHOICE.match(folded)
    return letter(labelled) if labelled and len(set(_LABELLED_CHOICE.findall(folded))) == 1 else None
