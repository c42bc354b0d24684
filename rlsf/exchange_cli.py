"""The commands of `rlsf replay` that take a buffer out of a store, and put it into one."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from rlsf.console import console

Source = Annotated[
    Path, typer.Argument(metavar="RUN_OR_STORE", help="Folder of a run, or of a replay store.", show_default=False)
]
New = Annotated[Path, typer.Argument(metavar="NEW", help="Folder of the store to make.", show_default=False)]
Task = Annotated[str | None, typer.Option(help="Only groups of this task.")]
Iterations = Annotated[
    str | None, typer.Option("--iteration", metavar="A:B", help="Only groups of iterations A to B; A: and :B do too.")
]
MinReward = Annotated[float | None, typer.Option(help="Only completions with at least this reward.")]
MaxReward = Annotated[float | None, typer.Option(help="Only completions with at most this reward.")]
Capacity = Annotated[int | None, typer.Option(min=1, help="Groups the new store keeps; else as many as are put in.")]
Keep = Annotated[str | None, typer.Option(help="Which groups the new store keeps when it is full; else fifo.")]
SkipKnown = Annotated[bool, typer.Option("--skip-known", help="Leave out groups whose ids are there already.")]


def export(
    source: Source,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help=".parquet, .jsonl, or a new folder for `datasets.load_from_disk`.", show_default=False
        ),
    ],
    format: Annotated[
        Literal["rollouts", "pairs", "trl"],
        typer.Option(help="Everything; or what TRL trains on: preference pairs, or prompts and completions."),
    ] = "rollouts",
    task: Task = None,
    iteration: Iterations = None,
    min_reward: MinReward = None,
    max_reward: MaxReward = None,
) -> None:
    """Write a buffer to a file.

    Example: rlsf replay export runs/smoke buffer.parquet --min-reward 0.5
    """
    from rlsf.replay.exchange.command import export_store
    from rlsf.replay.exchange.selection import Selection, parse_iterations

    selection = Selection(task, *parse_iterations(iteration), min_reward, max_reward)
    export_store(source, file, selection, format, console())


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `rlsf replay export` wrote.", show_default=False)],
    store: Annotated[
        Path,
        typer.Argument(metavar="STORE", help="A new folder; or a store, or a run that is at rest.", show_default=False),
    ],
    capacity: Capacity = None,
    keep: Keep = None,
    skip_known: SkipKnown = False,
) -> None:
    """Make a store of a file, or add the file to a store.

    Example: rlsf replay import buffer.parquet stores/smoke
    """
    from rlsf.replay.exchange.command import import_file

    import_file(file, store, capacity=capacity, keep=keep, skip_known=skip_known, console=console())


def filter_(
    source: Source,
    new: New,
    task: Task = None,
    iteration: Iterations = None,
    min_reward: MinReward = None,
    max_reward: MaxReward = None,
    keep_best: Annotated[
        int | None, typer.Option(min=1, help="Only so many completions of each prompt: those with the highest rewards.")
    ] = None,
) -> None:
    """Make a store of a part of another one.

    Example: rlsf replay filter runs/smoke stores/best --keep-best 4
    """
    from rlsf.replay.exchange.command import filter_store
    from rlsf.replay.exchange.selection import Selection, parse_iterations

    selection = Selection(task, *parse_iterations(iteration), min_reward, max_reward)
    filter_store(source, new, selection, keep_best=keep_best, console=console())


def merge(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_STORE... NEW", help="Runs or stores, and the store to make.", show_default=False
        ),
    ],
    capacity: Capacity = None,
    keep: Keep = None,
    prefix: Annotated[bool, typer.Option("--prefix", help="Put the name of its run or store before each id.")] = False,
    skip_known: SkipKnown = False,
) -> None:
    """Make one store of several.

    Example: rlsf replay merge runs/a runs/b stores/both --prefix
    """
    from rlsf.errors import ConfigError
    from rlsf.replay.exchange.command import merge_stores

    if len(sources) < 2:
        raise ConfigError("NEW: name the store to make, after those that it is made of")
    merge_stores(
        sources[:-1],
        sources[-1],
        capacity=capacity,
        keep=keep,
        prefix=prefix,
        skip_known=skip_known,
        console=console(),
    )


def relabel(
    source: Source,
    new: New,
    reward: Annotated[Path, typer.Option(help="YAML file with a `reward`, as for score; the config of a run will do.")],
    references: Annotated[
        Path | None,
        typer.Option(help="File with prompt_id and reference, for rewards that compare; else the run's own data."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the YAML file. May be repeated."),
    ] = None,
) -> None:
    """Make a store whose completions are scored anew, with another reward.

    Example: rlsf replay relabel runs/smoke stores/judged --reward judge.yaml
    """
    from rlsf.replay.exchange.relabel import relabel_store

    relabel_store(source, new, reward, set_ or [], references=references, console=console())


def add_commands(app: typer.Typer) -> None:
    """Put the commands into `rlsf replay`."""
    for name, command in (
        ("export", export),
        ("import", import_),
        ("filter", filter_),
        ("merge", merge),
        ("relabel", relabel),
    ):
        app.command(name)(command)
