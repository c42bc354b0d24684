"""What `rlsf run` and `rlsf resume` do."""

from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from rlsf.config.load import load_config, resolved_yaml
from rlsf.config.schema import RunConfig
from rlsf.display import Display, say
from rlsf.errors import InterruptedRun, RunDirError
from rlsf.evaluation.report import print_summary
from rlsf.loop import train
from rlsf.provenance import provenance
from rlsf.run import Run
from rlsf.run_dir import RunDir
from rlsf.same import changed_rewards, check_same_config, check_same_data, reward_digests
from rlsf.tasks import Stream, Task, build_stream


def start(config: RunConfig, console: Console, *, overwrite: bool = False) -> None:
    """A new run, from config to table. One that cannot even start leaves nothing behind, and what it would have
    overwritten where it was.

    Raises:
        RlsfError, EngineError, RewardError: with a message for the user.
        InterruptedRun: Ctrl-C once the run stands.
    """
    stream = build_stream(config)  # before the folder is made: bad data leaves no trace
    directory = RunDir(Path(config.output_dir) / config.name)
    with ExitStack() as parts:
        with directory.starting():
            _begin(directory, config, stream, parts, overwrite=overwrite)
        display = parts.enter_context(Display(console, f"rlsf {config.name}", total=stream.iterations))
        try:
            run = Run(config, directory, stream, display)
        except BaseException:
            with directory.starting():
                directory.discard()
            raise
        try:
            _train(run)
        except KeyboardInterrupt:
            raise InterruptedRun from None
        finally:
            if directory.previous.exists():
                display.say(f"The run that was to be replaced is still there: {directory.previous}")
    _conclude(directory, console)


def _begin(directory: RunDir, config: RunConfig, stream: Stream, parts: ExitStack, *, overwrite: bool) -> None:
    """Make the folder, lock it until `parts` close, and write what the run begins with; all of it, or nothing."""
    if overwrite:
        directory.set_aside()
    else:
        directory.put_back()
    try:
        RunDir.create(directory.path)
    except BaseException:
        directory.put_back()
        raise
    try:
        parts.enter_context(directory.locked())
        began = {
            **provenance(),
            "data": stream.digests(),
            "rewards": reward_digests(config.reward),
            "config": config.model_dump(mode="json"),
        }
        directory.write_json(directory.versions, began)
        directory.write_text(directory.config, resolved_yaml(config))
    except BaseException:
        directory.discard()
        raise


def continue_run(directory: RunDir, console: Console) -> None:
    """Go on from the last checkpoint of a run; a finished one only shows its table.

    Raises:
        RlsfError, EngineError, RewardError: with a message for the user.
    """
    if directory.summary.exists():
        say(console, f"{directory.path} is finished.")
        summary = directory.read_json(directory.summary)
        if not summary.keys() >= {"tasks", "labels", "seconds", "iterations", "engine"}:
            raise RunDirError(f"{directory.summary} is no summary of a run: remove it, and the run is concluded anew")
        print_summary(summary, console)
        return
    config = load_config(directory.config)
    check_same_config(directory, config)
    stream = build_stream(config)
    check_same_data(directory, stream)
    with Display(console, f"rlsf {config.name}", total=stream.iterations) as display, directory.locked():
        for path in changed_rewards(directory, config):
            display.warn(
                f"the file of the reward {path} has changed since the run began: compare its rewards with care"
            )
        _train(Run(config, directory, stream, display))
    _conclude(directory, console)


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
    say(console, f"Everything is in {directory.path}")


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
