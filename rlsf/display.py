"""What a person sees while a run goes on: a live panel on a terminal, plain lines elsewhere."""

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

# How people call a metric, and the pattern of its name.
SHOWN = {
    "reward": "reward/mean",
    "held-out pass@1": "validation/*/pass@1",
    "KL to reference": "rollout/kl",
    "entropy": "rollout/entropy",
    "tokens per answer": "rollout/tokens",
    "cut off": "rollout/truncated",
}
ROWS = 8


def say(console: Console, text: str) -> None:
    """Lines of their own: wrapped between words on a terminal, and not at all in a file, where paths stay whole."""
    console.print(Text(text), soft_wrap=not console.is_terminal)


def warn(console: Console, text: str) -> None:
    """As `say`, and it stands out."""
    console.print(Text.assemble(("warning:", "yellow"), " ", text), soft_wrap=not console.is_terminal)


class Display:
    """Progress of one run. Use as a context manager."""

    def __init__(self, console: Console, title: str, total: int | None) -> None:
        """`total` is None where nobody knows it; of a run somebody does."""
        self._console = console
        self._live_on = console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._bar = self._progress.add_task("starting", total=total, left="")
        self._title = title
        self._rows: list[dict[str, str]] = []
        self._live: Live | None = None
        self._total = total or 0
        self._seconds: list[float] = []

    def __enter__(self) -> "Display":
        if self._live_on:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
            self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)
            self._live = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show what is going on now."""
        previous = self._progress.tasks[0].description
        self._progress.update(self._bar, description=name)
        try:
            yield
        finally:
            self._progress.update(self._bar, description=previous)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A phase that is one of the total."""
        with self.phase(name):
            yield
        self.advance(1)

    def go_on_from(self, done: int) -> None:
        """A resumed run has `done` iterations behind it."""
        self._progress.update(self._bar, completed=done)

    def advance(self, steps: int) -> None:
        """So many more of the total are done."""
        self._progress.update(self._bar, advance=steps)

    def say(self, text: str) -> None:
        """A line that stays."""
        say(self._console, text)

    def warn(self, text: str) -> None:
        warn(self._console, text)

    def iteration(self, number: int, metrics: dict[str, float], tokens_per_second: float, seconds: float) -> None:
        """An iteration has ended after `seconds`."""
        self._seconds = [*self._seconds, seconds][-5:]
        left = _duration((self._total - number) * _mean(self._seconds))
        self._progress.update(self._bar, completed=number, left=f"about {left} left")
        row = {"iteration": f"{number}/{self._total}"}
        for title, pattern in SHOWN.items():
            values = [metrics[name] for name in fnmatch.filter(metrics, pattern)]
            if values:
                row[title] = f"{_mean(values):.3f}"
        row["tokens/s"] = f"{tokens_per_second:.0f}"
        self._rows = [*self._rows, row][-ROWS:]
        if not self._live_on:
            figures = "  ".join(f"{title} {value}" for title, value in row.items() if title != "iteration")
            self._console.print(
                f"iteration {row['iteration']}  {figures}  {left} left", highlight=False, soft_wrap=True
            )

    def _render(self) -> Panel:
        table = Table(box=None, padding=(0, 1), header_style="dim")
        titles = _fitting(["iteration", *SHOWN, "tokens/s"], self._console.width - 4)  # less the panel's frame
        for title in titles:
            table.add_column("\n".join(title.split()), justify="right", vertical="bottom")
        for row in self._rows:
            table.add_row(*[row.get(title, "") for title in titles])
        return Panel(Group(self._progress, table), title=self._title, title_align="left")


def _fitting(titles: list[str], width: int) -> list[str]:
    """As many as there is room for, from the left; their words stand one above the other."""
    fitting: list[str] = []
    for title in titles:
        width -= max(6, *map(len, title.split())) + 2
        if width < 0:
            break
        fitting.append(title)
    return fitting


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
