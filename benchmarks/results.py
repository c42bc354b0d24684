"""The one format of benchmarks/results/NAME.json: machine, versions, commit, and rows."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlsf.provenance import provenance

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One figure."""

    name: str
    value: float
    unit: str
    low: float | None = None
    """Lower end of the 95% interval."""
    high: float | None = None
    n: int | None = None
    """Independent units behind the figure."""
    seeds: tuple[int, ...] | None = None
    commit: str | None = None
    """Of the code that measured it, where the file's rows were measured by several."""


def write_results(name: str, rows: Sequence[Row], measured: dict[str, Any] | None = None) -> Path:
    """Write results/NAME.json; fields without a value are left out.

    Args:
        measured: machine, versions and commit of the measurement, where it was not made just now.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {
        "name": name,
        **(measured or provenance()),
        "rows": [{key: value for key, value in asdict(row).items() if value is not None} for row in rows],
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return path


def merged(values: Sequence[Any]) -> Any:
    """What cells measured at different times say in common: dictionaries key by key, and differing values in a row."""
    if all(isinstance(value, dict) for value in values):
        return {key: merged([value[key] for value in values if key in value]) for value in values for key in value}
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else ", ".join(map(str, distinct))


def print_rows(rows: Sequence[Row], title: str) -> None:
    table = Table("", "value", "95% interval", "unit", "n", "seeds", title=title, title_justify="left")
    for row in rows:
        interval = f"[{row.low:.3f}, {row.high:.3f}]" if row.low is not None and row.high is not None else ""
        seeds = ", ".join(map(str, row.seeds)) if row.seeds is not None else ""
        table.add_row(row.name, f"{row.value:.3f}", interval, row.unit, str(row.n or ""), seeds)
    Console().print(table)
