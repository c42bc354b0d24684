"""The command line. Quick commands import nothing heavy: torch and the engines are imported where they are used."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console

from reward.types import RewardError
from rlsf.console import console
from rlsf.errors import ConfigError, InterruptedRun, RlsfError, is_out_of_memory
from rlsf.exchange_cli import Source, add_commands
from rlsf.quiet import quiet_libraries
from rollouts.types import EngineError

app = typer.Typer(
    name="rlsf",
    help="Reinforcement learning from self-feedback: a language model generates, scores itself, and learns.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at config files.", no_args_is_help=True)
replay_app = typer.Typer(help="Look into replay stores, and move buffers between them.", no_args_is_help=True)
continual_app = typer.Typer(help="Look at runs of several tasks.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(replay_app, name="replay")
app.add_typer(continual_app, name="continual")

ConfigPath = Annotated[Path, typer.Argument(help="YAML file of the experiment.", show_default=False)]
RunPath = Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, such as seed=1. May be repeated."),
]
OVERRIDABLE = {"allow_extra_args": True, "ignore_unknown_options": True}  # the --a.b=c that wandb's agent emits


@app.command(context_settings=OVERRIDABLE)
def run(
    context: typer.Context,
    config: ConfigPath,
    set_: Set = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; else the config's.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Delete a run of the same name first.")] = False,
) -> None:
    """Start an experiment.

    Example: rlsf run configs/smoke.yaml --set seed=1 --name smoke-seed1
    """
    loaded = _load(config, set_, context.args, name)
    with _interruptible(Path(loaded.output_dir) / loaded.name, stands=InterruptedRun):
        from rlsf.runner import start

        start(loaded, console(), overwrite=overwrite)


@app.command()
def resume(directory: RunPath) -> None:
    """Continue a run from its last checkpoint.

    Example: rlsf resume runs/smoke
    """
    from rlsf.run_dir import RunDir

    run_dir = RunDir.open(directory)
    with _interruptible(directory, stands=KeyboardInterrupt):
        from rlsf.runner import continue_run

        continue_run(run_dir, console())


@app.command()
def eval(
    directory: RunPath,
    split: Annotated[Literal["validation", "test"], typer.Option(help="Which held-out prompts.")] = "test",
    samples: Annotated[int, typer.Option(min=1, help="Completions per prompt.")] = 4,
    adapter: Annotated[
        str, typer.Option(help="last, best, canary, base, a checkpoint's number, a task, or merged.")
    ] = "last",
    prompts: Annotated[int | None, typer.Option(min=1, help="At most this many prompts per task.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Also write the outcome of every prompt to this JSON file.")
    ] = None,
) -> None:
    """Measure an adapter of a run on held-out prompts of every task.

    Example: rlsf eval runs/smoke --adapter best --samples 8
    """
    from rlsf.run_dir import RunDir

    run_dir = RunDir.open(directory)
    from rlsf.evaluation.command import evaluate_run

    evaluate_run(run_dir, console(), split=split, samples=samples, adapter=adapter, limit=prompts, output=output)


@app.command(context_settings=OVERRIDABLE)
def score(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="JSONL file of prompts and completions, and references if any.", show_default=False)
    ],
    reward: Annotated[
        Path, typer.Option(help="YAML file with a `reward`; the config of a run will do.", show_default=False)
    ],
    output: Annotated[Path | None, typer.Option(help="Write rows, rewards and evidence to this JSONL file.")] = None,
    set_: Set = None,
) -> None:
    """Score completions from a file, without a run.

    Example: rlsf score answers.jsonl --reward reward.yaml --output scored.jsonl
    """
    from rlsf.offline.config import load_score_config
    from rlsf.offline.score import score_file

    if output is not None and output.exists() and reward.exists() and output.samefile(reward):
        raise ConfigError(f"--output: {output} is the file of --reward; name another one")
    score_file(file, load_score_config(reward, [*(set_ or []), *context.args]), console(), output=output)


@app.command()
def signals(
    source: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FILE", help="Folder of a run, or a file as for score.", show_default=False)
    ],
    signals: Annotated[
        Path | None, typer.Option(help="YAML file with `signals`, rewards by name; else all that generate nothing.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many groups (128 per task of a run).")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Of a run: last (the default), best, base, or a checkpoint's number.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Of a file: model, answers and wording, as for score.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for signals.json, signals.csv and signals.png.")] = None,
) -> None:
    """Measure what signals know of the truth, and what they cost.

    Example: rlsf signals runs/smoke --output signals
    """
    from rlsf.offline.command import signals_of_file, signals_of_run
    from rlsf.run_dir import RunDir

    if source.is_dir():
        if config is not None:
            raise ConfigError("--config: a run brings its own; it is for files of completions")
        directory = RunDir.open(source)
        signals_of_run(directory, console(), adapter=adapter or "last", signals=signals, limit=limit, output=output)
        return
    if adapter is not None:
        raise ConfigError("--adapter: it is for runs; a file is scored with the model in --config as it stands")
    signals_of_file(source, console(), config=config, signals=signals, limit=limit, output=output)


@app.command()
def clusters(
    directory: RunPath,
    source: Annotated[
        Literal["train", "replay"], typer.Option("--from", help="Training prompts, or what the replay store has.")
    ] = "replay",
    config: Annotated[Path | None, typer.Option(help="YAML file with `embedding` and `clusters`.")] = None,
    set_: Set = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many points, drawn at random.")] = 2000,
    projection: Annotated[Literal["pca", "tsne"], typer.Option("--map", help="How the map is drawn.")] = "pca",
    output: Annotated[
        Path | None, typer.Option(help="Folder for clusters.json, clusters.png and clusters.svg.")
    ] = None,
) -> None:
    """Find out what the prompts of a run are about, and what is learned of each kind.

    Example: rlsf clusters runs/continual --set clusters.kind=kmeans --output clusters
    """
    from rlsf.config.clustering import ClusteringConfig
    from rlsf.config.load import load_section
    from rlsf.run_dir import RunDir

    settings = load_section(config, ClusteringConfig, set_ or [])
    from rlsf.clustering.command import clusters_of_run

    clusters_of_run(
        RunDir.open(directory), console(), settings, source=source, limit=limit, method=projection, output=output
    )


@config_app.command("check", context_settings=OVERRIDABLE)
def config_check(
    context: typer.Context,
    config: ConfigPath,
    set_: Set = None,
    show: Annotated[bool, typer.Option(help="Print the resolved config, defaults included.")] = False,
) -> None:
    """Validate a config file without loading a model."""
    from rlsf.config.load import resolved_yaml
    from rlsf.display import say

    loaded = _load(config, set_, context.args, None)
    if show:
        print(resolved_yaml(loaded), end="")
        return
    say(
        console(),
        f"{config}: valid. {loaded.algorithm.kind} on {loaded.model.source}, reward {loaded.reward.kind}, "
        f"{len(loaded.tasks)} task(s), {loaded.loop.iterations} iterations of {loaded.loop.prompts} prompts × "
        f"{loaded.sampling.n} completions",
    )


@replay_app.command("stats")
def replay_stats(directory: Source) -> None:
    """What a replay store holds: tasks, ages, rewards, size."""
    from rlsf.replay.show import print_stats

    with _replay_store(directory) as store:
        print_stats(store, console())


@replay_app.command("show")
def replay_show(
    directory: Source,
    id: Annotated[str, typer.Argument(help="Id of a group or a rollout, or how it begins.", show_default=False)],
) -> None:
    """One group: prompt, answers, rewards, and why."""
    from rlsf.replay.show import print_group

    with _replay_store(directory) as store:
        print_group(store.find(id), console())


@replay_app.command("page")
def replay_page(
    directory: RunPath,
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID", help="Groups or rollouts, or how their ids begin; else the newest.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="HTML file to write; else evidence.html in the run's folder.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many groups.")] = 200,
    iteration: Annotated[int | None, typer.Option(help="Only groups of this iteration.")] = None,
    task: Annotated[str | None, typer.Option(help="Only groups of this task.")] = None,
) -> None:
    """Write a page to open in a browser: prompts, answers, rewards, and why.

    Example: rlsf replay page runs/smoke --limit 50
    """
    from rlsf.replay.page import Selection, make_page

    make_page(directory, console(), Selection(tuple(ids or ()), task, iteration, limit), output)


add_commands(replay_app)


@continual_app.command("table")
def continual_table(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.", show_default=False)],
    output: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
) -> None:
    """Compare runs of several tasks: accuracy, transfer, forgetting.

    Example: rlsf continual table runs/sequential runs/ewc runs/joint
    """
    from rlsf.continual.table import compare_runs

    compare_runs(runs, console(), output=output)


@replay_app.command("verify")
def replay_verify(
    directory: RunPath,
    salvage: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a new store there, of every group that is whole.")
    ] = None,
) -> None:
    """Read and check everything in a replay store. Ends with status 2 where something is damaged.

    Example: rlsf replay verify runs/smoke --salvage saved
    """
    from rlsf.replay.verify import verify_run
    from rlsf.run_dir import RunDir

    verify_run(RunDir.open(directory), console(), output=salvage)


@replay_app.command("compact")
def replay_compact(directory: RunPath) -> None:
    """Give the room of evicted groups back to the disk. Not while a process works on the run."""
    from rlsf.display import say
    from rlsf.replay import ReplayStore
    from rlsf.run_dir import RunDir

    run = RunDir.open(directory)
    with run.locked(), ReplayStore.reopen(run.replay) as store:
        before, after = store.compact()
        say(console(), f"{run.replay}: {before / 2**20:,.1f} MiB before, {after / 2**20:,.1f} MiB now")


@app.command()
def doctor() -> None:
    """What is installed, which engine and sync mode will be used, and why."""
    from rlsf.doctor import print_report

    print_report(console())


@app.command()
def version() -> None:
    """Print the version."""
    from rlsf import __version__

    print(__version__)


def _load(path: Path, overrides: list[str] | None, extra: list[str], name: str | None) -> Any:
    from rlsf.config import check_config, load_config

    named = [f"name={name}"] if name else []
    config = load_config(path, [*(overrides or []), *extra, *named])
    problems = check_config(config)
    if problems:
        raise ConfigError("\n".join(problems))
    return config


@contextmanager
def _interruptible(directory: Path, *, stands: type[KeyboardInterrupt]) -> Iterator[None]:
    """Ctrl-C ends a run with status 130 and the way to go on; one that is no `stands` left nothing to resume."""
    try:
        yield
    except OSError as error:
        begun = (directory / "config.yaml").exists()
        _fail_to_write(error, f"; `rlsf resume {directory}` continues from the last checkpoint" if begun else "")
    except KeyboardInterrupt as interrupt:
        message = "interrupted before the run began; nothing was changed"
        if isinstance(interrupt, stands):
            message = f"interrupted; `rlsf resume {directory}` continues from the last checkpoint"
        Console(stderr=True).print(message, highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(130) from None


def _replay_store(directory: Path) -> Any:
    from rlsf.replay.exchange.stores import open_store

    return open_store(directory)


def main() -> None:
    """Entry point: errors that a user can mend end in one message and status 2, never in a traceback."""
    quiet_libraries()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode is no reason to fail
    try:
        app()
        sys.stdout.flush()
    except (RlsfError, EngineError, RewardError) as error:
        _fail(str(error))
    except OSError as error:
        _fail_to_write(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        _fail(
            f"out of memory ({reason}). What bounds it: engine.max_batch, engine.max_model_len, "
            "engine.gpu_memory_utilization, algorithm.micro_batch_tokens, algorithm.gradient_checkpointing, "
            "model.lora.r; once memory is free, `rlsf resume` continues a run that had begun"
        )


_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT)


def _fail_to_write(error: OSError, advice: str = "") -> NoReturn:
    """The run directory's own files have better messages: this is about the output, and whatever libraries write.

    Raises:
        OSError: the error is of another kind, and a bug.
    """
    if error.errno not in _UNWRITABLE:
        raise error
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more as it ends
    what = error.filename or "what this command prints, or a temporary file"
    _fail(f"cannot write {what}: {error.strerror}{advice}")


def _fail(message: str) -> NoReturn:
    from rich.markup import escape

    Console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
