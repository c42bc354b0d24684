"""Where commands write to."""

from rich.console import Console


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """rich would end the program without a word."""
        raise  # noqa: PLE0704 - called while the BrokenPipeError is handled


def console() -> Console:
    """Standard output."""
    return _Console(soft_wrap=False)
