"""Words and phrases in a text, however they are dressed up."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import regex

from reward.scripts import script_of
from reward.types import RewardError

_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")  # zero-width spaces and joiners, soft hyphens, ...
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts that put no space between words: there a word has no visible edge."""


class WordFinder:
    """Finds words and phrases as whole words.

    Case does not matter, nor how a letter is encoded (composed or not, full width, a ligature, a mathematical alphabet:
    Unicode's compatibility decomposition), nor invisible characters, nor the kind and amount of white space in a
    phrase. Accents do: cafe is not café. In scripts without spaces between words, a word is found inside longer ones.

    Raises:
        RewardError: a word consists of white space and invisible characters.
    """

    def __init__(self, words: Iterable[str]) -> None:
        folded = {word: _fold(word)[0].strip() for word in words}
        lost = [word for word in folded if not folded[word]]
        if lost:
            raise RewardError(f"the word {lost[0]!a} has nothing in it that can be seen: take it out of the list")
        self._words = set(folded.values())
        lengths: dict[str, set[int]] = defaultdict(set)
        for word in self._words:
            lengths[word[0]].add(len(word))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end, in `text`, of each word that stands in it, from left to right; of several that begin at one
        place the longest."""
        folded, places = _fold(text)
        start = 0
        while start < len(folded):
            end = self._end(folded, start)
            if end is not None:
                yield places[start], places[end - 1] + 1
            start = end or start + 1

    def _end(self, folded: str, start: int) -> int | None:
        """Where the word that begins at `start` ends; None where none begins."""
        lengths = self._lengths.get(folded[start])
        if lengths is None or not _is_edge(folded[start], folded[start - 1 : start]):
            return None
        for end in (start + length for length in lengths):
            if folded[start:end] in self._words:
                after = folded[end : end + 1]
                if not _is_mark(after) and _is_edge(folded[end - 1], after):  # a mark belongs to the letter before it
                    return end
        return None


def read_words(path: str) -> tuple[str, ...]:
    """The words of a file, one on each line; empty lines and those that begin with # are skipped.

    Raises:
        RewardError: the file cannot be read, is not UTF-8, or has no words.
    """
    try:
        lines = [line.strip() for line in Path(path).expanduser().read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise RewardError(f"{path} is not UTF-8 text; save the file as UTF-8") from error
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL in it; RuntimeError: the ~name of nobody
        raise RewardError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    words = tuple(line for line in lines if line and not line.startswith("#"))
    if not words:
        raise RewardError(f"{path} has no words: write one word or phrase on each line")
    return words


def _fold(text: str) -> tuple[str, list[int]]:
    """The text with its letters folded, and for each of its characters the place in `text` that it comes from."""
    pieces: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        folded = _fold_character(character)
        if folded and not (folded == " " and pieces and pieces[-1] == " "):
            pieces.append(folded)
            places.extend([place] * len(folded))
    return "".join(pieces), places


@lru_cache(maxsize=8192)
def _fold_character(character: str) -> str:
    if _INVISIBLE.match(character):
        return ""
    if character.isspace():
        return " "
    if character == "’":
        return "'"
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())


def _is_edge(inside: str, outside: str) -> bool:
    """Whether a word whose outermost letter is `inside` may end where `outside` (empty at the ends of a text)
    follows, or begin where it precedes."""
    goes_on = outside.isalnum() or outside == "_" or _is_mark(outside)
    return not goes_on or any(character and script_of(character) in _UNSPACED for character in (inside, outside))


def _is_mark(character: str) -> bool:
    return character != "" and unicodedata.category(character).startswith("M")
