"""Strategies against forgetting, side by side, on a stream of tasks that get in each other's way.

    python -m benchmarks.continual --jobs 2                  # what is not measured yet
    python -m benchmarks.continual --tune                    # what METHODS has its coefficients from, on seed 0
    python -m benchmarks.continual --model smollm2           # three methods, on the real model
    python -m benchmarks.continual --report                  # the table of what is

Four questions about the same pairs of numbers (`benchmarks.rewordings`), one after the other, on the lab model: each
begins with a warm start on 256 labels and goes on with 15 iterations of GRPO. `verifier` rewards right answers,
`majority` those that most of the group agree on, without a label. Order A is sum, larger, flip, second; order B is
second, flip, larger, sum. `joint` warm-starts on the labels of all four tasks and trains on all of them in as many
iterations; `joint_large` on as many groups in each iteration, replayed ones included, as `best`, and as many examples
in its warm start; `frozen` never takes a step. Coefficients were chosen on seed 0, which is in no table, by accuracy on
validation prompts. Test prompts are the same in every cell of a seed; intervals are Student's t over seeds, of ratios
and differences paired by seed.
"""

import argparse
import re
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.cells import CONFIGS, ROOT, RUNS, Cell, measure_all, read, row_over_seeds
from benchmarks.results import Row, merged, write_results
from benchmarks.rewordings import QUESTIONS, write_tasks
from rlsf.figures import save_figure

FIGURE = ROOT / "docs" / "figures" / "continual.svg"
JOINT = ("stream.kind=joint", "warm_start.tasks=all", "warm_start.steps=320")
PROMPTS = "replay.mode=prompts"
TUNED: dict[str, dict[str, tuple[str, ...]]] = {
    "kl": {c: (f"algorithm.kl_coef={c}", "continual.reference=last_task") for c in ("0.01", "0.1", "1")},
    "l2": {c: (f"continual.l2={{coef: {c}}}",) for c in ("0.01", "0.1", "1")},
    "ewc": {c: (f"continual.ewc={{coef: {c}}}",) for c in ("0.001", "0.01", "0.1")},
    "orthogonal": {
        c: ("model.lora={r: 32, alpha: 64}", f"continual.orthogonal={{rank: 8, coef: {c}}}") for c in ("0.5", "5", "50")
    },
    "distill": {c: (f"continual.distill={{coef: {c}, groups: 16}}",) for c in ("0.1", "1.0", "10")},
    "replay": {
        "samples 1": ("replay.ratio=1",),
        "samples 2": ("replay.ratio=2",),
        "prompts 1": ("replay.ratio=1", PROMPTS),
        "prompts 2": ("replay.ratio=2", PROMPTS),
    },
    "best": {
        f"{mode} 2, distill {c}": (
            "replay.ratio=2",
            f"replay.mode={mode}",
            f"continual.distill={{coef: {c}, groups: 16}}",
        )
        for mode, c in (("samples", "0.1"), ("samples", "1.0"), ("prompts", "0.1"), ("prompts", "1.0"))
    },
    "merge": {
        f"{init} {how}": (f"continual.adapters={{use: merge, init: {init}, combination: {how}}}",)
        for init, how in (("last", "ties"), ("last", "linear"), ("start", "linear"))
    },
}
"""What each strategy that has a coefficient was tried with, once, on seed 0, which is in no table."""
METHODS: dict[str, tuple[str, ...]] = {
    "sequential": (),
    "replay_samples": TUNED["replay"]["samples 1"],
    "replay_samples_2": TUNED["replay"]["samples 2"],
    "replay_prompts": TUNED["replay"]["prompts 1"],
    "replay_prompts_2": TUNED["replay"]["prompts 2"],
    "kl": TUNED["kl"]["0.01"],
    "l2": TUNED["l2"]["0.01"],
    "ewc": TUNED["ewc"]["0.01"],
    "orthogonal": TUNED["orthogonal"]["5"],
    "distill": TUNED["distill"]["1.0"],
    "merge": TUNED["merge"]["last ties"],
    "own": ("continual.adapters={use: own}",),
    "best": TUNED["best"]["samples 2, distill 0.1"],
    "joint": JOINT,
    "joint_large": (*JOINT, "warm_start.batch_size=40", "loop.prompts=48"),
    "frozen": ("warm_start=null", "algorithm.learning_rate=0", "loop.iterations=4"),
}
UNORDERED = ("joint", "joint_large", "frozen")
"""Where the order of the tasks plays no part."""
ORDERS = {"A": tuple(QUESTIONS), "B": tuple(reversed(QUESTIONS))}
REWARDS = ("verifier", "majority")
SEEDS = (1, 2, 3, 4, 5)
SHARE = "share of joint ACC"
COST = "thousand tokens generated in training"
METRICS = ("ACC", "BWT", "FWT", "forgetting")
REAL = "SmolLM2, verifier"
SMOLLM2 = ("sequential", "best", "joint")
"""What is confirmed on SmolLM2, on three of the questions, with one seed and the verifier's reward."""


def smollm2_cell(method: str, seed: int) -> Cell:
    changes = {
        **METHODS,
        "best": (*METHODS["best"], "continual.distill.batch_size=16"),
        "joint": (*JOINT[:2], "warm_start.steps=72"),
    }
    return Cell(
        "continual",
        f"smollm2-{method}-seed{seed}",
        CONFIGS / "continual_smollm2.yaml",
        (*changes[method], f"seed={seed}"),
    )


def tuning_cell(method: str, value: str) -> Cell:
    changes = (f"stream.order=[{', '.join(ORDERS['A'])}]", *TUNED[method][value], "reward={kind: verifier}", "seed=0")
    return Cell("continual", f"tune-{method}-{re.sub('[ ,]+', '-', value)}", CONFIGS / "continual_lab.yaml", changes)


def cell_of(reward: str, order: str, method: str, seed: int) -> Cell:
    ordered = () if method in UNORDERED else (f"stream.order=[{', '.join(ORDERS[order])}]",)
    name = f"{reward}-{method}-seed{seed}" if method in UNORDERED else f"{reward}-{order}-{method}-seed{seed}"
    changes = (*ordered, *METHODS[method], f"reward={{kind: {reward}}}", f"seed={seed}")
    return Cell("continual", name, CONFIGS / "continual_lab.yaml", changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rewards", nargs="+", choices=REWARDS, default=list(REWARDS))
    parser.add_argument("--orders", nargs="+", choices=list(ORDERS), default=list(ORDERS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--model", choices=("lab", "smollm2"), default="lab")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--again", action="store_true", help="measure the named cells anew")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if not arguments.report:
        write_tasks(RUNS / "continual" / "data")
        wanted = [
            cell_of(reward, order, method, seed)
            for reward in arguments.rewards
            for order in arguments.orders
            for seed in arguments.seeds
            for method in arguments.methods
        ]
        if arguments.model == "smollm2":
            wanted = [smollm2_cell(method, 1) for method in SMOLLM2 if method in arguments.methods]
        if arguments.tune:
            wanted = [tuning_cell(method, value) for method in TUNED for value in TUNED[method]]
        measure_all(list({cell.path: cell for cell in wanted}.values()), again=arguments.again, jobs=arguments.jobs)
    report()


Found = dict[int, dict[str, Any]]
"""Summaries by seed."""


def report() -> None:
    """Table, figure and results/continual.json of every cell that has been measured."""
    rows: list[Row] = []
    panels: dict[str, dict[str, dict[str, Row]]] = {}
    found = _found()
    for title, by_method in found.items():
        joint = by_method["joint"]
        panels[title] = {method: _figures(by_seed, joint) for method, by_seed in by_method.items() if by_seed}
        rows += [_named(f"{title}, {m}: {name}", row) for m, by in panels[title].items() for name, row in by.items()]
        Console().print(_table(title, panels[title]))
    tuned = {f"{m} {value}": tuning_cell(m, value) for m, values in TUNED.items() for value in values}
    for name, cell in tuned.items():
        if cell.path.exists():
            reached = validation_accuracy(read(cell))
            rows.append(Row(f"tuning, {name}: accuracy on validation prompts", reached, "share", seeds=(0,)))
            print(f"tuning, {name}: accuracy on validation prompts {reached:.3f}")
    orders = {title: by_method for title, by_method in panels.items() if title != REAL}
    if orders:
        plot(orders)
    cells = [by_seed for by_method in found.values() for by_seed in by_method.values()]
    cells += [_read({0: cell}) for cell in tuned.values()]
    summaries = [summary for by_seed in cells for summary in by_seed.values()]
    measured = merged([{key: summary[key] for key in ("versions", "commit", "machine")} for summary in summaries])
    print(f"written to {write_results('continual', rows, measured)}")


def _found() -> dict[str, dict[str, Found]]:
    """Of every table that has a cell to show: the summaries by method."""
    found = {
        f"{reward}, order {order}": {
            method: _read({seed: cell_of(reward, order, method, seed) for seed in range(1, 21)}) for method in METHODS
        }
        for reward in REWARDS
        for order in ORDERS
    }
    found[REAL] = {method: _read({1: smollm2_cell(method, 1)}) for method in SMOLLM2}
    return {
        title: by_method
        for title, by_method in found.items()
        if any(by_seed for method, by_seed in by_method.items() if method not in UNORDERED)
    }


def _read(cells: Mapping[int, Cell]) -> Found:
    return {seed: read(cell)["summary"] for seed, cell in cells.items() if cell.path.exists()}


def _figures(found: Found, joint: Found) -> dict[str, Row]:
    """Each metric over seeds, and what is reached of joint training's accuracy."""
    figures = {}
    for name in METRICS:
        values = {seed: _metric(summary, name) for seed, summary in found.items()}
        known = {seed: value for seed, value in values.items() if value is not None}
        if known:
            figures[name] = row_over_seeds(name, known)
    ratios = {seed: _of(summary, "ACC") / _of(joint[seed], "ACC") for seed, summary in found.items() if seed in joint}
    if ratios:
        figures[SHARE] = row_over_seeds(SHARE, ratios, "ratio")
    answers = {seed: _generated(summary) / 1000 for seed, summary in found.items()}
    figures[COST] = row_over_seeds(COST, answers, "thousand")
    return figures


def validation_accuracy(result: Mapping[str, Any]) -> float:
    """Mean over tasks of pass@1 on validation prompts after the last iteration."""
    last = result["curve"][-1]
    return float(np.mean([value for name, value in last.items() if re.fullmatch(r"validation/[^/]+/pass@1", name)]))


def _generated(summary: Mapping[str, Any]) -> int:
    """Tokens of all answers that were trained on: in the loop, and to rehearse in warm starts."""
    return sum(summary["tokens"].get(phase, 0) for phase in ("generate", "consolidate"))


def _metric(summary: Mapping[str, Any], name: str) -> float | None:
    estimate = summary["continual"]["metrics"][name]
    return None if estimate is None else float(estimate["value"])


def _of(summary: Mapping[str, Any], name: str) -> float:
    value = _metric(summary, name)
    assert value is not None, f"{name} is defined for every stream"
    return value


def _named(name: str, row: Row) -> Row:
    return Row(name, row.value, row.unit, row.low, row.high, row.n, row.seeds)


def _table(title: str, figures: Mapping[str, Mapping[str, Row]]) -> Table:
    title = f"{title}; ± half of a 95% interval"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    names = (*METRICS, SHARE, COST)
    table.add_column("(seeds)", no_wrap=True)
    for heading in (*METRICS, "of joint", "tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    for method, by_name in figures.items():
        seeds = next(iter(by_name.values())).n
        table.add_row(f"{method} ({seeds})", *[_cell(by_name.get(name)) for name in names])
    return table


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    if row.unit == "thousand":
        return f"{row.value:.0f}k"
    if row.low is None or row.high is None:
        return f"{row.value:.3f}"
    return f"{row.value:.3f}\n±{row.high - row.value:.3f}"


def plot(panels: Mapping[str, Mapping[str, Mapping[str, Row]]]) -> None:
    """Accuracy against backward transfer, a point per method, with intervals."""
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(5.6 * columns, 4.2 * lines), squeeze=False, sharex=True)
    for axes, (title, figures) in zip(grid.flat, panels.items(), strict=False):
        colours = plt.get_cmap("tab20")(np.linspace(0, 1, len(METHODS)))
        for colour, method in zip(colours, METHODS, strict=True):
            found = figures.get(method, {})
            if "BWT" in found and method not in UNORDERED:
                axes.errorbar(
                    found["BWT"].value,
                    found["ACC"].value,
                    xerr=_half(found["BWT"]),
                    yerr=_half(found["ACC"]),
                    fmt="o",
                    color=colour,
                    label=method,
                    markersize=5,
                )
        for method, style in (("joint", "-"), ("frozen", ":")):
            if method in figures:
                axes.axhline(figures[method]["ACC"].value, color="black", linestyle=style, linewidth=1, label=method)
        axes.axvline(0, color="grey", linewidth=0.5)
        axes.set(title=title, xlabel="backward transfer (BWT)", ylabel="average accuracy at the end (ACC)")
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    grid.flat[0].legend(fontsize=7, loc="best")
    save_figure(figure, FIGURE)
    plt.close(figure)


def _half(row: Row) -> float:
    return 0.0 if row.high is None else row.high - row.value


if __name__ == "__main__":
    main()
