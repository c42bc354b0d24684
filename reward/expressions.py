"""When one mathematical expression is the same answer as another.

math-verify evaluates what it reads, so that it takes "7 + 5" for 12, and it reads a word as a product of variables, so
that it takes "listen" for "silent". Both are kept from it here.
"""

import math
import re

from reward.math_process import Verdict, shared_process
from reward.numerals import canonical_number, find_number


def same_expression(reference: str, answer: str) -> Verdict:
    """Whether `answer`, LaTeX or plain, is right where `reference` is: what is not refused is math-verify's to say.

    Raises:
        RewardError: the math-verify process does not start.
    """
    note = refusal(reference, answer)
    if note is not None:
        return Verdict(False, None, note)
    if _states_number(reference):
        answer = answer.rpartition("=")[2]
        number = find_number(unwrapped(answer))
        if number is not None and canonical_number(number) == stated_number(unwrapped(reference)):
            return Verdict(True, canonical_number(number))  # 1e3 is a product with Euler's number to math-verify
    return shared_process().compare(reference, answer)


def refusal(reference: str, answer: str) -> str | None:
    """Why `answer` cannot be right where `reference` is, whatever math-verify says; None where it may be.

    Where the reference is a plain number, the answer must be one as well (a fraction in lowest terms counts), alone or
    as the last part of an equation that names no other candidates; expressions are compared with expressions. Where
    both are in words, they must be the same words in the same order.
    """
    if _states_number(reference):
        before, _, last = answer.rpartition("=")
        several = _SEVERAL.search(_THOUSANDS.sub("", before))
        return None if is_finished_number(last) and not several else "not a finished number"
    words, others = _words(unwrapped(reference)), _words(unwrapped(answer))
    return "other words" if words and others and words != others else None


def stated_number(text: str) -> str | None:
    """The canonical number that a reference states, whatever its unit; None where it states none."""
    number = find_number(text, any_unit=True)
    return None if number is None else canonical_number(number)


def is_finished_number(text: str) -> bool:
    """Whether nothing is left to be worked out: 12/4 and 2 · 3 are unfinished, 1/2 and 1.2 · 10^3 are not."""
    text = unwrapped(text)
    written = find_number(text)
    if written is None:
        return _SCIENTIFIC.fullmatch(text) is not None
    number = canonical_number(written)
    if "/" not in number:
        return True
    over, under = (int(part) for part in number.split("/"))
    return under > 1 and math.gcd(over, under) == 1


def unwrapped(text: str) -> str:
    """The text without LaTeX's dress around numbers: units in \\text{}, degrees, thin spaces."""
    return _WRAPPING.sub(r"\1", text).replace("{,}", ",").strip()


def _states_number(reference: str) -> bool:
    return stated_number(unwrapped(reference)) is not None


def _words(text: str) -> list[str]:
    """The runs of letters of a text in words: one that has a run of three or more, which is no product of variables.
    Empty for other texts; LaTeX's commands and the names of functions are no words."""
    runs = _LETTERS.findall(_COMMAND.sub(" ", text).casefold())
    return runs if any(len(run) > 2 for run in runs) else []


_WRAPPING = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}|\^\{?\\circ\}?|\\[,!; ]")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:,|\{,\})(?=[0-9]{3})")
# Signs that a text offers several values.
_SEVERAL = re.compile(r"[,;±]|\\[{}]|\\[pm]{2}\b|\\(?:lor|vee|cup|mid)\b|\b(?:or|and)\b")
_SCIENTIFIC = re.compile(r"\$?[-−+]?[0-9]+(?:\.[0-9]+)?\s*(?:\\times|\\cdot|×)\s*10\^(?:\{[-−+]?[0-9]+\}|[0-9])\$?\.?")
_COMMAND = re.compile(
    r"\\(?:begin|end)\{[^{}]*\}|\\[A-Za-z]+|(?<![A-Za-z])(?:sqrt|exp|log|(?:arc)?(?:sin|cos|tan))(?![A-Za-z])"
)
_LETTERS = re.compile(r"[^\W\d_]+")
