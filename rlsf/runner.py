"""What `rlsf run` and `rlsf resume` do."""

from pathlib import Path

from rich.console import Console

from rlsf.config.load import load_config, resolved_yaml
from rlsf.config.schema import RunConfig
from rlsf.display import Display
from rlsf.evaluation.report import print_summary
from rlsf.loop import train
from rlsf.provenance import provenance
from rlsf.run import Run
from rlsf.run_dir import RunDir
from rlsf.tasks import Stream, Task, build_stream


def start(config: RunConfig, console: Console, *, overwrite: bool = False) -> None:
    """A new run, from config to table.

    Raises:
        RlsfError, EngineError, RewardError: with a message for the user.
    """
    path = Path(config.output_dir) / config.name
    stream = build_stream(config)  # before the folder is made: bad data leaves no trace
    if overwrite:
        RunDir(path).remove()
    directory = RunDir.create(path)
    directory.write_text(directory.config, resolved_yaml(config))
    directory.write_json(directory.versions, provenance())
    _train(config, directory, stream, console)


def continue_run(directory: RunDir, console: Console) -> None:
    """Go on from the last checkpoint of a run; a finished one only shows its table.

    Raises:
        RlsfError, EngineError, RewardError: with a message for the user.
    """
    if directory.summary.exists():
        console.print(f"{directory.path} is finished.", highlight=False)
        print_summary(directory.read_json(directory.summary), console)
        return
    config = load_config(directory.config)
    _train(config, directory, build_stream(config), console)


def _train(config: RunConfig, directory: RunDir, stream: Stream, console: Console) -> None:
    with (
        Display(console, f"rlsf {config.name}", total=stream.iterations) as display,
        Run(config, directory, stream, display) as run,
    ):
        for task in stream.tasks:
            display.say(describe_data(task))
        train(run)
    print_summary(directory.read_json(directory.summary), console)
    console.print(f"Everything is in {directory.path}", highlight=False)


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
