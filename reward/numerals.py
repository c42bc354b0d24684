"""Numbers as people write them, and when a completion states one as its answer.

The rule of `find_number`, for a completion that was not cut off. White space is folded and light markup
(`**`, quotes, `$`, `\\boxed{}`) put aside; what is left must be

* a number and nothing else, or
* end with a number that a cue comes right before: `=`, `≈`, `:`, an arrow, `####`, or one of a few words such
  as "is", "equals", "gives", "answer", "total of".

One unit ("12 apples", "12 cm", "12%") and one final period may follow. Everything else has no answer: "5 and
7", "the divisors of 18", "5 because 7", "12?", "12 million", a sum left undone. A looser rule, such as "the
last number", pays for what was never said: completions drift to sentences that happen to end on an operand,
and that operand is right often enough to be learned.

A number has ASCII digits, an optional sign that touches them, `,` between groups of exactly three digits, `.`
before decimals, and possibly an exponent (`1e3`), or is a fraction of two integers (`1/2`). A fraction is
kept as it was written: if 12/4 counted as 3, repeating the question would be an answer to it.
"""

import re
from decimal import Decimal
from fractions import Fraction

_LONGEST = 1000  # characters; beyond it Python's own integer conversion gives up, and nobody means such a number

_MINUS = "−–-"  # "-" last: it stands in character classes
_CURRENCY = r"[$€£¥₹]{0,2}"
_DECIMAL = r"(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?"
_NUMBER = rf"{_CURRENCY}\s?(?P<sign>[+{_MINUS}]?){_CURRENCY}(?P<body>[0-9]+/[0-9]+|{_DECIMAL})"

# Words that, after a number, change it or go on with the sentence: no units.
_NOT_UNITS = (
    "a|an|and|or|nor|but|not|no|if|when|while|because|since|as|so|then|thus|therefore|which|that|who|the|it|with|without|"
    "in|on|at|by|from|to|of|for|per|out|into|than|versus|vs|about|more|less|fewer|plus|minus|times|over|mod|modulo|"
    "divided|multiplied|added|subtracted|squared|cubed|factorial|raised|is|are|was|were|be|isn|equals?|gives?|makes?|"
    "has|have|hundreds?|thousands?|millions?|billions?|trillions?|dozens?|tens?|half|halves|thirds?|quarters?|fourths?|"
    "fifths?|tenths?|hundredths?|pi|tau|sqrt|and/or"
)
_UNIT = (
    r"(?:\s?(?:%|°[CF]?)"
    r"|(?:mm|cm|km|kg|mg|ml|lbs?|oz|ft|mph|hrs?|mins?|secs?)(?:\^?[23]|[²³])?"
    rf"|\s(?:(?:square|cubic)\s)?(?!(?:{_NOT_UNITS})\b)(?:[^\W\d_]{{2,}}(?:/[^\W\d_]+)?|(?-i:[mgshL]))(?:\^?[23]|[²³])?)?"
)
_END = rf"{_UNIT}(?:\s?{_CURRENCY})\s?\.?\Z"

_CUE_SYMBOL = r"(?:(?<![!<>~≠])=|≈|→|⇒|=>|->|####|(?<![0-9]):)\s*"
_CUE_WORD = (
    r"\b(?:is|are|was|were|be|equals?|equal to|gives?|gets?|makes?|yields?|becomes?|answer|result|total of"
    r"|(?:it|that)['’]s)\s+"
    r"(?:(?:exactly|simply|just|only|then|therefore|thus)\s+)?"
)

_BARE = re.compile(rf"\A{_NUMBER}{_END}", re.IGNORECASE)
_STATED = re.compile(rf"(?:\A|{_CUE_SYMBOL}|{_CUE_WORD}){_NUMBER}{_END}", re.IGNORECASE)

_FRAC = re.compile(rf"([{_MINUS}]?)\s*\\[dt]?frac\{{([0-9]+)\}}\{{([0-9]+)\}}")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_MARKUP = re.compile(r'[*`"“”]|\\[()\[\]]')


def find_number(text: str) -> str | None:
    """The number that `text` states as its answer, sign and digits as written; None where it states none."""
    return _search(_STATED, text)


def bare_number(text: str) -> str | None:
    """The number that `text` consists of, unit and period aside; None for anything else."""
    return _search(_BARE, text)


def canonical_number(number: str) -> str:
    """One spelling for equal numbers: 12 for 12.0, +12 and 012; 1000 for 1,000 and 1e3; 0 for -0. Fractions
    stay fractions.

    `number` is what `find_number` or `bare_number` returned.
    """
    sign = "-" if number[0] == "-" else ""
    body = number.lstrip("+-")
    if "/" in body:
        over, under = (part.lstrip("0") or "0" for part in body.split("/"))
        return f"{sign}{over}/{under}"
    plain = format(Decimal(body.replace(",", "")), "f")
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    plain = plain.lstrip("0") or "0"
    plain = f"0{plain}" if plain.startswith(".") else plain
    return plain if plain == "0" else sign + plain


def number_value(canonical: str) -> Fraction:
    """The exact value of a canonical number."""
    return Fraction(canonical)


def _search(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(_plain(text))
    if match is None or len(match["body"]) > _LONGEST:
        return None
    body = match["body"]
    if "/" in body and not body.split("/")[1].strip("0"):
        return None
    return ("-" if match["sign"] and match["sign"] in _MINUS else "") + body


def _plain(text: str) -> str:
    text = _FRAC.sub(r" \1\2/\3 ", text)
    text = _BOXED.sub(r" \1 ", text).replace(r"\$", "$").replace(r"\%", "%")
    # A space, not nothing: 3*4 must not become 34.
    return " ".join(_MARKUP.sub(" ", text).split())
