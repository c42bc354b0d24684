"""Does it learn? Runs the headline configs over seeds and reports held-out accuracy before and after.

    python -m benchmarks.headline                              # quickstart, ppo and dpo, seed 0
    python -m benchmarks.headline --config quickstart --seeds 0 1 2

One cell per (config, seed): a finished cell is read from its summary.json, an interrupted one is resumed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.results import Row, print_rows, write_results

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "headline"
CELLS = Path(__file__).parent / "results" / "headline"
CONFIGS = ("quickstart", "ppo", "dpo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=list(CONFIGS), help="names in configs/")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    for config in arguments.config:
        for seed in arguments.seeds:
            run_cell(config, seed)
    rows = [row for path in sorted(CELLS.glob("*.json")) for row in rows_of(json.loads(path.read_text("utf-8")))]
    print_rows(rows, "Held-out accuracy before and after")
    print(f"written to {write_results('headline', rows)}")


def run_cell(config: str, seed: int) -> None:
    """Leaves the run's summary in results/headline/CONFIG-seedN.json, which is committed."""
    cell = CELLS / f"{config}-seed{seed}.json"
    if cell.exists():
        return
    run = RUNS / f"{config}-seed{seed}"
    if (run / "config.yaml").exists():
        command = ["resume", str(run)]
    else:
        overrides = [f"seed={seed}", f"output_dir={RUNS}", f"name={run.name}"]
        command = ["run", str(ROOT / "configs" / f"{config}.yaml"), *[x for o in overrides for x in ("--set", o)]]
    subprocess.run([sys.executable, "-m", "rlsf.cli", *command], check=True)
    CELLS.mkdir(parents=True, exist_ok=True)
    cell.write_text((run / "summary.json").read_text("utf-8"), "utf-8")


def rows_of(summary: dict[str, Any]) -> list[Row]:
    """Pass@1 and greedy before and after, the paired change, and the seconds it took."""
    rows = []
    seeds = (summary["seed"],)
    for task_name, task in summary["tasks"].items():
        name = f"{summary['name']}/{task_name}"
        for stage in ("base", "warm_start", "final", "change"):
            for key in ("pass@1", "greedy"):
                estimate = (task[stage] or {}).get(key)
                if estimate:
                    label = f"{name} {key} {stage.replace('_', ' ')}"
                    rows.append(
                        Row(label, estimate["value"], "share", estimate["low"], estimate["high"], estimate["n"], seeds)
                    )
    seconds = sum(summary["seconds"].values())
    return [*rows, Row(f"{summary['name']} time", seconds, "s", seeds=seeds)]


if __name__ == "__main__":
    main()
