"""Numbers as people write them, and when a completion states one as its answer.

The rule of `find_number`, for a completion that was not cut off. White space is folded and light markup
(`**`, quotes, `$`, `\\boxed{}`) put aside; what is left must be

* a number and nothing else, or
* end with a number that a cue comes right before: `=`, `≈`, `:`, an arrow, `####`, or one of a few words such
  as "is", "equals", "gives", "answer", "total of".

One unit and one final period may follow: a sign or a common unit ("12%", "12 cm", "12 people"), an English plural
("12 apples"), or, after 1, any noun ("1 apple"). Everything else has no answer: "5 and 7", "the divisors of 18", "5
because 7", "12?", "12 wrong", "3 : 4", "12 million", a sum left undone. A looser rule, such as "the
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
    "fifths?|tenths?|hundredths?|pi|tau|sqrt|and/or|"
    "true|false|wrong|right|correct|incorrect|mistaken?|mistakes|errors?|invalid|valid|impossible|undefined|unknown|"
    "yes|nope|maybe|perhaps|possibly|probably|likely|unlikely|roughly|approximately|approx|around|almost|nearly|"
    "exactly|actually|really|instead|only|just|too|also|again|wait|sorry|oops|hmm|guess|sometimes|always|never|none|"
    "nothing|unless|regardless|besides|nevertheless|this|its|does|do|did|means|seems|looks|says|fails|holds|follows|"
    "remains|leaves|left|here|there"
)
# Units that are no English plural.
_UNITS = re.compile(
    "percent|pct|people|men|women|children|feet|foot|inch|teeth|geese|mice|fish|sheep|deer|cattle|dollar|cent|"
    "euro|pound|yen|yuan|rupee|usd|eur|gbp|jpy|cny|inr|chf|meter|metre|kilometer|kilometre|centimeter|centimetre|"
    "millimeter|millimetre|mile|yard|gram|kilogram|milligram|ton|tonne|ounce|liter|litre|milliliter|millilitre|"
    "gallon|hour|minute|second|day|week|month|year|degree|deg|celsius|fahrenheit|kelvin|radian|rad|joule|watt|"
    "volt|ampere|ohm|newton|pascal|hertz|mole|mol|byte|bit|unit|cm|mm|km|nm|kg|mg|ml|lb|oz|ft|yd|hr|min|sec|ms|"
    "mph|kph|kmh|hz|khz|mhz|ghz|kw|mw|kwh|kj|cal|kcal|ev|kb|mb|gb|tb|rpm|bpm|fps|db"
)
_UNIT = (
    r"(?:\s?(?:%|°[CF]?)"
    r"|(?:mm|cm|km|kg|mg|ml|lbs?|oz|ft|mph|hrs?|mins?|secs?)(?:\^?[23]|[²³])?"
    rf"|\s(?:(?:square|cubic)\s)?(?!(?:{_NOT_UNITS})\b)(?:(?P<word>[^\W\d_]{{2,}})(?:/[^\W\d_]+)?|(?-i:[mgshL]))"
    r"(?:\^?[23]|[²³])?)?"
)
_END = rf"{_UNIT}(?:\s?{_CURRENCY})\s?\.?\Z"

_CUE_SYMBOL = r"(?:(?<![!<>~≠])=|≈|→|⇒|=>|->|####|(?<![0-9])(?<![0-9]\s):)\s*"
_CUE_WORD = (
    r"\b(?:is|are|was|were|be|equals?|equal to|gives?|gets?|makes?|yields?|becomes?|answer|result|total of"
    r"|(?:it|that)['’]s)\s+"
    r"(?:(?:exactly|simply|just|only|then|therefore|thus)\s+)?"
)

_BARE = re.compile(rf"\A{_NUMBER}{_END}", re.IGNORECASE)
_STATED = re.compile(rf"(?:\A|{_CUE_SYMBOL}|{_CUE_WORD}){_NUMBER}{_END}", re.IGNORECASE)

# A minus sign belongs to a number unless something that it could subtract from stands right before it.
_ANYWHERE = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")

_FRAC = re.compile(  # \frac{1}{2}, \frac12 and all between
    rf"([{_MINUS}]?)\s*\\[cdt]?frac\s*(?:\{{([0-9]+)\}}|([0-9]))\s*(?:\{{([0-9]+)\}}|([0-9])(?![0-9]))"
)
_DIGIT = re.compile(r"[0-9]")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_MARKUP = re.compile(r'[*`"“”]|\\[()\[\]]')


def find_number(text: str, *, any_unit: bool = False) -> str | None:
    """The number that `text` states as its answer, sign and digits as written; None where it states none.

    With `any_unit`, whatever word follows is taken for its unit: for references, which contradict nothing.
    """
    return _written(_search(_STATED, text, any_unit))


def number_span(text: str) -> tuple[int, int] | None:
    """Where the number that `find_number` finds stands in `text`, its sign included, units and currency behind it not;
    all of a \\frac. None where it finds none."""
    match = _search(_STATED, text)
    if match is None:
        return None
    # No digit stands behind the number but the exponent of its unit, so that the last occurrence is the right one.
    exponent = _DIGIT.search(match.string, match.end("body"))
    limit = text.rindex(exponent[0]) if exponent else len(text)
    start = text.rfind(match["body"], 0, limit)
    end = start + len(match["body"])
    fractions = [fraction.span() for fraction in _FRAC.finditer(text, 0, limit)]
    if fractions and fractions[-1][1] > end:
        return fractions[-1]
    return (text.rindex(match["sign"], 0, start) if match["sign"] else start), end


def bare_number(text: str) -> str | None:
    """The number that `text` consists of, unit and period aside; None for anything else."""
    return _written(_search(_BARE, text))


def numbers_in(text: str) -> list[str]:
    """All numbers that stand in a text, in order, without thousands separators: what a question is about, where
    `find_number` says what a completion answers."""
    return [number.replace(",", "") for number in _ANYWHERE.findall(text)]


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


def _search(pattern: re.Pattern[str], text: str, any_unit: bool = False) -> re.Match[str] | None:
    """A match in `_plain(text)`."""
    match = pattern.search(_plain(text))
    if match is None or len(match["body"]) > _LONGEST:
        return None
    body = match["body"]
    if not any_unit and match["word"] is not None and not _is_unit(match["word"].casefold(), body):
        return None
    if "/" in body and not body.split("/")[1].strip("0"):
        return None
    return match


def _written(match: re.Match[str] | None) -> str | None:
    if match is None:
        return None
    return ("-" if match["sign"] and match["sign"] in _MINUS else "") + match["body"]


def _is_unit(word: str, number: str) -> bool:
    return word.endswith("s") or _UNITS.fullmatch(word) is not None or number == "1"


def _plain(text: str) -> str:
    text = " ".join(text.split())  # before any pattern: on a long run of white space \s* takes quadratic time
    text = _FRAC.sub(r" \1\2\3/\4\5 ", text)
    text = _BOXED.sub(r" \1 ", text).replace(r"\$", "$").replace(r"\%", "%")
    # A space, not nothing: 3*4 must not become 34.
    return " ".join(_MARKUP.sub(" ", text).split())
