"""summary.json, and the table that a run ends with."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from rlsf.evaluation.evaluate import Change, Evaluation
from rlsf.provenance import provenance

if TYPE_CHECKING:
    from rlsf.display import Display
    from rlsf.run import Run
    from rlsf.tasks import Task


def summarize(run: "Run") -> dict[str, Any]:
    """Everything that a script wants to know of a finished run, as JSON."""
    tasks = {task.name: _summarize_task(run, task) for task in run.stream.tasks}
    return {
        "name": run.config.name,
        "seed": run.config.seed,
        "algorithm": run.config.algorithm.kind,
        "reward": run.config.reward.kind,
        "engine": run.engine.description,
        "model": run.config.model.source,
        "iterations": run.state.iteration,
        "stop_reason": run.state.stop_reason,
        "adapter_iteration": run.state.best_iteration
        if run.config.evaluation.select == "best"
        else run.state.iteration,
        "labels": {
            "warm_start_examples": run.config.warm_start.examples if run.config.warm_start else 0,
            "reward_sees_labels": "reference" in run.reward.needs,
        },
        "tasks": tasks,
        "preflight": run.state.preflight,
        "tokens": run.state.tokens,
        "seconds": {name: round(value, 2) for name, value in run.state.seconds.items()},
        **provenance(),
    }


def _summarize_task(run: "Run", task: "Task") -> dict[str, Any]:
    base = run.load_evaluation("base", task.name)
    warm = run.load_evaluation("warm_start", task.name) if run.config.warm_start else None
    final = run.load_evaluation("final", task.name)
    change = Change.between(warm or base, final, seed=run.seed("bootstrap", task.name))
    return {
        "base": base.summary(),
        "warm_start": warm.summary() if warm else None,
        "final": final.summary(),
        "change": {
            "from": "warm_start" if warm else "base",
            "pass@1": asdict(change.pass_at_1),
            "greedy": asdict(change.greedy) if change.greedy else None,
        },
        "trivial": {name: asdict(estimate) for name, estimate in run.trivial_baselines(task).items()},
    }


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """One table per run: before, after, the paired change, and what answering without thinking would score."""
    for name, task in summary["tasks"].items():
        rows = task["final"]["prompts"]
        table = Table(
            title=f"{name}: {rows} held-out prompts × {task['final']['samples_per_prompt']} samples",
            title_justify="left",
        )
        table.add_column("")
        keys = [key for key in task["final"] if isinstance(task["final"][key], dict)]
        for key in keys:
            table.add_column(key if key != "pass@1" else "pass@1 (sampled)", justify="right")
        for label, column in (("base model", "base"), ("after warm start", "warm_start"), ("after the loop", "final")):
            if task[column] is not None:
                table.add_row(label, *[_interval(task[column].get(key)) for key in keys])
        change = task["change"]
        table.add_row(
            f"change over {'warm start' if change['from'] == 'warm_start' else 'base'}",
            *[_interval(change.get(key), signed=True) for key in keys],
            style="bold",
        )
        for trivial, estimate in task["trivial"].items():
            table.add_row(f"always {trivial}", _interval(estimate), style="dim")
        console.print(table)
    labels = summary["labels"]
    used = (
        f"{labels['warm_start_examples']} labelled examples in the warm start; "
        if labels["warm_start_examples"]
        else ""
    )
    seen = "the reward sees labels" if labels["reward_sees_labels"] else "no label was used in the loop"
    seconds = sum(summary["seconds"].values())
    console.print(
        f"{summary['iterations']} iterations in {seconds / 60:.1f} min on {summary['engine']}; {used}{seen}. "
        "95% intervals in brackets; the change is paired over prompts.",
        highlight=False,
    )
    if summary["stop_reason"]:
        console.print(f"Stopped early: {summary['stop_reason']}.", highlight=False)


def show_preflight(reports: list[dict[str, Any]], display: "Display") -> None:
    """What the model can do and what the signal knows, one line per task, and the warnings."""
    for report in reports:
        n = report["n"]
        figures = [f"{key} {report[key]['value']:.2f}" for key in ("pass@1", f"majority@{n}", "greedy", f"pass@{n}")]
        for key, title in (("auroc", "AUROC of the signal"), ("auroc_within_groups", "within groups")):
            figures.append(f"{title} {'unknown' if report[key] is None else format(report[key], '.2f')}")
        display.say(f"preflight {report['task']} ({report['prompts']} canary prompts): {', '.join(figures)}")
        for warning in report["warnings"]:
            display.warn(warning)


def _interval(estimate: dict[str, float] | None, *, signed: bool = False) -> str:
    if estimate is None:
        return ""
    sign = "+" if signed else ""
    return f"{estimate['value']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"


def print_evaluations(evaluations: list[Evaluation], adapter: str, console: Console) -> None:
    """For `rlsf eval`."""
    summaries = [evaluation.summary() for evaluation in evaluations]
    keys = [key for key in summaries[0] if isinstance(summaries[0][key], dict)]
    table = Table("task", "prompts", title=f"adapter {adapter}, {evaluations[0].split} split", title_justify="left")
    for key in keys:
        table.add_column(key, justify="right")
    for evaluation, summary in zip(evaluations, summaries, strict=True):
        table.add_row(evaluation.task, str(summary["prompts"]), *[_interval(summary[key]) for key in keys])
    console.print(table)
