"""Text cut into pieces for a page: what to mark, and what to leave out of the middle of a long one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

LONGEST = 8_000
"""Characters of a completion or a prompt that a page shows."""
LONGEST_WORDS = 2_000
"""Characters of each text in the evidence."""
MOST_MARKS = 100
"""Marks in one text."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A stretch of a completion that its evidence names."""

    start: int
    """Characters."""
    end: int
    kind: str
    """`broken` for a rule's match, `span` for tokens that count, `least` for the least certain one."""
    title: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text that is marked alike from end to end."""

    text: str
    kinds: tuple[str, ...] = ()
    title: str = ""
    left_out: int = 0
    """Characters that are not shown; `text` is empty then."""


def pieces(text: str, marks: Iterable[Mark] = (), *, longest: int = LONGEST) -> list[Piece]:
    """`text` in pieces that join to it again, but for the middle of one that is longer than `longest`: of that the
    first three quarters of so many characters and the last quarter remain, since an answer often stands last."""
    marks = list(marks)[:MOST_MARKS]
    cut = (longest * 3 // 4, len(text) - longest // 4) if len(text) > longest else (0, 0)
    edges = {0, len(text), *cut}
    for mark in marks:
        edges |= {min(max(edge, 0), len(text)) for edge in (mark.start, mark.end)}
    found: list[Piece] = []
    for start, end in pairwise(sorted(edges)):
        if cut[0] <= start < cut[1]:
            if start == cut[0]:
                found.append(Piece("", left_out=cut[1] - cut[0]))
            continue
        found.append(_piece(text[start:end], [mark for mark in marks if mark.start <= start and end <= mark.end]))
    return found


def words(text: str) -> list[Piece]:
    """Text of the evidence, cut where it is long."""
    return pieces(text, longest=LONGEST_WORDS)


def _piece(text: str, marks: Sequence[Mark]) -> Piece:
    kinds = tuple(dict.fromkeys(mark.kind for mark in marks))
    return Piece(text, kinds, "; ".join(dict.fromkeys(mark.title for mark in marks)))
