"""What does each signal teach? Learning curves at equal budgets, on held-out data, against labels and no learning.

    python -m benchmarks.self_feedback                    # the lab model: what is not measured yet, 5 seeds
    python -m benchmarks.self_feedback --model smollm2    # SmolLM2-135M: fewer signals and seeds, hours

Every method gets the same prompts, rollouts, optimizer steps and settings; only the reward differs. One cell per
(task, method, seed) in results/self_feedback/; the table, the curves in docs/figures/ and self_feedback.json are made
of whatever cells there are.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from benchmarks.cells import CONFIGS, ROOT, Cell, curve_of, mean_interval, measure_all, read, row_over_seeds
from benchmarks.results import Row, merged, print_rows, write_results
from rlsf.figures import save_figure

FIGURES = ROOT / "docs" / "figures"

REWARDS = {
    "verifier": "{kind: verifier}",
    "majority": "{kind: majority, min_share: 0.4}",
    "semantic_entropy": "{kind: semantic_entropy}",
    "self_certainty": "{kind: self_certainty}",
    "confidence": "{kind: confidence}",
    "token_entropy": "{kind: token_entropy}",
    "sequence_probability": "{kind: sequence_probability, pay: probability}",
}
LABELLED = ("verifier", "sft")
JUDGED = {
    "judge": "{kind: judge, samples: 2, max_tokens: 16, reply: json}",  # in words, this model states hardly a grade
    "reflection": "{kind: reflection, critique_tokens: 32}",
}
OTHER = "semantic_entropy"
"""The label-free signal besides `majority` that taught the lab model most, on both tasks: it is tried on SmolLM2."""
FEW = 3
"""Seeds below which an interval over them says little, so that those over prompts stand beside it."""
TASKS = {
    "gcd": (),
    "sum": (
        "tasks=[{name: sum, split: {validation: 300, test: 600}, max_tokens: 8, source: {kind: reasoning_gym, "
        "dataset: chain_sum, size: 5000, params: {min_terms: 2, max_terms: 2, min_digits: 2, max_digits: 2}}}]",
    ),
}
# The verifier sees the references of every prompt that it scores: loop.iterations · loop.prompts of them.
SFT = (
    "warm_start={examples: 1920, steps: 480, batch_size: 8, learning_rate: 3.0e-4}",
    "loop.iterations=1",
    "algorithm.learning_rate=0",
    "reward={kind: verifier}",
)


def lab_cells(tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    return [
        Cell(
            "self_feedback",
            f"lab-{task}-{method}-seed{seed}",
            CONFIGS / "lab.yaml",
            (*TASKS[task], *(SFT if method == "sft" else (f"reward={REWARDS[method]}",)), f"seed={seed}"),
        )
        for seed in seeds
        for task in tasks
        for method in methods
    ]


def smollm2_cells(methods: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    rewards = REWARDS | JUDGED
    return [
        Cell(
            "self_feedback",
            f"smollm2-sums-{method}-seed{seed}",
            ROOT / "configs" / "quickstart.yaml",
            (f"reward={rewards[method]}", "evaluation.every=2", f"seed={seed}"),
        )
        for seed in seeds
        for method in methods
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("lab", "smollm2"), default="lab")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=[*REWARDS, "sft", *JUDGED])
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--again", action="store_true", help="measure the named cells anew")
    parser.add_argument("--report", action="store_true", help="only the table and plots of what was measured")
    arguments = parser.parse_args()
    if not arguments.report:
        measure_all(_wanted(arguments), again=arguments.again, jobs=arguments.jobs)
    report()


def _wanted(arguments: argparse.Namespace) -> list[Cell]:
    if arguments.model == "lab":
        return lab_cells(arguments.tasks, arguments.methods or [*REWARDS, "sft"], arguments.seeds or range(5))
    if arguments.methods or arguments.seeds:
        return smollm2_cells(arguments.methods or ["majority", "verifier"], arguments.seeds or [0, 1])
    return [*smollm2_cells(["majority", OTHER, "verifier"], [0, 1]), *smollm2_cells(list(JUDGED), [0])]


def report() -> None:
    """The table of gains, the share of the verifier's gain that each signal reaches, and the curves."""
    found = _found()
    rows: list[Row] = []
    for task, methods in found.items():
        rows += _baselines(task, methods)
        for method, cells in methods.items():
            rows += _gains(task, method, cells, methods.get("verifier", {}))
        plot(task, methods, FIGURES / f"self_feedback_{task}.svg")
    print_rows(rows, "What each signal teaches: change of held-out accuracy over the model that the loop starts from")
    summaries = [cell["summary"] for methods in found.values() for cells in methods.values() for cell in cells.values()]
    measured = merged([{key: summary[key] for key in ("versions", "commit", "machine")} for summary in summaries])
    print(f"written to {write_results('self_feedback', rows, measured)}")


Methods = dict[str, dict[int, dict[str, Any]]]
"""Results by method and seed."""


def _found() -> dict[str, Methods]:
    known = [*lab_cells(list(TASKS), [*REWARDS, "sft"], range(20)), *smollm2_cells([*REWARDS, *JUDGED], range(20))]
    found: dict[str, Methods] = {}
    for cell in known:
        if cell.path.exists():
            task, method, seed = _parts(cell.name)
            found.setdefault(task, {}).setdefault(method, {})[seed] = read(cell)
    return found


def _parts(name: str) -> tuple[str, str, int]:
    model, task, method, seed = name.split("-")
    return f"{model}-{task}", method, int(seed.removeprefix("seed"))


def _task(result: dict[str, Any]) -> dict[str, Any]:
    [task] = result["summary"]["tasks"].values()
    return task


def _stage(result: dict[str, Any], method: str, stage: str, key: str) -> float:
    """`before` is the model that the loop starts from, `after` what came of it."""
    task = _task(result)
    if method == "sft":
        return task["base" if stage == "before" else "warm_start"][key]["value"]
    return task[task["change"]["from"] if stage == "before" else "final"][key]["value"]


def _baselines(task: str, methods: Methods) -> list[Row]:
    """What there is without learning, on the same held-out prompts."""
    cells = next((cells for method, cells in methods.items() if method != "sft"), {})
    rows = []
    for title, key in (("pass@1", "pass@1"), ("greedy", "greedy"), ("majority vote", "majority@")):
        values = {seed: _before(result, key) for seed, result in cells.items()}
        rows.append(row_over_seeds(f"{task}: before the loop, {title}", values))
    return rows


def _before(result: dict[str, Any], key: str) -> float:
    task = _task(result)
    before = task[task["change"]["from"]]
    return next(before[name]["value"] for name in before if name.startswith(key))


def _gains(task: str, method: str, cells: dict[int, dict[str, Any]], verifier: dict[int, dict[str, Any]]) -> list[Row]:
    gains = {seed: _gain(result, method, "pass@1") for seed, result in cells.items()}
    rows = [
        row_over_seeds(f"{task}: {method}, change of pass@1", gains),
        row_over_seeds(
            f"{task}: {method}, change of greedy", {s: _gain(r, method, "greedy") for s, r in cells.items()}
        ),
    ]
    if len(cells) < FEW:
        for seed, result in sorted(cells.items()):
            rows += _of_one_seed(task, method, seed, result)
    both = sorted(gains.keys() & verifier.keys())
    if method != "verifier" and both:
        labels = {seed: _gain(verifier[seed], "verifier", "pass@1") for seed in both}
        value, low, high = ratio_interval([gains[s] for s in both], [labels[s] for s in both])
        rows.append(
            Row(f"{task}: {method}, share of the verifier's gain", value, "ratio", low, high, len(both), tuple(both))
        )
    return rows


def _of_one_seed(task: str, method: str, seed: int, result: dict[str, Any]) -> list[Row]:
    """What the signal knew beforehand (where the run had a preflight), and what it taught: a paired bootstrap over the
    held-out prompts."""
    change = _task(result)["change"]
    measured = [(f"change of {key}", "share", change[key]) for key in ("pass@1", "greedy")]
    measured += [
        ("AUROC within groups in preflight", "auroc", known)
        for part in result["summary"]["preflight"] or []
        if (known := part.get("auroc_within_groups_interval"))
    ]
    return [
        Row(f"{task}: {method}, {name}, seed {seed}", m["value"], unit, m["low"], m["high"], m["n"], (seed,))
        for name, unit, m in measured
    ]


def _gain(result: dict[str, Any], method: str, key: str) -> float:
    return _stage(result, method, "after", key) - _stage(result, method, "before", key)


def ratio_interval(values: Sequence[float], others: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Ratio of the means of paired values, and Fieller's 95% interval of it: the ratios r for which a t test does not
    refuse that values − r · others is 0 on average. None for a single pair, and where the others' mean may itself be 0,
    so that the ratio has no bounds."""
    x, y = np.asarray(values, dtype=float), np.asarray(others, dtype=float)
    ratio = float(x.mean() / y.mean())
    if len(x) < 2:
        return ratio, None, None
    (xx, xy), (_, yy) = np.cov(x, y) * stats.t.ppf(0.975, len(x) - 1) ** 2 / len(x)
    a, b, c = y.mean() ** 2 - yy, x.mean() * y.mean() - xy, x.mean() ** 2 - xx  # a r² − 2 b r + c ≤ 0
    if a <= 0:
        return ratio, None, None
    half = float(np.sqrt(max(b**2 - a * c, 0.0)) / a)
    return ratio, float(b / a) - half, float(b / a) + half


COLOURS = dict(zip((*REWARDS, *JUDGED), plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]


def plot(task: str, methods: Methods, path: Path) -> None:
    """Held-out pass@1 by iteration: mean over seeds, and its 95% interval as a band; of few seeds, each by itself."""
    figure, axes = plt.subplots(figsize=(8, 4.8))
    for method, cells in methods.items():
        if method == "sft":
            after = mean_interval([_stage(result, method, "after", "pass@1") for result in cells.values()])[0]
            axes.axhline(after, color="grey", linestyle=":", label=f"sft ({len(cells)} seeds, test split)")
            continue
        curves = [_validation(result) for result in cells.values()]
        iterations = sorted(set.intersection(*[set(curve) for curve in curves]))
        bands = np.array([mean_interval([curve[i] for curve in curves]) for i in iterations], dtype=float).T
        style = "--" if method in LABELLED else "-"
        seeds = "1 seed" if len(cells) == 1 else f"{len(cells)} seeds"
        axes.plot(iterations, bands[0], style, color=COLOURS[method], label=f"{method} ({seeds})")
        if len(curves) < FEW:
            for curve in curves:
                axes.plot(iterations, [curve[i] for i in iterations], style, color=COLOURS[method], alpha=0.4, lw=0.8)
        else:
            axes.fill_between(iterations, bands[1], bands[2], color=COLOURS[method], alpha=0.12, linewidth=0)
    axes.set(xlabel="iteration", ylabel="held-out pass@1", title=f"{task}: same budget, different rewards")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    save_figure(figure, path)
    plt.close(figure)


def _validation(result: dict[str, Any]) -> dict[int, float]:
    [name] = result["summary"]["tasks"]
    return curve_of(result, f"validation/{name}/pass@1")


if __name__ == "__main__":
    main()
