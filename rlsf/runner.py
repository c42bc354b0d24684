"""What `rlsf run` and `rlsf resume` do."""

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from rlsf.config.load import load_config, resolved_yaml
from rlsf.config.schema import RunConfig
from rlsf.display import Display
from rlsf.errors import InterruptedStart, RunDirError
from rlsf.evaluation.report import print_summary
from rlsf.loop import train
from rlsf.provenance import provenance
from rlsf.run import Run
from rlsf.run_dir import RunDir
from rlsf.tasks import Stream, Task, build_stream

CHANGEABLE = (
    *("name", "output_dir", "engine", "delivery", "evaluation", "preflight", "tracking"),
    *("loop.checkpoint_every", "loop.keep_checkpoints"),
)
"""Keys that a resumed run may have other values of."""
_ABSENT = object()


def start(config: RunConfig, console: Console, *, overwrite: bool = False) -> None:
    """A new run, from config to table. One that cannot even start leaves nothing behind, and what it would have
    overwritten where it was.

    Raises:
        RlsfError, EngineError, RewardError: with a message for the user.
    """
    stream = build_stream(config)  # before the folder is made: bad data leaves no trace
    path = Path(config.output_dir) / config.name
    previous = RunDir(path).set_aside() if overwrite else None
    directory = RunDir.create(path)
    with Display(console, f"rlsf {config.name}", total=stream.iterations) as display, directory.locked():
        try:
            began = {**provenance(), "data": stream.digests(), "config": config.model_dump(mode="json")}
            directory.write_json(directory.versions, began)
            directory.write_text(directory.config, resolved_yaml(config))
            run = Run(config, directory, stream, display)
        except KeyboardInterrupt:
            directory.discard(previous)
            raise InterruptedStart from None
        except BaseException:
            directory.discard(previous)
            raise
        if previous is not None:
            shutil.rmtree(previous)
        _train(run)
    _conclude(directory, console)


def continue_run(directory: RunDir, console: Console) -> None:
    """Go on from the last checkpoint of a run; a finished one only shows its table.

    Raises:
        RlsfError, EngineError, RewardError: with a message for the user.
    """
    if directory.summary.exists():
        console.print(f"{directory.path} is finished.", highlight=False, markup=False)
        print_summary(directory.read_json(directory.summary), console)
        return
    config = load_config(directory.config)
    _check_config(directory, config)
    stream = build_stream(config)
    _check_data(directory, stream)
    with Display(console, f"rlsf {config.name}", total=stream.iterations) as display, directory.locked():
        _train(Run(config, directory, stream, display))
    _conclude(directory, console)


def _check_config(directory: RunDir, config: RunConfig) -> None:
    """Raises RunDirError where config.yaml was changed in a way that the run so far cannot be continued with."""
    now = config.model_dump(mode="json")
    began = directory.read_json(directory.versions).get("config", now)
    changed = [key for key in _differing(began, now) if not key.startswith(CHANGEABLE)]
    if changed:
        raise RunDirError(
            f"{directory.config}: {', '.join(changed)} changed since the run began: put it back, or start a new run. "
            f"What may change is {', '.join(CHANGEABLE)}"
        )


def _differing(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Dotted keys at which two configs differ."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return [] if before == after else [prefix]
    keys = [key for key in {**before, **after} if before.get(key, _ABSENT) != after.get(key, _ABSENT)]
    found = [_differing(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else key) for key in keys]
    return [key for part in found for key in part]


def _check_data(directory: RunDir, stream: Stream) -> None:
    """Raises RunDirError where a source has changed since the run began: held-out prompts would be trained on."""
    known = directory.read_json(directory.versions).get("data", {})
    changed = [name for name, digest in stream.digests().items() if known.get(name) != digest]
    if changed:
        raise RunDirError(
            f"the data of task {changed[0]!r} is not what {directory.path} began with: restore its source, or start a "
            "new run on the new data"
        )


def _train(run: Run) -> None:
    with run:
        for task in run.stream.tasks:
            run.display.say(describe_data(task))
            if not task.has_references:
                run.display.warn(
                    f"task {task.name} has no reference answers on its held-out prompts: its accuracy cannot be "
                    "measured, so watch the rewards and read the samples"
                )
        train(run)


def _conclude(directory: RunDir, console: Console) -> None:
    print_summary(directory.read_json(directory.summary), console)
    console.print(f"Everything is in {directory.path}", highlight=False, markup=False)


def describe_data(task: Task) -> str:
    """What the task trains and is tested on, and what was left out."""
    report = task.report
    dropped = {
        "duplicates": report.duplicates,
        "contradictory rows": report.contradictions,
        "held out by another task": report.leaked,
    }
    left_out = ", ".join(f"{count} {what}" for what, count in dropped.items() if count)
    counts = f"{len(task.train)} training, {len(task.validation)} validation and {len(task.test)} test prompts"
    return f"task {task.name}: {counts}" + (f"; left out: {left_out}" if left_out else "")
