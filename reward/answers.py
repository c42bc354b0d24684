"""Finds the answer in a completion, and spells equal answers alike so that they can be counted.

An answer must stand where an answer stands, and a truncated completion has none. Each kind of `AnswerConfig`
has two steps: `find_answer` returns the answer as written, `canonical_answer` its canonical spelling. Two
answers are the same vote exactly when their canonical spellings are equal.
"""

import re
from collections.abc import Callable

from reward.config import AnswerConfig
from reward.numerals import bare_number, canonical_number, find_number
from rollouts.types import Rollout


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
    if rollout.truncated:
        return None
    text = rollout.text
    stop = next((stop for stop in rollout.sampling.stop if text.endswith(stop)), "")
    if config.kind in ("boxed", "tag"):  # these find their answer between marks of their own
        return find_answer(text, config)
    if config.kind == "regex" and stop:  # the pattern may count on the stop string, or on the end before it
        found = find_answer(text, config)
        if found is not None:
            return found.removesuffix(stop).strip() or None
    return find_answer(text.removesuffix(stop), config)


def find_answer(text: str, config: AnswerConfig) -> str | None:
    """The answer in the text of a finished completion, as written, without surrounding space; None where
    there is none."""
    found = _find(text, config)
    return (found.strip() or None) if found is not None else None


def canonical_answer(answer: str, config: AnswerConfig) -> str:
    """The spelling shared by all answers that count as the same.

    `answer` is a found answer or a reference. Numbers become plain decimals (see
    `numerals.canonical_number`); other text is folded: white space, and case too except inside \\boxed{},
    where x and X are different variables.
    """
    if config.kind == "choice":
        return (_choice(answer) or answer.strip(" ().:")).upper()
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


def _find(text: str, config: AnswerConfig) -> str | None:
    match config.kind:
        case "number":
            return find_number(text)
        case "text":
            return text
        case "boxed":
            return _last_boxed(text)
        case "tag":
            tag = re.escape(config.tag)
            return _last(rf"(?s)<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", text)
        case "regex":
            return _last(config.pattern or "", text)
        case "choice":
            return _choice(text)


def _last(pattern: str, text: str) -> str | None:
    matches = [match[1] for match in re.finditer(pattern, text)]
    return matches[-1] if matches else None


def _last_boxed(text: str) -> str | None:
    """Content of the last \\boxed{...}, its own braces balanced; None where it is never closed."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
    return None


_BARE_CHOICE = re.compile(r"\A\(?([A-Za-z])[).:]{0,2}\Z")
_STATED_CHOICE = re.compile(
    r"(?:[:=]\s*|(?i:\b(?:is|answer|option|choice|choose)\s+))(?i:option\s+)?\(?([A-Z])\)?\s?\.?\Z"
)
_LABELLED_CHOICE = re.compile(r"(?:\A|\s)\(?([A-Z])[).:](?=\s)")


def _choice(text: str) -> str | None:
    """A letter alone ("B", "(b)."), stated at the end ("The answer is (B)."), or labelling the one option
    that is written out ("B) Paris"). A text that labels several options chooses none."""
    text = " ".join(re.sub(r'[*`"]', " ", text).split())
    for pattern in (_BARE_CHOICE, _STATED_CHOICE):
        match = pattern.search(text)
        if match:
            return match[1]
    labels = _LABELLED_CHOICE.findall(text)
    labelled = _LABELLED_CHOICE.match(text)
    return labelled[1] if labelled and len(labels) == 1 else None
