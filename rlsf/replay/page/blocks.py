"""What evidence is drawn as: the template has a macro for each kind."""

from dataclasses import dataclass, field
from typing import ClassVar

from rlsf.replay.page.pieces import Piece
from rlsf.replay.show import visible


@dataclass(frozen=True, slots=True)
class Note:
    """One sentence about the score."""

    kind: ClassVar[str] = "note"
    text: list[Piece]


@dataclass(frozen=True, slots=True)
class Facts:
    """Short values by name."""

    kind: ClassVar[str] = "facts"
    rows: list[tuple[str, list[Piece]]]


@dataclass(frozen=True, slots=True)
class Bar:
    """The votes for one answer."""

    answer: list[Piece]
    count: float
    percent: float
    """Of the longest that a bar could be."""
    wins: bool
    is_own: bool
    """It is this completion's answer."""


@dataclass(frozen=True, slots=True)
class Votes:
    """How a group voted."""

    kind: ClassVar[str] = "votes"
    has_answer: bool
    """Whether this completion voted."""
    bars: list[Bar]
    more: int
    """Answers that are not shown."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One contribution to a conversation about the completion."""

    speaker: str
    words: list[Piece]
    verdict: str = ""
    is_bad: bool = False
    """It could not be read, or did not come."""


@dataclass(frozen=True, slots=True)
class Talk:
    """Judgements one after the other, or critique and revision in turn."""

    kind: ClassVar[str] = "talk"
    title: str
    turns: list[Turn]
    anchor: str = ""
    """On the page, of another completion that the talk is about too."""
    more: int = 0
    """Turns that are not shown."""


@dataclass(frozen=True, slots=True)
class Graded:
    """An answer beside the reference that it was compared with."""

    kind: ClassVar[str] = "graded"
    answer: list[Piece]
    reference: list[Piece]


@dataclass(frozen=True, slots=True)
class Tree:
    """Anything else: a text, or entries with names."""

    kind: ClassVar[str] = "tree"
    name: str
    text: list[Piece] = field(default_factory=list)
    entries: list["Tree"] = field(default_factory=list)
    more: int = 0
    """Entries that are not shown."""


@dataclass(frozen=True, slots=True)
class Section:
    """The evidence of one part of a composed reward."""

    kind: ClassVar[str] = "section"
    name: str
    value: float | None
    """What the part scored, where that is known."""
    blocks: list["Block"]


Block = Note | Facts | Votes | Talk | Graded | Tree | Section


def anchor(kind: str, id: str) -> str:
    """The id on the page of a group or a rollout; it is the end of links to it."""
    return f"{kind}-{visible(id)}"
