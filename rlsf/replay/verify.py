"""What `rlsf replay verify` does: which groups of a store are whole, and saving them."""

import os
import sqlite3
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rlsf.config.load import load_config
from rlsf.errors import RunDirError
from rlsf.replay.database import Database
from rlsf.replay.examine import Examination, TableReport
from rlsf.replay.rescue import open_source, schema_version
from rlsf.replay.salvage import Fallback, salvage
from rlsf.replay.show import visible
from rlsf.replay.tables import FILE_NAME
from rlsf.run_dir import RunDir, iteration_of
from rlsf.seeds import derive_seed

SHOWN = 5
"""Lines of a kind that are printed."""


@dataclass
class Verification:
    """What was found."""

    path: Path
    problems: list[str]
    """Of the store as a whole."""
    tables: dict[str, TableReport] = field(default_factory=dict)
    stored: int = 0
    """Stored groups that are whole; those that are only kept for a rollback are not counted."""
    salvaged: int | None = None
    """Groups in the new store; None where none was asked for."""

    @property
    def is_whole(self) -> bool:
        return not self.problems and not any(report.damaged for report in self.tables.values())


def verify(
    directory: Path, *, iteration: int | None = None, output: Path | None = None, fallback: Fallback | None = None
) -> Verification:
    """Read and check everything in the store in `directory`, which nobody may be writing to. It is not changed.

    Args:
        iteration: the store should have got at least this far (that of the run's checkpoint).
        output: folder of a new store, to be filled with the groups that are whole as of `iteration`.
        fallback: settings for the new store, where those of the old one are damaged.

    Raises:
        RunDirError: there is no store, or `output` cannot be written or is not empty.
    """
    path = directory / FILE_NAME
    if not path.exists():
        raise RunDirError(f"there is no replay store in {directory}: {FILE_NAME} is missing")
    if schema_version(path) == 1:  # another rlsf can read it; no single bit that flips looks like that
        Database(directory, "read").check_schema()
    with TemporaryDirectory() as workspace:
        source = open_source(directory, Path(workspace))
        found = Verification(path, source.problems)
        if source.connection is None:
            return found
        try:
            found.problems += _integrity(source.connection)
            examination = Examination(source.connection, source.leaves)
            found.tables = examination.tables
            if output is None:
                found.stored = sum(whole.row.slot is not None for whole in examination.groups())
                journal = examination.journal()
            else:
                found.stored, found.salvaged, journal = salvage(examination, output, iteration, fallback)
            found.problems += _inconsistencies(examination, found.stored, journal, iteration)
        finally:
            source.connection.close()
    return found


def verify_run(run: RunDir, console: Console, *, output: Path | None) -> None:
    """Print what is whole in the store of a run, and salvage it to `output` where that is given.

    Raises:
        RunDirError: the store is damaged, and the message says how to go on; or a process is working on the run.
    """
    checkpoint = run.latest_checkpoint()
    with run.locked() if os.access(run.path, os.W_OK) else nullcontext():
        found = verify(
            run.replay,
            iteration=None if checkpoint is None else iteration_of(checkpoint),
            output=output,
            fallback=None if output is None else _settings_of(run),
        )
    console.print(Text(str(found.path)))
    console.print(_summary(found))
    if found.salvaged is not None:
        console.print(f"{output}: a new store with {found.salvaged:,} groups", markup=False, highlight=False)
    if found.is_whole:
        return
    if found.salvaged is not None:
        mend = f"Move {run.replay} away and {output} to its place, then `rlsf resume {run.path}`"
    elif found.stored:
        mend = f"`rlsf replay verify {run.path} --salvage FOLDER` saves the {found.stored:,} whole groups"
    else:
        mend = "No group can be saved: restore the folder from a backup, or start the run anew"
    raise RunDirError(f"replay store {found.path} is damaged. {mend}")


def _settings_of(run: RunDir) -> Fallback:
    config = load_config(run.config, [])
    return Fallback(config.replay.capacity, config.replay.keep, derive_seed(config.seed, "replay"))


def _integrity(connection: sqlite3.Connection) -> list[str]:
    try:
        rows = [row[0] for row in connection.execute("PRAGMA integrity_check(100)")]
        if rows == ["ok"]:
            rows = [f"a row of {row[0]} belongs to no group" for row in connection.execute("PRAGMA foreign_key_check")]
    except sqlite3.Error as error:
        rows = [f"it ended with: {error}"]
    return [f"SQLite's check: {' '.join(row.split())}" for row in rows]


def _inconsistencies(examination: Examination, stored: int, journal: list[tuple], iteration: int | None) -> list[str]:
    """Between rows that are whole one by one."""
    problems = []
    slots = examination.slots
    if sorted(slots) != list(range(len(slots))) and not examination.tables["groups"].damaged:
        problems.append("slots are not numbered without a gap: groups are lost")
    if not examination.progress and (examination.seqs or journal):
        problems.append("the counters are gone")
    last = examination.last_iteration
    if iteration is not None and last < iteration:
        problems.append(
            f"it ends with iteration {last}, and the run's checkpoint is of iteration {iteration}: what happened in "
            f"between is gone, perhaps with the file {FILE_NAME}-wal"
        )
    lost = [row[1] for row in journal if row[1] not in examination.seqs]
    if lost:
        problems.append(f"the journal knows {len(lost):,} groups that are gone, such as no. {lost[0]}")
    if any(row[0] > last for row in journal):
        problems.append(f"the journal goes on after the last iteration, {last}")
    if examination.progress and max(examination.seqs, default=0) > examination.progress[-1].seen:
        problems.append("there are groups that were never counted")
    return problems


def _summary(found: Verification) -> Table:
    table = Table()
    table.add_column("table")
    table.add_column("whole", justify="right")
    table.add_column("damaged", justify="right")
    table.add_column("which", overflow="fold")
    for problem in found.problems[:SHOWN]:
        table.add_row("(file)", "", "", escape(visible(problem)))
    if len(found.problems) > SHOWN:
        table.add_row("(file)", "", "", f"and {len(found.problems) - SHOWN} more findings")
    for name, report in found.tables.items():
        shown = [visible(which) for which in report.damaged[:SHOWN]]
        more = [f"and {len(report.damaged) - SHOWN:,} more"] if len(report.damaged) > SHOWN else []
        table.add_row(name, f"{report.whole:,}", f"{len(report.damaged):,}", escape("\n".join([*shown, *more])))
    return table
