"""Tables of streams of tasks: of one run, and of several side by side."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from rlsf.continual.metrics import intransigence
from rlsf.display import say
from rlsf.errors import RunDirError
from rlsf.files import check_output, mendable_output, write_text
from rlsf.run_dir import RunDir, check_not_of_a_run

COLUMNS = ("ACC", "BWT", "FWT", "forgetting", "plasticity", "learning accuracy")
CELL = 18
"""Characters that a column takes."""


def print_stream(found: Mapping[str, Any], console: Console) -> None:
    """The matrix of scores of one run, and its metrics."""
    table = Table(box=box.SIMPLE_HEAD, header_style="")
    table.add_column("after")
    for task in found["tasks"]:
        table.add_column(task, justify="right", no_wrap=True)
    for number, (name, row) in enumerate(zip(found["rows"], found["matrix"], strict=True)):
        intervals = found["intervals"][number]
        cells = zip(row, intervals, found["learned"], strict=True)
        table.add_row(f"{number} {name}", *[_cell(value, ends, learned == number) for value, ends, learned in cells])
    say(console, "pass@1 on test prompts after each segment of the stream")
    console.print(table)
    metrics = {name: found["metrics"].get(name) for name in COLUMNS}
    say(console, "; ".join(f"{name} {_interval(estimate)}" for name, estimate in metrics.items() if estimate))


def compare_runs(paths: Sequence[Path], console: Console, *, output: Path | None) -> None:
    """A table with a row for each run. One on the same tasks that trains them jointly is what the intransigence of the
    others is measured against.

    Raises:
        RunDirError: a folder holds no finished run of a stream, or the runs are of different tasks.
    """
    if output is not None:
        check_output(output)
        check_not_of_a_run(output)
    rows = {str(path): _read(path) for path in paths}
    tasks = {tuple(sorted(row["tasks"])) for row in rows.values()}
    if len(tasks) > 1:
        named = "; ".join(f"{path}: {', '.join(row['tasks'])}" for path, row in rows.items())
        raise RunDirError(f"the runs are of different tasks and cannot be compared: {named}")
    joint = next((row for row in rows.values() if row["stream"] == "joint"), None)
    figures = {path: _figures(row, joint) for path, row in rows.items()}
    console.print(_table(figures, console.width))
    say(
        console,
        "95% bootstrap intervals over test prompts; differences are paired over prompts. They say how well these runs "
        "were measured, not how others with another seed would come out.",
    )
    if output is not None:
        with mendable_output(output):
            write_text(output, json.dumps({"runs": rows, "figures": figures}, indent=2))


def _read(path: Path) -> dict[str, Any]:
    directory = RunDir.open(path)
    if not directory.summary.exists():
        raise RunDirError(f"{path} is not finished: there is no summary.json; `rlsf resume {path}` goes on with it")
    found = directory.read_json(directory.summary).get("continual")
    if not found:
        raise RunDirError(
            f"{path} is no run of several tasks, or of an rlsf that did not measure them after each other"
        )
    return found


def _figures(row: Mapping[str, Any], joint: Mapping[str, Any] | None) -> dict[str, dict[str, float] | None]:
    figures: dict[str, dict[str, float] | None] = {name: row["metrics"].get(name) for name in COLUMNS}
    if joint is not None and joint is not row:
        matrix = np.array([[np.nan if value is None else value for value in line] for line in row["matrix"]])
        reached = dict(zip(joint["tasks"], joint["matrix"][-1], strict=True))
        figures["intransigence"] = _value(intransigence(matrix, row["learned"], [reached[t] for t in row["tasks"]]))
    figures["stability gap"] = _value(row.get("stability_gap"))
    distances = row.get("kl_from_base") or {}
    figures["KL from base"] = _value(float(np.mean(list(distances.values()))) if distances else None)
    return figures


def _value(value: float | None) -> dict[str, float] | None:
    return None if value is None or np.isnan(value) else {"value": value}


def _table(figures: Mapping[str, Mapping[str, dict[str, float] | None]], width: int) -> Table:
    names = list(dict.fromkeys(name for row in figures.values() for name in row))
    table = Table(box=box.SIMPLE_HEAD)
    upright = width < 20 + CELL * len(names)
    heads = [Path(path).name for path in figures] if upright else names
    table.add_column("" if upright else "run")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    if upright:
        for name in names:
            table.add_row(name, *[_interval(row.get(name), "\n") for row in figures.values()])
    else:
        for path, row in figures.items():
            table.add_row(Path(path).name, *[_interval(row.get(name), "\n") for name in names])
    return table


def _cell(value: float | None, ends: Sequence[float] | None, learned: bool) -> str:
    """The score with which a task was left is set off."""
    if value is None or ends is None:
        return "–"
    text = f"{value:.3f} \\[{ends[0]:.2f}, {ends[1]:.2f}]"
    return f"[bold]{text}[/]" if learned else text


def _interval(estimate: Mapping[str, float] | None, between: str = " ") -> str:
    if estimate is None:
        return "–"
    if "low" not in estimate:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f}{between}[{estimate['low']:.3f}, {estimate['high']:.3f}]"
