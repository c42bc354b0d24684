"""summary.json, and the table that a run ends with."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from rlsf.continual.matrix import describe_stream
from rlsf.continual.table import print_stream
from rlsf.display import Display, say, warn
from rlsf.evaluation.evaluate import Change, Evaluation
from rlsf.run_dir import read_jsonl

if TYPE_CHECKING:
    from rlsf.run import Run
    from rlsf.tasks import Task


def summarize(run: "Run") -> dict[str, Any]:
    """Everything that a script wants to know of a finished run, as JSON."""
    tasks = {task.name: _summarize_task(run, task) for task in run.stream.tasks}
    began = run.directory.read_json(run.directory.versions)
    warm_start = run.config.warm_start
    return {
        "name": run.config.name,
        "seed": run.config.seed,
        "algorithm": run.config.algorithm.kind,
        "reward": run.config.reward.kind,
        "engine": run.engine.description,
        "model": run.config.model.source,
        "iterations": run.state.iteration,
        "optimizer_steps": run.state.steps,
        "stop_reason": run.state.stop_reason,
        "adapter_iteration": run.state.served_iteration,
        "guard": list(read_jsonl(run.directory.guard)) if run.directory.guard.exists() else [],
        "labels": {
            "warm_start_examples": warm_start.examples * len(run.config.warm_started_tasks) if warm_start else 0,
            "reward_sees_labels": "reference" in run.reward.needs,
            "validation_labels_choose": run.config.validation_labels_choose,
        },
        "tasks": tasks,
        "continual": describe_stream(run) if len(run.stream.tasks) > 1 else None,
        "preflight": run.state.preflight,
        "tokens": run.state.tokens,
        "seconds": {name: round(value, 2) for name, value in run.state.seconds.items()},
        # As it began: the source tree may have changed since.
        **{key: began[key] for key in ("versions", "commit", "machine")},
        "config": run.config.model_dump(mode="json"),
    }


def _summarize_task(run: "Run", task: "Task") -> dict[str, Any]:
    if not task.has_references:
        return {"base": None, "warm_start": None, "final": None, "change": None, "trivial": {}}
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


CHANGE = {"base": "base", "warm_start": "warm start"}
STAGES = {"base": "base model", "warm_start": "after warm start", "final": "after the loop"}


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """A table per task: before, after, the paired change, and what answering without thinking would score."""
    for name, task in summary["tasks"].items():
        if task["final"] is None:
            say(console, f"{name}: no reference answers, so no accuracy")
        else:
            console.print(_task_table(name, task, console.width))
    if summary.get("continual"):  # older summaries have none
        print_stream(summary["continual"], console)
    labels = summary["labels"]["warm_start_examples"]
    used = f"{labels} labelled examples in warm starts; " if labels else ""
    seen = (
        "the reward sees labels" if summary["labels"]["reward_sees_labels"] else "no label was trained on in the loop"
    )
    if summary["labels"].get("validation_labels_choose"):  # older summaries do not say
        seen += ", validation labels chose the adapter or the end"
    minutes = sum(summary["seconds"].values()) / 60
    say(
        console,
        f"{summary['iterations']} iterations in {minutes:.1f} min on {summary['engine']}; {used}{seen}. "
        "95% intervals in brackets; the change is paired over prompts.",
    )
    if summary.get("optimizer_steps") == 0:
        warn(
            console,
            "not one optimizer step was taken, so the loop changed nothing: no group of rollouts had rewards that "
            "differ, if any at all. Look into samples/ for what they were, and why",
        )
    if summary["stop_reason"]:
        say(console, f"Stopped early: {summary['stop_reason']}.")


MAIN = "pass@1 (sampled)"
LABEL, CELL = 34, 25
"""Columns of a terminal: the longest label; `+0.065 [+0.033, +0.099]` and the space between two of them."""


def _task_table(name: str, task: dict[str, Any], width: int) -> Table:
    final, change = task["final"], task["change"]
    columns = {STAGES[stage]: task[stage] for stage in STAGES if task[stage] is not None}
    columns[f"change over {CHANGE[change['from']]}"] = change
    rows = {
        MAIN if key == "pass@1" else key: {
            title: _interval(column.get(key), signed=column is change) for title, column in columns.items()
        }
        for key in final
        if isinstance(final[key], dict)
    }
    always = {trivial: _interval(estimate) for trivial, estimate in task["trivial"].items()}
    table = Table(
        title=f"{name}: {final['prompts']} held-out prompts, {final['samples_per_prompt']} samples each",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    if width < LABEL + CELL * len(columns):
        _fill_upright(table, rows | {"always": always})
    else:
        _fill(table, rows | {f"always {answer}": {STAGES["base"]: cell} for answer, cell in always.items()}, columns)
    return table


def _fill(table: Table, rows: dict[str, dict[str, str]], titles: Iterable[str]) -> None:
    """A column per stage."""
    table.add_column("")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for label, cells in rows.items():
        table.add_row(label, *[cells.get(title, "") for title in titles], style=_style(label))


def _fill_upright(table: Table, rows: dict[str, dict[str, str]]) -> None:
    """A row per stage, where the terminal is too narrow for columns."""
    table.show_header = False
    for justify in ("left", "left", "right"):
        table.add_column(justify=justify, no_wrap=justify == "right")
    for label, cells in rows.items():
        shown = {title: cell for title, cell in cells.items() if cell}
        for number, (title, cell) in enumerate(shown.items()):
            table.add_row("" if number else label, title, cell, style=_style(label))
        table.add_section()


def _style(label: str) -> str:
    if label == MAIN:
        return "bold"
    return "dim" if label.startswith("always") else ""


_AUROCS = {
    "auroc": "AUROC of the signal",
    "auroc_within_groups": "within groups",
    "auroc_within_answered": "there among those that answer",
}


def show_preflight(reports: list[dict[str, Any]], display: Display) -> None:
    """What the model can do and what the signal knows, one line per task, and the warnings."""
    for report in reports:
        n = report["n"]
        figures = [f"{key} {report[key]['value']:.2f}" for key in ("pass@1", f"majority@{n}", "greedy", f"pass@{n}")]
        for key, title in _AUROCS.items():
            figures.append(f"{title} {'unknown' if report.get(key) is None else format(report[key], '.2f')}")
        display.say(f"preflight {report['task']} ({report['prompts']} canary prompts): {', '.join(figures)}")
        for warning in report["warnings"]:
            display.warn(warning)


def print_evaluations(evaluations: list[Evaluation], adapter: str, console: Console) -> None:
    """For `rlsf eval`."""
    summaries = [evaluation.summary() for evaluation in evaluations]
    title = f"adapter {adapter}, {evaluations[0].split} split, {len(evaluations[0].outcomes)} prompts"
    table = Table("", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for evaluation in evaluations:
        table.add_column(evaluation.task, justify="right")
    for key in [key for key in summaries[0] if isinstance(summaries[0][key], dict)]:
        table.add_row(key, *[_interval(summary[key]) for summary in summaries])
    console.print(table)


def _interval(estimate: dict[str, float] | None, *, signed: bool = False) -> str:
    if estimate is None:
        return ""
    sign = "+" if signed else ""
    return f"{estimate['value']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"
