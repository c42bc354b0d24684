"""What does each signal know about the truth? SmolLM2-135M, three tasks, the same rollouts for every signal.

    python -m benchmarks.signals                  # what is not measured yet

One cell per (task, signal) in results/signals/. The rollouts of a task are drawn anew from the seed, the same each
time.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console

from benchmarks.cells import CONFIGS, RESULTS, ROOT
from benchmarks.results import Row, merged, print_rows, write_results
from reward.config import RewardConfig
from reward.factory import make_reward
from rlsf.config.load import load_config
from rlsf.config.schema import RunConfig
from rlsf.display import Display
from rlsf.embedding import policy_embedder
from rlsf.evaluation.grading import Grader
from rlsf.offline.demands import Demands
from rlsf.offline.models import Models, open_models
from rlsf.offline.plot import plot_signals
from rlsf.offline.signals import DEFAULT_SIGNALS, SignalReport, best_first, measure_signals
from rlsf.provenance import provenance
from rlsf.scorer import Scorer
from rlsf.seeds import derive_seed
from rlsf.tasks import Task, build_stream
from rollouts.types import Prompt, Rollout

CELLS = RESULTS / "signals"

ASKING: dict[str, Any] = {
    "judge": {"kind": "judge", "chat": True, "samples": 4, "max_tokens": 8},
    "judge_json": {"kind": "judge", "chat": True, "samples": 4, "max_tokens": 16, "reply": "json"},
    "pairwise_judge": {"kind": "pairwise_judge", "chat": True, "opponents": 2, "max_tokens": 8},
    "meta_judge": {"kind": "meta_judge", "chat": True, "samples": 2, "max_tokens": 32},
    "reflection": {"kind": "reflection", "chat": True, "critique_tokens": 48},
}
"""Signals that generate, measured on the first task alone: each takes several minutes. They ask in chats, since to bare
text the model mostly replies nothing."""
OTHERS: dict[str, Any] = {
    "p_true_chat": {"kind": "p_true", "chat": True},
    "votes_and_probability": {
        "kind": "weighted_sum",
        "components": {
            "votes": {"normalize": "group", "reward": {"kind": "majority", "soft": True}},
            "probability": {"normalize": "group", "reward": {"kind": "sequence_probability"}},
        },
    },
    "rules": {"kind": "rules", "rules": [{"name": "bare", "kind": "pattern", "require": "^-?[0-9]+$"}]},
}
"""Another way to ask, what two rewards make of each other, and a rule on the form."""


def signals() -> Mapping[str, RewardConfig]:
    adapter: TypeAdapter[RewardConfig] = TypeAdapter(RewardConfig)
    others = {name: adapter.validate_python(config) for name, config in {**OTHERS, **ASKING}.items()}
    return {**DEFAULT_SIGNALS, **others}


@dataclass(frozen=True)
class Measured:
    """The rollouts of one task."""

    prompts: list[Prompt]
    rollouts: list[list[Rollout]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", nargs="+", choices=list(signals()), default=list(signals()))
    parser.add_argument("--prompts", type=int, default=120, help="per task")
    parser.add_argument("--again", action="store_true", help="measure the named cells anew")
    parser.add_argument("--report", action="store_true", help="only the table and plots of what was measured")
    arguments = parser.parse_args()
    if not arguments.report:
        measure(arguments.signals, arguments.prompts, again=arguments.again)
    report()


def measure(names: list[str], prompts: int, *, again: bool) -> None:
    config = load_config(CONFIGS / "signals.yaml")
    tasks = build_stream(config).tasks
    missing = {
        task.name: [
            name
            for name in names
            if (task is tasks[0] or name not in ASKING) and (again or not _is_measured(task, name, prompts))
        ]
        for task in tasks
    }
    if not any(missing.values()):
        return
    everything = Demands(tokens=True, logprobs=True, policy=True, engine=True)
    with (
        Display(Console(), "signals", total=sum(map(len, missing.values()))) as display,
        open_models(config.model, config.engine, everything, display, seed=config.seed) as models,
    ):
        for task in tasks:
            if missing[task.name]:
                _measure_task(task, missing[task.name], prompts, config, models, display)


def _measure_task(
    task: Task, names: list[str], prompts: int, config: RunConfig, models: Models, display: Display
) -> None:
    assert models.engine is not None and models.policy is not None
    asked = task.test[:prompts]
    with display.phase(f"{task.name}: rollouts"):
        rollouts = models.engine.generate(
            asked, config.sampling_of(task.config), seed=derive_seed(config.seed, "generate", task.name)
        )
    grader = Grader(task.config, policy_embedder(models.policy))

    def make_scorer(reward: RewardConfig) -> Scorer:
        made = make_reward(reward, graders={task.name: grader.verifier})
        return Scorer(made, {task.name: grader}, models.policy, models.engine)

    for name in names:
        [found] = measure_signals(
            {name: signals()[name]}, asked, rollouts, grader, make_scorer, seed=config.seed, phase=_phase(task, display)
        )
        cell = _cell(task.name, name)
        cell.parent.mkdir(parents=True, exist_ok=True)
        content = {
            **provenance(),
            "engine": models.engine.description,
            "rollouts": _digest(rollouts),
            "config": _settings(name),
            "report": found.as_json(),
        }
        cell.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        within = found.auroc_within_groups
        display.say(f"{task.name}: {name} {'–' if within is None else f'{within.value:.3f}'}")


def _phase(task: Task, display: Display) -> Any:
    @contextmanager
    def phase(name: str) -> Iterator[None]:
        with display.phase(f"{task.name}: {name}"):
            yield

    return phase


def _cell(task: str, signal: str) -> Path:
    return CELLS / f"{task}-{signal}.json"


def _is_measured(task: Task, name: str, prompts: int) -> bool:
    """Whether there is a cell of this signal as it is set now, with every figure that there is now."""
    path = _cell(task.name, name)
    if not path.exists():
        return False
    cell = json.loads(path.read_text("utf-8"))
    has_every_figure = cell["report"].keys() == {field.name for field in fields(SignalReport)}
    return cell["report"]["prompts"] == prompts and cell["config"] == _settings(name) and has_every_figure


def _settings(name: str) -> dict[str, Any]:
    return signals()[name].model_dump(mode="json")


def _digest(rollouts: list[list[Rollout]]) -> str:
    texts = [[rollout.text for rollout in group] for group in rollouts]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def report() -> None:
    cells = [json.loads(path.read_text("utf-8")) for path in sorted(CELLS.glob("*.json"))]
    adapter = TypeAdapter(SignalReport)
    reports = [adapter.validate_python(cell["report"]) for cell in cells]
    _check_comparable(cells)
    rows: list[Row] = []
    for task in dict.fromkeys(found.task for found in reports):
        ordered = best_first([found for found in reports if found.task == task])
        plot_signals(ordered, ROOT / "docs" / "figures" / f"signals_{task}.svg")
        rows += [row for found in ordered for row in _rows(found)]
    print_rows(rows, "What each signal knows about the truth")
    measured = merged([{key: cell[key] for key in ("versions", "commit", "machine")} for cell in cells])
    print(f"written to {write_results('signals', rows, measured)}")


def _check_comparable(cells: list[dict[str, Any]]) -> None:
    """Raises SystemExit where signals of one task were measured on different rollouts, or one with other settings than
    those of now."""
    seen: dict[str, str] = {}
    for cell in cells:
        report = cell["report"]
        if cell["config"] != _settings(report["name"]):
            raise SystemExit(f"{report['task']}: {report['name']} was measured with other settings: measure it anew")
        if seen.setdefault(report["task"], cell["rollouts"]) != cell["rollouts"]:
            raise SystemExit(
                f"signals of {report['task']} were measured on different rollouts ({report['name']} among them): "
                "measure them together, with --again"
            )


def _rows(found: SignalReport) -> list[Row]:
    name = f"{found.task}: {found.name}"
    rows = []
    for title, estimate in (
        ("AUROC within groups", found.auroc_within_groups),
        ("AUROC among those that answer", found.auroc_within_answered),
        ("AUROC", found.auroc),
    ):
        if estimate is not None:
            rows.append(Row(f"{name}, {title}", estimate.value, "share", estimate.low, estimate.high, estimate.n))
    rows.append(Row(f"{name}, no opinion", found.no_opinion, "share"))
    rows.append(Row(f"{name}, generated", found.tokens_per_rollout, "tokens/rollout"))
    rows.append(Row(f"{name}, time", found.seconds_per_rollout, "s/rollout"))
    if found.unread is not None:
        rows.append(Row(f"{name}, unreadable", found.unread, "share"))
    return rows


if __name__ == "__main__":
    main()
