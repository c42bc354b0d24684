"""Reads from a judge's words which of two texts it prefers."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from reward.answers import find_answer
from reward.asking import find_json_object
from reward.config import AnswerConfig
from reward.types import Reply

Verdict = Literal["A", "B"]
"""The text shown first, or the one shown second."""

VERDICT_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"better": {"type": "string", "enum": ["A", "B"]}},
    "required": ["better"],
    "additionalProperties": False,
}

_CHOICE = AnswerConfig(kind="choice")
_NOUN = r"(?i:answer|response|option|choice|judge|judge?ment)"
_CLAUSE_END = re.compile(r"[.!?;,\n]+|\s[-–—]+\s|\b(?:because|since)\b")
_BARE = re.compile(rf"\W*(?:{_NOUN}\W+)?([AB])[^\w:]*")
_BETTER = r"(?i:better|best|right|correct|preferable|superior|stronger)"
_DEGREE = r"(?:the|a|also|clearly|much|slightly)"
_CLAIMS = (
    re.compile(
        rf"\b([AB])\)?(?:'s \w+)? (?:wins|beats|(?:is|was|seems|would be) (?:{_DEGREE} )*(?:{_BETTER}|more \w+))\b"
    ),
    re.compile(
        rf"(?:\b(?:{_BETTER}|{_NOUN}|(?i:verdict|winner|one))(?: is|:)|(?i:\b(?:prefer|choose|pick)))"
        rf" (?:{_NOUN} )?\(?([AB])\b"
    ),
    re.compile(r"[\[{]([AB])[\]}]"),
)
_COUPLE = re.compile(rf"(?:\b{_NOUN} )?\(?\b[AB]\b\)?(?: (?i:or|and) |\s?[/&]\s?)(?:\b{_NOUN} )?\(?\b[AB]\b\)?")
"""The two in one breath ("A or B", "answer A and answer B"): named so, neither is preferred."""
_TIE = re.compile(r"(?i)\b(?:equally|just as (?:good|right|correct|well)|as good as|a tie|tied|no difference)\b")
_DOUBT = re.compile(r"(?i)\b(?:not|cannot|neither|nor|whether|if|worse|worst|wrong|incorrect|less)\b|n['’]t\b")


def read_verdict(reply: Reply) -> Verdict | None:
    """The preference in free words: a letter that opens the reply ("B", "(A). It ..."), one that is called the better
    ("Answer A is better than B.", "The better one is B", "[[A]]"), or the only one named.

    None for a reply that prefers neither or both, or only says what is wrong. Questions prefer nothing. The last word
    of a reply that was cut off is not trusted: its rest is missing.
    """
    said = re.split(r"(?<=[.!?;\n])", re.sub(r'[*`"_]', "", reply.text))
    text = _COUPLE.sub("them", "".join(sentence for sentence in said if not sentence.endswith("?"))).strip()
    if _TIE.search(text):
        return None
    if reply.truncated:
        text = re.sub(r"(?<!\w)\w+\Z", "", text)
    clauses = [" ".join(clause.split()) for clause in _CLAUSE_END.split(text)]
    finished = clauses[:-1] if reply.truncated else clauses
    bare = {match[1] for clause in finished if (match := _BARE.fullmatch(clause))}
    opening = bare if _BARE.fullmatch(clauses[0]) else set()
    sure = [clause for clause in [*finished, *_unfinished(clauses, finished)] if not _DOUBT.search(clause)]
    preferred = opening | {letter for clause in sure for pattern in _CLAIMS for letter in pattern.findall(clause)}
    if preferred:
        return _verdict(preferred.pop()) if len(preferred) == 1 else None
    chosen = None if reply.truncated or _DOUBT.search(text) else find_answer(text, _CHOICE)
    if chosen is None or set(re.findall(r"\b[AB]\b", text)) - {chosen.upper()}:
        return None
    return _verdict(chosen.upper())


def _unfinished(clauses: list[str], finished: list[str]) -> list[str]:
    """The clause in which a reply was cut off, as far as it speaks of one text alone: of the other it may have been
    about to say more ("A is right but B is")."""
    rest = clauses[len(finished) :]
    return [clause for clause in rest if len(set(re.findall(r"\b[AB]\b", clause))) < 2]


def read_verdict_json(reply: Reply) -> Verdict | None:
    """The preference in an object {"better": "A"}; None where there is no such object."""
    found = find_json_object(reply.text)
    return None if found is None else _verdict(found.get("better"))


def _verdict(letter: Any) -> Verdict | None:
    return letter if letter in ("A", "B") else None
