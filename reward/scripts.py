"""The writing system of a letter."""

import sys
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache

_LETTERS = ("Lu", "Ll", "Lt", "Lo")  # Lm, modifier letters such as ー and ʰ, go with several scripts


@lru_cache(maxsize=8192)
def script_of(character: str) -> str | None:
    """The first word of the letter's Unicode name: LATIN, CYRILLIC, CJK. None for what is no letter.

    Letters of a special form (full width, mathematical) count as the plain ones: 𝑥 is LATIN.
    """
    if unicodedata.category(character) not in _LETTERS:
        return None
    plain = unicodedata.normalize("NFKC", character)[0]
    return unicodedata.name(plain, "UNNAMED").split()[0]


def unknown_scripts(names: Iterable[str]) -> set[str]:
    """Those that no letter has."""
    unknown = set(names)
    for script in _all_scripts():  # half a second to the end, but most names come early
        unknown.discard(script)
        if not unknown:
            break
    return unknown


def known_scripts() -> list[str]:
    """All names of scripts, in alphabetical order."""
    return sorted(set(_all_scripts()))


def _all_scripts() -> Iterator[str]:
    for code in range(sys.maxunicode + 1):
        script = script_of.__wrapped__(chr(code))
        if script is not None:
            yield script
