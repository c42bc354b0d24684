"""Signals as tables for people and files for scripts."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from rlsf.evaluation.statistics import Estimate
from rlsf.files import write_text
from rlsf.offline.signals import SignalReport


def signals_table(reports: Sequence[SignalReport]) -> RenderableType:
    """What the signals know of the truth, where anything was labelled, and below it what else they go with and what
    they cost. Fits a terminal of 80 columns."""
    label_free = _label_free_table(reports)
    return Group(_truth_table(reports), "", label_free) if any(report.labelled for report in reports) else label_free


def _truth_table(reports: Sequence[SignalReport]) -> Table:
    table = _table(
        "signal", "AUROC\nwithin groups", "among those\nthat answer", "over\nall", "rank\ncorr.", "ECE", "ECE,\niso."
    )
    for report in reports:
        table.add_row(
            report.name,
            _estimate(report.auroc_within_groups),
            _estimate(report.auroc_within_answered),
            _figure(None if report.auroc is None else report.auroc.value),
            _figure(report.spearman),
            _figure(report.calibration_error),
            _figure(report.calibrated_error),
        )
    return table


def _label_free_table(reports: Sequence[SignalReport]) -> Table:
    somebody_was_asked = any(report.unread is not None for report in reports)
    asked = ("unread-\nable",) if somebody_was_asked else ()
    table = _table(
        "signal", "mean", "deviation", "no\nopinion", *asked, "length\ncorr.", "tokens/\nrollout", "ms/\nrollout"
    )
    for report in reports:
        table.add_row(
            report.name,
            _figure(report.mean),
            _figure(report.deviation),
            f"{report.no_opinion:.0%}",
            *(["–" if report.unread is None else f"{report.unread:.0%}"] if somebody_was_asked else []),
            _figure(report.length_correlation),
            f"{report.tokens_per_rollout:.1f}",
            f"{1000 * report.seconds_per_rollout:.2f}",
        )
    return table


def write_signals(reports: Sequence[SignalReport], source: dict[str, Any], folder: Path) -> None:
    """signals.json and signals.csv. `source` says what was measured; it stands in the JSON file.

    Raises:
        OSError: they cannot be written.
    """
    content = {**source, "signals": [report.as_json() for report in reports]}
    write_text(folder / "signals.json", json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(_flat(reports[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_flat, reports))
    write_text(folder / "signals.csv", text.getvalue())


def _flat(report: SignalReport) -> dict[str, Any]:
    """One column per number; an interval has three. What was counted stands in the JSON file alone."""
    row: dict[str, Any] = {}
    for field in fields(report):
        value = getattr(report, field.name)
        if isinstance(value, Mapping):
            continue
        row[field.name] = value.value if isinstance(value, Estimate) else value
        if field.name.startswith("auroc"):
            row[f"{field.name}_low"] = value.low if value is not None else None
            row[f"{field.name}_high"] = value.high if value is not None else None
    return row


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold", vertical="bottom")
    for title in others:
        table.add_column(title, justify="right", no_wrap=True, vertical="bottom")
    return table


def _estimate(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) >= 100 else f"{value:.2f}"
