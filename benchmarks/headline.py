"""Does it learn? Runs the headline configs over seeds and reports held-out accuracy before and after.

    python -m benchmarks.headline                        # what is not measured yet of quickstart, ppo and dpo, 3 seeds
    python -m benchmarks.headline --config quickstart --seeds 0 --again

One cell per (config, seed): a finished cell is read from results/headline/, where every cell carries its commit and
machine, and its config since that is written; an interrupted one is resumed; --again measures anew.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cells import row_over_seeds, summary_of
from benchmarks.results import Row, merged, print_rows, write_results

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "headline"
CELLS = Path(__file__).parent / "results" / "headline"
CONFIGS = ("quickstart", "ppo", "dpo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=list(CONFIGS), help="names in configs/")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--again", action="store_true", help="measure the named cells anew")
    arguments = parser.parse_args()
    for config in arguments.config:
        for seed in arguments.seeds:
            run_cell(config, seed, again=arguments.again)
    summaries = [json.loads(path.read_text("utf-8")) for path in sorted(CELLS.glob("*.json"))]
    rows = [*over_seeds(summaries), *(row for summary in summaries for row in rows_of(summary))]
    print_rows(rows, "Held-out accuracy before and after")
    print(f"written to {write_results('headline', rows, merged([_provenance(summary) for summary in summaries]))}")


def run_cell(config: str, seed: int, *, again: bool) -> None:
    """Leaves the run's summary in results/headline/CONFIG-seedN.json, which is committed."""
    cell = CELLS / f"{config}-seed{seed}.json"
    run = RUNS / f"{config}-seed{seed}"
    if again and (run / "summary.json").exists():  # an unfinished run is the new measurement, cut off
        shutil.rmtree(run)
    elif cell.exists() and not again:
        return
    if (run / "config.yaml").exists():
        command = ["resume", str(run)]
    else:
        overrides = [f"seed={seed}", f"output_dir={RUNS}", f"name={run.name}"]
        command = ["run", str(ROOT / "configs" / f"{config}.yaml"), *[x for o in overrides for x in ("--set", o)]]
    subprocess.run([sys.executable, "-m", "rlsf.cli", *command], check=True)
    CELLS.mkdir(parents=True, exist_ok=True)
    cell.write_text(json.dumps(summary_of(run), indent=2, ensure_ascii=False) + "\n", "utf-8")


def rows_of(summary: dict[str, Any]) -> list[Row]:
    """Pass@1 and greedy before and after, the paired change, and the seconds it took."""
    rows = []
    seeds, commit = (summary["seed"],), summary["commit"]
    for task_name, task in summary["tasks"].items():
        name = f"{summary['name']}/{task_name}"
        for stage in ("base", "warm_start", "final", "change"):
            for key in ("pass@1", "greedy"):
                if (estimate := (task[stage] or {}).get(key)) is not None:
                    label = f"{name} {key} {stage.replace('_', ' ')}"
                    rows.append(
                        Row(
                            label,
                            estimate["value"],
                            "share",
                            estimate["low"],
                            estimate["high"],
                            estimate["n"],
                            seeds,
                            commit,
                        )
                    )
    seconds = sum(summary["seconds"].values())
    return [*rows, Row(f"{summary['name']} time", seconds, "s", seeds=seeds, commit=commit)]


def _provenance(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: summary[key] for key in ("versions", "commit", "machine")}


def over_seeds(summaries: Sequence[dict[str, Any]]) -> list[Row]:
    """Per config and task: the mean change over seeds, each with its own data, model start and samples.

    The interval is Student's t over the seeds, the independent unit; with one seed there is no row.
    """
    changes: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
    for summary in summaries:
        config = str(summary["name"]).rsplit("-seed", 1)[0]
        for task_name, task in summary["tasks"].items():
            for key in ("pass@1", "greedy"):
                changes[config, task_name, key][summary["seed"]] = task["change"][key]["value"]
    return [
        row_over_seeds(f"{config}/{task} {key} change, mean over seeds", values)
        for (config, task, key), values in changes.items()
        if len(values) > 1
    ]


if __name__ == "__main__":
    main()
