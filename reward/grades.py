"""Reads from a judge's words which grade it gives."""

import re
from typing import Any

from reward.asking import find_json_object

_NUMBER = r"((?<![\w.,/-])-?[0-9]+(?:\.[0-9]+)?(?![\w/]|[.,][0-9]))"

_STANDS = r"""(?=
    (?: [ ](?:points?|stars?)\b )?
    [ "'`)\]}>]*
    (?: \Z | \n
      | [.!](?:\s|\Z)
      | ;
      | \((?!\s*(?:out\b|of\b|/))             # not "5 (out of 10)"
      | ,(?!\s*[0-9])                         # not "3, 4"
      | :(?!\s*[(0-9])                        # not "5: 3"
      | [-–—](?!\s*(?:[(0-9]                  # not "5 - 3"
                     |[b-hj-z]\b              # not "5 - x"
                     |[ai]\b(?![ ][a-z]{2})   # not "5 - a", but "5 - a good answer"
                     |(?:one|two|three|four|five|six|seven|eight|nine|ten)[ ](?:is|makes|gives|equals|leaves)\b))
      | (?:because|since|as[ ]it|as[ ]the(?![ ](?:answer|sum|result|total|value)))\b
    )
)"""
"""What may follow a number that is given as a grade: the end, a pause, a reason; no sum, range, condition or scale."""

_LABEL = r"\b(?:grade|score|rating)\b"
_I_GIVE = r"I(?:['’](?:d|ll))?(?:[ ](?!(?:not|never|cannot)\b)\w+){0,2}[ ](?:give|rate|assign|award|say(?=[ ]an?[ ]))"
_WHAT = r"(?:[ ](?:it|this|that|the|an?|proposed|answer|grade|score|rating|of|as)){0,12}"
_CALLED = re.compile(
    rf"""(?ix)
    (?: {_LABEL}(?:[ ](?:is|of|would[ ]be))?
      | \b(?:{_I_GIVE}|(?:give|rate|assign|award)(?:[ ](?:it|this|that)\b|s[ ](?:it|this|that)[ ]an?\b)){_WHAT}
    ) [ :=]{{0,9}} {_NUMBER}"""
    + _STANDS
)
"""A number that is called a grade, or given as one, and not spoken about ("Grade 1 is too harsh", "I give 5 if")."""
_LABELLED = re.compile(
    rf"""(?ix) {_LABEL} ["'`)\]]{{0,3}} [ ]{{0,9}} [:=] [ \n]{{0,9}} [\[({{<"'`]{{0,3}} {_NUMBER}
    (?:"""
    + _STANDS
    + r"| (?= [ ](?-i:[A-Z]) ))"
)
"""A grade as a form would state it ("Grade: 4", "Rating: [[4]]"); of several that are called grades, these count."""

_OWN_LINE = re.compile(rf"(?ix) (?:\A|\n|[;,][ ]?) [^\w\n-]{{0,9}} {_NUMBER}" + _STANDS)
"""A number that opens the reply, or a line or an item behind it."""
_NUMBERS_A_SENTENCE = re.compile(r"""[ "')\]]*[.!][^\S\n]*\S""")
"""What follows the 1 of "1. The answer is correct"."""
_ECHO = "\ue000"
"""Stands where the scale was repeated."""
_AFTER_ECHO = re.compile(rf"(?ix) (?!.*\banswer) [^0-9.;\n]{{0,60}}? {_NUMBER}" + _STANDS)

_NO_GRADE = re.compile(
    r"(?i)(?:\b(?:max(?:imum|imal)?|min(?:imum|imal)?|(?:high|low|b)est|worst|top|full|possible"
    r"|(?:can)?not|never|nobody|none|no one)|n['’]t)\b[\w ']*\Z"
    r"|\b(?:average|mean|median|total|sum|class|team|test|in|no|hardly)[ ]\Z"
)
"""Before a number that is called a grade, but is not the one that is given."""
_DRAWN = r"so|hence|thus|therefore"
_DRAWS = re.compile(rf"(?i)\b(?:{_DRAWN})\b")
"""What comes behind is a conclusion, and no condition binds it: "I checked if it is right, so I give it 5"."""
_CONCLUDES = re.compile(rf"(?i)\b(?:{_DRAWN}|and|but|then)\b")
"""What goes before is another statement: "It is not right, and so I give it 1"."""
_SUPPOSES = re.compile(
    r"(?i)\b(?:if|unless|otherwise|had (?:it|this|that|the)|(?:was|were) going to"
    r"|an? (?:right|correct|perfect|wrong) answer would)\b"
)
"""A condition of the sentence, from which nothing was drawn yet: what is said in it is the grade of another answer."""
_OWN_ANSWER = re.compile(r"(?i)\b(?:give\b.*\banswer(?: as)?|rate\b.*\banswer) -?[0-9.]+\Z")
"""The judge solves the task itself ("I would give the answer as 4"), or names the answer that it speaks of."""
_MAY_GO_ON = re.compile(r"[ .,:;(–—-]*")
"""Behind the last number of a reply that was cut off: of "4." or "5 -" nobody knows what it was going to be."""


def parse_grade(
    text: str, low: float, high: float, *, truncated: bool = False, labelled_only: bool = False
) -> float | None:
    """The grade in a judge's reply: the number that it writes as one ("Grade: 4"); else the one that it calls its
    grade, score or rating, or says that it gives; else the one behind an echo of the scale ("From 1 to 5: 4"), or one
    that opens the reply ("4", "4, because"). Echoes of the scale are put aside: "1 to 5", "from 1 (wrong) to 5
    (right)", "between 1 and 5", "/5", "out of 5".

    None where there is no such number (other numbers may be the answer itself, or count reasons), where different ones
    are written as its grade, or are called it and none is written as one, or stand one below the other; where it lies
    outside [low, high], or where the reply was cut off behind it, so that digits may be missing.

    Args:
        labelled_only: whether it has to be written as a grade, called one or given, as where reasons go before it.
    """
    text = re.sub(r"\s*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", text.replace("−", "-").replace("*", "")))
    text = _without_scale(text, low, high)
    found = _given(_LABELLED, text) or _given(_CALLED, text)
    if not found and not labelled_only:
        found = _behind_echo(text) or _opening(text)
    if len({number for number, _ in found}) != 1:
        return None
    number, end = found[-1]
    if truncated and _MAY_GO_ON.fullmatch(text, end):
        return None
    return number if low <= number <= high else None


Found = list[tuple[float, int]]
"""Numbers, and where in the text each ends."""


def _given(pattern: re.Pattern[str], text: str) -> Found:
    return [(float(m[1]), m.end(1)) for m in pattern.finditer(text) if not _speaks_of_another(text, m)]


def _speaks_of_another(text: str, match: re.Match[str]) -> bool:
    said = text[max(0, match.start() - 300) : match.start()]
    sentence = _DRAWS.split(re.split(r"[.!?;\n]", said)[-1])[-1]
    if _SUPPOSES.search(sentence) or _OWN_ANSWER.search(match[0]):
        return True
    before = _CONCLUDES.split(said[-60:])[-1]
    is_listed = "\n" in match[0] and _NUMBERS_A_SENTENCE.match(text, match.end(1)) is not None
    return is_listed or _NO_GRADE.search(before) is not None


def _behind_echo(text: str) -> Found:
    place = text.rfind(_ECHO)
    match = _AFTER_ECHO.match(text, place + 1) if place >= 0 else None
    return [(float(match[1]), match.end(1))] if match else []


def _opening(text: str) -> Found:
    """Where one opens the reply, it and those that stand below it or behind it as an item."""
    found = list(_OWN_LINE.finditer(text))
    if not found or found[0].start() != 0 or _NUMBERS_A_SENTENCE.match(text, found[0].end(1)):
        return []
    return [(float(match[1]), match.end(1)) for match in found]


def _without_scale(text: str, low: float, high: float) -> str:
    """A reply in which a mark stands for each echo of the scale."""
    bottom, top = (rf"{re.escape(f'{bound:g}')}(?:\.0)?(?![0-9.]*[0-9])" for bound in (low, high))
    meaning = r"\s*(?:\([^()]*\)|(?:,|=|being\b|meaning\b)[^0-9.;:()]{1,40}?,?)?\s*"
    text = re.sub(rf"(?i)(?<![\w.]){bottom}{meaning}(?:(?:up )?to|-|–|through)\s*{top}", _ECHO, text)
    text = re.sub(rf"(?i)\bbetween\s+{bottom}{meaning}and\s+{top}", _ECHO, text)
    text = re.sub(rf"(?i)(?<![\w.]){bottom}\s+being\b[^0-9.;:()]{{1,40}}?\band\s+{top}", _ECHO, text)
    text = re.sub(rf"(?i)\b(?:from|between)\s+{bottom}[^0-9]*\Z", _ECHO, text)  # the reply ends within the echo
    return re.sub(rf"\s*(?:/|\bout of\b)\s*{top}", "", text)


def parse_json_grade(text: str, low: float, high: float) -> float | None:
    """The number that the first JSON object in a reply calls "grade"; None where it is none in [low, high]."""
    grade = (find_json_object(text) or {}).get("grade")
    if isinstance(grade, bool) or not isinstance(grade, int | float) or not low <= grade <= high:
        return None
    return float(grade)


def grade_schema(low: float, high: float) -> dict[str, Any]:
    """JSON schema of a grade and nothing else."""
    return {
        "type": "object",
        "properties": {"grade": {"type": "number", "minimum": low, "maximum": high}},
        "required": ["grade"],
        "additionalProperties": False,
    }
