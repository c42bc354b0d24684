"""Places in a completion, as evidence shows them."""

from typing import Any

AROUND = 30
"""Characters shown on either side."""
LONGEST = 200
"""Characters shown of what was found."""


def excerpt(text: str, start: int, end: int) -> dict[str, Any]:
    """What stands at text[start:end], where that is, and the words around it; safe to write as UTF-8."""
    found = shortened(text[start:end], LONGEST)
    around = f"{text[max(0, start - AROUND) : start]}[{found}]{text[end : end + AROUND]}"
    return {"found": _writable(found), "start": start, "end": end, "around": _writable(around)}


def shortened(text: str, longest: int) -> str:
    """`text` with its middle left out where it is longer."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def _writable(text: str) -> str:
    """With a question mark for half a character (a lone surrogate)."""
    return text.encode("utf-8", "replace").decode("utf-8")
