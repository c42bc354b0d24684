"""A collapse made to happen, and the guard that ends it: long runs at a rate that ruins them.

    python -m benchmarks.collapse            # what is not measured yet, 5 seeds

Sums of the lab model. `majority` and `self_certainty` are trained on for 40 iterations, faster than is good; `verifier`
as is usual, to see what the guard costs a run that goes well. `unguarded` trains on and ends with its last adapter;
`labels` has a canary of 32 labelled prompts, which also chooses the final adapter; `votes` one of what the model itself
voted for before the loop, without any label, and ends with its last adapter. Held-out accuracy is measured after every
iteration on the same 300 prompts, none of them in a canary. The peak is the unguarded run's best moving average over 3
iterations; a fall is measured from where the other seeds have theirs.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.cells import CONFIGS, ROOT, Cell, curve_of, measure_all, read, row_over_seeds
from benchmarks.results import Row, merged, print_rows, write_results
from benchmarks.self_feedback import TASKS
from rlsf.figures import save_figure

FIGURE = ROOT / "docs" / "figures" / "collapse.svg"
WATCHED = (
    *TASKS["sum"],
    "tasks.0.split.validation=428",
    "evaluation={every: 1, samples: 4, final_samples: 8, prompts: 300}",
)
LONG = ("loop.iterations=40", "algorithm.learning_rate=1.0e-3", "algorithm.kl_coef=0")
GUARDS: dict[str, tuple[str, ...]] = {
    "unguarded": (),
    "labels": ("guard={canary: {truth: references, prompts: 32, samples: 16}}", "evaluation.select=canary"),
    "votes": ("guard={canary: {truth: votes, prompts: 128}}",),
}
SIGNALS: dict[str, tuple[str, ...]] = {
    "majority": (*LONG, "reward={kind: majority}"),
    "self_certainty": (*LONG, "reward={kind: self_certainty}"),
    "verifier": ("reward={kind: verifier}",),
}


def cells(signals: Sequence[str], guards: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    return [
        Cell(
            "collapse",
            f"{signal}-{guard}-seed{seed}",
            CONFIGS / "lab.yaml",
            (*WATCHED, *SIGNALS[signal], *GUARDS[guard], f"seed={seed}"),
        )
        for seed in seeds
        for signal in signals
        for guard in guards
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", nargs="+", choices=list(SIGNALS), default=list(SIGNALS))
    parser.add_argument("--guards", nargs="+", choices=list(GUARDS), default=list(GUARDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--again", action="store_true", help="measure the named cells anew")
    arguments = parser.parse_args()
    measure_all(cells(arguments.signals, arguments.guards, arguments.seeds), again=arguments.again, jobs=arguments.jobs)
    report()


Results = dict[str, dict[int, dict[str, Any]]]
"""By guard and seed."""


def report() -> None:
    rows: list[Row] = []
    found = {signal: _found(signal) for signal in SIGNALS}
    for signal, results in found.items():
        rows += _rows(signal, results)
    plot({signal: results for signal, results in found.items() if any(results.values())})
    print_rows(rows, "Held-out pass@1 of long runs")
    summaries = [r["summary"] for results in found.values() for by_seed in results.values() for r in by_seed.values()]
    measured = merged([{key: summary[key] for key in ("versions", "commit", "machine")} for summary in summaries])
    print(f"written to {write_results('collapse', rows, measured)}")


def _found(signal: str) -> Results:
    found: Results = {guard: {} for guard in GUARDS}
    for guard in GUARDS:
        for seed in range(20):
            [cell] = cells([signal], [guard], [seed])
            if cell.path.exists():
                found[guard][seed] = read(cell)
    return found


def _rows(signal: str, results: Results) -> list[Row]:
    unguarded = {seed: held_out(result) for seed, result in results["unguarded"].items()}
    peaks = {seed: peak(curve) for seed, curve in unguarded.items()}
    fair = fair_peaks(unguarded)
    rows = [_row(f"{signal}: start", {s: held_out(r)[0] for s, r in results["unguarded"].items()})]
    rows.append(_row(f"{signal}: peak", peaks))
    for guard, by_seed in results.items():
        ends = {seed: end(result) for seed, result in by_seed.items()}
        kept = {seed: ends[seed] / peaks[seed] for seed in ends.keys() & peaks.keys()}
        falls = {seed: fair[seed] - ends[seed] for seed in kept}
        rows.append(_row(f"{signal}, {guard}: end", ends))
        rows.append(_row(f"{signal}, {guard}: below the peak (of the other seeds)", falls))
        rows.append(_row(f"{signal}, {guard}: share of the peak kept", kept, "ratio"))
        noticed = {seed: lost for seed, result in by_seed.items() if (lost := lost_when_noticed(result)) is not None}
        rows.append(_row(f"{signal}, {guard}: lost when the guard first acted", noticed))
    return [row for row in rows if row.n]


def held_out(result: dict[str, Any]) -> dict[int, float]:
    [name] = result["summary"]["tasks"]
    return curve_of(result, f"validation/{name}/pass@1")


WIDTH = 3
"""Iterations that a moving average goes over: a single best measurement would be luck in part."""


def peak(curve: dict[int, float]) -> float:
    """Best moving average. Still lucky: it is the best of many. What is held against it is held against more than there
    was to keep."""
    return float(_moving_average(curve).max())


def fair_peaks(curves: dict[int, dict[int, float]]) -> dict[int, float]:
    """Of each seed's curve, its moving average where that of the other seeds' mean curve is highest: chosen without a
    look at the seed, so that noise alone makes no peak."""
    averages = {seed: _moving_average(curve) for seed, curve in curves.items()}
    fair = {}
    for seed, own in averages.items():
        others = [average for other, average in averages.items() if other != seed]
        fair[seed] = float(own[np.mean(others, axis=0).argmax()]) if others else float(own.max())
    return fair


def _moving_average(curve: dict[int, float]) -> np.ndarray:
    """The start stands for a whole window: where nothing ever rises, it is the peak."""
    values = list(curve.values())
    return np.convolve([values[0]] * (WIDTH - 1) + values, np.ones(WIDTH) / WIDTH, mode="valid")


def end(result: dict[str, Any]) -> float:
    """Of the adapter that the run ended with."""
    return held_out(result)[result["summary"]["adapter_iteration"]]


def lost_when_noticed(result: dict[str, Any]) -> float | None:
    """How far below its best moving average until then the run was when its canary first reported a fall, as a share of
    it; None where it never did."""
    acted = [row["iteration"] for row in result["summary"]["guard"] if "canary" in row["reason"]]
    if not acted:
        return None
    averages = _moving_average(held_out(result))[: acted[0] + 1]
    return float(1 - averages[-1] / averages.max())


def _row(name: str, by_seed: dict[int, float], unit: str = "share") -> Row:
    return row_over_seeds(name, by_seed, unit) if by_seed else Row(name, float("nan"), unit)


def plot(found: dict[str, Results]) -> None:
    """One panel per signal and guard: every seed's curve, and where its final adapter lies."""
    figure, grid = plt.subplots(len(found), len(GUARDS), figsize=(11, 3.4 * len(found)), sharex=True, sharey="row")
    for row, (signal, results) in zip(np.atleast_2d(grid), found.items(), strict=True):
        for axes, (guard, by_seed) in zip(row, results.items(), strict=True):
            for seed, result in by_seed.items():
                curve = held_out(result)
                [line] = axes.plot(list(curve), list(curve.values()), linewidth=1, label=f"seed {seed}")
                axes.plot(result["summary"]["adapter_iteration"], end(result), "o", color=line.get_color())
            axes.set_title(f"{signal}, {guard}", fontsize=10)
            axes.grid(alpha=0.3)
        row[0].set_ylabel("held-out pass@1")
    for axes in np.atleast_2d(grid)[-1]:
        axes.set_xlabel("iteration (dot: the final adapter)")
    np.atleast_2d(grid)[0, -1].legend(fontsize=7)
    save_figure(figure, FIGURE)
    plt.close(figure)


if __name__ == "__main__":
    main()
