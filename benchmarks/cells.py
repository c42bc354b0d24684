"""One cell per (method, seed): a run of a config, done once, resumable, its figures kept in results/ and committed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from scipy import stats

from benchmarks.results import Row
from rlsf.config.load import load_config
from rlsf.config.schema import RunConfig
from rlsf.run_dir import read_jsonl

ROOT = Path(__file__).parent.parent
CONFIGS = Path(__file__).parent / "configs"
RESULTS = Path(__file__).parent / "results"
RUNS = ROOT / "runs"


@dataclass(frozen=True)
class Cell:
    """A config with changes, under a name."""

    benchmark: str
    name: str
    config: Path
    overrides: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return RESULTS / self.benchmark / f"{self.name}.json"

    @property
    def run(self) -> Path:
        return RUNS / self.benchmark / self.name


def measure_all(cells: Sequence[Cell], *, again: bool = False, jobs: int = 1) -> None:
    """Runs what has no result yet, `jobs` at a time; an interrupted cell is resumed, `again` measures anew.

    Raises:
        subprocess.CalledProcessError: a run failed; what it said stands in its log beside the run.
    """
    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(
            lambda cell: _measure(cell, again=again, threads=max(1, (os.cpu_count() or 1) // jobs)), cells
        ):
            pass


def _measure(cell: Cell, *, again: bool, threads: int) -> None:
    if cell.path.exists() and not again:
        check_settings(cell)
        return
    if again and (cell.run / "summary.json").exists():  # an unfinished run is the new measurement, cut off
        shutil.rmtree(cell.run)
    if (cell.run / "config.yaml").exists():
        command = ["resume", str(cell.run)]
    else:
        changes = [*cell.overrides, f"output_dir={cell.run.parent}", f"name={cell.run.name}"]
        command = ["run", str(cell.config), *[part for change in changes for part in ("--set", change)]]
    cell.run.parent.mkdir(parents=True, exist_ok=True)
    print(f"{cell.benchmark}/{cell.name}", flush=True)
    with cell.run.with_suffix(".log").open("a") as log:
        subprocess.run(
            [sys.executable, "-m", "rlsf.cli", *command],
            check=True,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    cell.path.write_text(json.dumps(_result(cell.run), indent=1) + "\n", "utf-8")
    shutil.rmtree(cell.run / "checkpoints")  # the figures are kept; the weights would fill the disk


def check_settings(cell: Cell) -> None:
    """Raises SystemExit where the cell's result is of other settings than it now has.

    A setting that came after the cell was measured has its default there.
    """
    wanted = load_config(cell.config, cell.overrides).model_dump(mode="json")
    found = _with_defaults(read(cell)["summary"]["config"])
    changed = [key for key in wanted if key not in ("name", "output_dir") and wanted[key] != found.get(key)]
    if changed:
        raise SystemExit(
            f"{cell.path} was measured with other settings ({', '.join(changed)}): measure it anew with --again, or "
            "delete it"
        )


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A config of an earlier day as it reads today; as it is where it can no longer be read."""
    try:
        return RunConfig.model_validate(config).model_dump(mode="json")
    except ValidationError:
        return config


def _result(run: Path) -> dict[str, Any]:
    """The summary, and the metrics that make a learning curve."""
    kept = (
        "validation/",
        "reward/mean",
        "rollout/",
        "guard/",
        "train/learning_rate",
        "reward/unreadable",
        "reward/no_opinion",
    )
    curve = [
        {
            key: round(value, 5) if isinstance(value, float) else value
            for key, value in row.items()
            if _is_kept(key, kept)
        }
        for row in read_jsonl(run / "metrics.jsonl")
    ]
    return {"summary": summary_of(run), "curve": curve}


def summary_of(run: Path) -> dict[str, Any]:
    """Of a finished run, without the folder that this machine keeps it in."""
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    summary["config"]["output_dir"] = "runs"
    return summary


def _is_kept(key: str, kept: tuple[str, ...]) -> bool:
    return key == "iteration" or key.startswith(kept)


def read(cell: Cell) -> dict[str, Any]:
    return json.loads(cell.path.read_text("utf-8"))


def curve_of(result: dict[str, Any], metric: str) -> dict[int, float]:
    """A metric by iteration, where it was measured."""
    return {row["iteration"]: row[metric] for row in result["curve"] if metric in row}


def row_over_seeds(name: str, by_seed: Mapping[int, float], unit: str = "share") -> Row:
    """The mean over at least one seed, with its interval."""
    mean, low, high = mean_interval(list(by_seed.values()))
    return Row(name, mean, unit, low, high, len(by_seed), tuple(sorted(by_seed)))


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean over seeds, and Student's t 95% interval; None where there is one seed."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, None, None
    half = float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))
    return mean, mean - half, mean + half
