"""What `rlsf signals` does."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from reward.config import RewardConfig
from reward.factory import make_reward
from rlsf.config.load import load_config, load_section
from rlsf.display import Display, say
from rlsf.errors import RunDirError
from rlsf.evaluation.grading import Grader
from rlsf.files import check_output_folder, mendable_output
from rlsf.offline.completions import read_completions
from rlsf.offline.config import ScoreConfig, SignalsConfig, load_score_config
from rlsf.offline.demands import (
    Demands,
    check_answers,
    check_references,
    demands_of,
    demands_of_answers,
    no_model_error,
)
from rlsf.offline.models import Adapters, Models, open_models
from rlsf.offline.plot import plot_signals
from rlsf.offline.rollouts import make_rollouts
from rlsf.offline.signals import DEFAULT_SIGNALS, SignalReport, measure_signals
from rlsf.offline.stored import LIMIT, StoredGroup, describe_versions, nearest_groups, version_at
from rlsf.offline.table import signals_table, write_signals
from rlsf.replay import ReplayStore
from rlsf.run_dir import RunDir
from rlsf.same import check_same_config, check_same_data
from rlsf.scorer import Scorer
from rlsf.seeds import derive_seed
from rlsf.tasks import Stream, build_stream
from rollouts.types import Prompt, Rollout

Signals = Mapping[str, RewardConfig]
NAME_A_MODEL = "give --config FILE with `model: {source: ...}` in it (lab, a hub id, a folder or a .gguf file)"


@dataclass(frozen=True, slots=True)
class Material:
    """The rollouts of one task that signals are measured on."""

    grader: Grader
    prompts: Sequence[Prompt]
    rollouts: Sequence[Sequence[Rollout]]


def signals_of_file(
    path: Path, console: Console, *, config: Path | None, signals: Path | None, limit: int | None, output: Path | None
) -> None:
    """Measure signals on the completions of a file.

    Args:
        config: a `ScoreConfig` or the config of a run; None is the former's defaults.
        signals: a `SignalsConfig`; None measures DEFAULT_SIGNALS, as far as there is a model for them.
        limit: at most this many groups, the first of the file.

    Raises:
        RlsfError, EngineError, RewardError: with a message for the user.
    """
    if output is not None:
        check_output_folder(output)
    settings = load_score_config(config) if config is not None else ScoreConfig()
    groups = read_completions(path, settings)[:limit]
    chosen = _chosen(signals)
    if settings.model is None:
        chosen = _without_model(chosen, signals, console)
    for name, reward in chosen.items():
        check_references(reward, groups, f"signals.{name}")
    check_answers(settings.answer, settings.model, NAME_A_MODEL)
    demands = _demands(chosen) | demands_of_answers(settings.answer)
    with (
        Display(console, f"rlsf signals {path}", total=len(chosen)) as display,
        open_models(settings.model, settings.engine, demands, display, seed=settings.seed) as models,
    ):
        rollouts = make_rollouts(groups, settings, demands, models, display)
        material = Material(Grader(settings.task, models.embed()), [group.prompt for group in groups], rollouts)
        reports = _measure(chosen, material, models, display, iteration=settings.iteration, seed=settings.seed)
    _show(reports, {"file": str(path), "config": config and str(config)}, output, console)


def signals_of_run(
    directory: RunDir, console: Console, *, adapter: str, signals: Path | None, limit: int | None, output: Path | None
) -> None:
    """Measure signals on what a run has kept in its replay store, task by task. The run itself is not touched.

    Args:
        adapter: whose probabilities count: `last`, `best`, `base`, or the number of an iteration whose checkpoint is
            still there.
        signals: a `SignalsConfig`; None measures DEFAULT_SIGNALS.
        limit: at most this many groups per task; None is LIMIT.

    Raises:
        RlsfError, EngineError, RewardError: with a message for the user.
    """
    from rlsf.evaluation.command import find_adapter

    if output is not None:
        check_output_folder(output)
    config = load_config(directory.config)
    check_same_config(directory, config)
    stream = build_stream(config)
    check_same_data(directory, stream)
    folder, iteration = find_adapter(directory, adapter)
    version = version_at(directory, iteration)
    chosen = _chosen(signals)
    demands = reduce(or_, (demands_of_answers(task.config.answer) for task in stream.tasks))
    demands |= _demands(chosen, tokens_are_known=True)
    kept = _stored(directory, stream, iteration, version, limit or LIMIT)
    found: dict[str, list[SignalReport]] = {}
    with ExitStack() as stack:
        into = Path(stack.enter_context(TemporaryDirectory(prefix="rlsf_signals_")))
        adapters = _copies(directory, folder, into)
        display = stack.enter_context(Display(console, f"rlsf signals {directory.path}", len(chosen) * len(kept)))
        models = stack.enter_context(
            open_models(config.model, config.engine, demands, display, seed=config.seed, adapters=adapters)
        )
        for task in stream.tasks:
            if task.name in kept:
                groups = kept[task.name]
                display.say(f"task {task.name}: {describe_versions(groups, version)}")
                grader = Grader(task.config, models.embed())
                material = Material(grader, [g.prompt for g in groups], [g.rollouts for g in groups])
                found[task.name] = _measure(
                    chosen, material, models, display, iteration=iteration or 0, seed=config.seed
                )
    for name, reports in found.items():
        source = {"run": str(directory.path), "adapter": adapter, "iteration": iteration, "policy_version": version}
        _show(reports, source, output / name if output is not None and len(found) > 1 else output, console)


def _stored(
    directory: RunDir, stream: Stream, iteration: int | None, version: int, limit: int
) -> dict[str, list[StoredGroup]]:
    """What the store has of each task, by its name; see `nearest_groups`.

    Raises:
        RunDirError: nothing at all.
    """
    with ReplayStore.open_read_only(directory.replay) as store:
        found = {
            task.name: nearest_groups(store, task, iteration=iteration, version=version, limit=limit)
            for task in stream.tasks
        }
    kept = {name: groups for name, groups in found.items() if groups}
    if not kept:
        raise RunDirError(f"{directory.path}: its replay store is empty; let it run for an iteration first")
    return kept


def _chosen(path: Path | None) -> Signals:
    return load_section(path, SignalsConfig).signals if path is not None else DEFAULT_SIGNALS


def _demands(signals: Signals, *, tokens_are_known: bool = False) -> Demands:
    """Of all together; rollouts of a run bring their tokens and log-probabilities along."""
    demands = reduce(or_, (demands_of(config, make_reward(config).needs) for config in signals.values()))
    return Demands(policy=demands.policy, engine=demands.engine) if tokens_are_known else demands


def _without_model(signals: Signals, path: Path | None, console: Console) -> Signals:
    """Raises ConfigError where somebody asked for a signal that demands a model."""
    possible = {name: config for name, config in signals.items() if not _demands({name: config}).any}
    missing = [name for name in signals if name not in possible]
    if missing and path is not None:
        raise no_model_error(signals[missing[0]], f"signals.{missing[0]}", NAME_A_MODEL)
    if missing:
        say(console, f"Left out for want of a model: {', '.join(missing)}; {NAME_A_MODEL}.")
    return possible


def _copies(directory: RunDir, adapter: Path | None, into: Path) -> Adapters:
    from rlsf.evaluation.command import copied

    latest = directory.latest_checkpoint()
    reference = latest / "policy" / "reference" if latest is not None else None
    return Adapters(
        copied(adapter, into) if adapter is not None else None,
        copied(reference, into) if reference is not None and reference.exists() else None,
    )


def _measure(
    signals: Signals, material: Material, models: Models, display: Display, *, iteration: int, seed: int
) -> list[SignalReport]:
    grader = material.grader

    def make_scorer(config: RewardConfig) -> Scorer:
        reward = make_reward(config, graders={grader.task: grader.verifier})
        return Scorer(reward, {grader.task: grader}, models.policy, models.engine)

    return measure_signals(
        signals,
        material.prompts,
        material.rollouts,
        grader,
        make_scorer,
        iteration=iteration,
        seed=derive_seed(seed, "signals"),
        phase=display.step,
    )


def _show(reports: Sequence[SignalReport], source: dict[str, Any], output: Path | None, console: Console) -> None:
    first = reports[0]
    what = f"{first.rollouts} rollouts of {first.prompts} prompts of task {first.task}"
    if first.right is None:
        say(console, f"{what}: none has a reference, so this is what can be said without the truth.")
    else:
        part = "" if first.labelled == first.groups else f"; {first.labelled} of {first.groups} groups have a reference"
        say(console, f"{what}, {first.right:.1%} right{part}")
    console.print(signals_table(reports))
    if output is None:
        return
    with mendable_output(output):
        write_signals(reports, source, output)
        if first.right is not None:
            plot_signals(reports, output / "signals.png")
    say(console, f"Written to {output}")
