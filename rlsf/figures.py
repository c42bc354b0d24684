"""Writing what was drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Replace a picture whole, folders above it included. The same drawing gives the same bytes: an SVG carries neither
    a date nor random names.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib import rc_context

    kind = path.suffix.removeprefix(".") or "png"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with rc_context({"svg.hashsalt": "rlsf"}):
        figure.savefig(
            temporary, dpi=150, format=kind, bbox_inches="tight", metadata={"Date": None} if kind == "svg" else None
        )
    temporary.replace(path)
