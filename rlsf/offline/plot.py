"""Signals as a picture: what they know, and beside it what they cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlsf.evaluation.statistics import Estimate
from rlsf.figures import save_figure
from rlsf.offline.signals import SignalReport, best_first

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WITHIN, ANSWERED, OVERALL, COST = "#0b6e99", "#4f9a5b", "#d1802a", "#8a8f98"
APART = 0.24
"""Distance between the figures of a signal, in rows."""


def plot_signals(reports: Sequence[SignalReport], path: Path, *, title: str | None = None) -> None:
    """Draw the AUROC of each signal with its interval, within groups and over all, and what a rollout costs; the best
    signal on top. `path` is replaced whole. Needs no display.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.figure import Figure

    rows = best_first(reports)[::-1]
    figure = Figure(figsize=(9.5, 1.9 + 0.48 * len(rows)), layout="constrained")
    known, cost = figure.subplots(1, 2, sharey=True, width_ratios=(5, 3))
    _draw_auroc(known, rows)
    _draw_cost(cost, rows)
    known.set_yticks(range(len(rows)), [report.name for report in rows])
    known.set_ylim(-0.7, len(rows) - 0.3)
    figure.legend(loc="outside lower left", ncols=3, fontsize=9, frameon=False)
    figure.suptitle(title or _title(reports), fontsize=11)
    save_figure(figure, path)


def _draw_auroc(axes: "Axes", rows: Sequence[SignalReport]) -> None:
    for shift, colour, marker, label, figures in (
        (APART, WITHIN, "o", "within groups", [report.auroc_within_groups for report in rows]),
        (0.0, ANSWERED, "s", "there among those that answer", [report.auroc_within_answered for report in rows]),
        (-APART, OVERALL, "D", "over all rollouts", [report.auroc for report in rows]),
    ):
        drawn = [(row + shift, figure) for row, figure in enumerate(figures) if figure is not None]
        axes.errorbar(
            [figure.value for _, figure in drawn],
            [row for row, _ in drawn],
            xerr=list(zip(*[_reach(figure) for _, figure in drawn], strict=True)) or None,
            fmt=marker, color=colour, label=label, markersize=5, capsize=2.5, linewidth=1.4,
        )  # fmt: skip
    axes.axvline(0.5, color="black", linewidth=0.9, linestyle=":")
    axes.set_xlabel("AUROC against the truth, 95% interval (0.5: knows nothing)")
    axes.grid(axis="x", alpha=0.3)


def _reach(figure: Estimate) -> tuple[float, float]:
    return figure.value - figure.low, figure.high - figure.value


def _draw_cost(axes: "Axes", rows: Sequence[SignalReport]) -> None:
    milliseconds = [1000 * report.seconds_per_rollout for report in rows]
    axes.plot(milliseconds, range(len(rows)), "s", color=COST, markersize=5)
    axes.set_xscale("log")
    axes.set_xlim(min(milliseconds) / 2, max(milliseconds) * 5000)  # room for the words behind the marks
    for row, report in enumerate(rows):
        tokens = f", {report.tokens_per_rollout:.0f} tokens" if report.tokens_per_rollout else ""
        axes.annotate(
            f"{_plain(milliseconds[row])} ms{tokens}", (milliseconds[row], row),
            xytext=(7, 0), textcoords="offset points", va="center", fontsize=8.5,
        )  # fmt: skip
    axes.set_xlabel("ms per rollout, and tokens generated")
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="y", length=0)


def _plain(milliseconds: float) -> str:
    """Two digits, and never an exponent above 1."""
    return f"{milliseconds:.0f}" if milliseconds >= 10 else f"{milliseconds:.2g}"


def _title(reports: Sequence[SignalReport]) -> str:
    first = reports[0]
    accuracy = "" if first.right is None else f", {first.right:.0%} right"
    return f"{first.task}: {first.rollouts} rollouts of {first.prompts} prompts{accuracy}"
