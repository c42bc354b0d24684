"""A new store of what is whole in a damaged one."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlsf.errors import RunDirError
from rlsf.replay.database import Database
from rlsf.replay.examine import Examination, Whole
from rlsf.replay.insert import Newcomer, insert
from rlsf.replay.journal import MUTABLE
from rlsf.replay.keep import Standing
from rlsf.replay.reader import Progress
from rlsf.replay.tables import COLUMNS


class Fallback(NamedTuple):
    """Settings of a store, from the run's config."""

    capacity: int
    keep: str
    seed: int


def salvage(
    examination: Examination, output: Path, iteration: int | None, fallback: Fallback | None
) -> tuple[int, int, list[tuple[Any, ...]]]:
    """Write the groups that are whole, as they were at the end of `iteration` (None: as they are), to a new store in
    `output`: in their order, with priorities, draws, clusters and embeddings. It cannot go back to before that.

    Where the journal is damaged, a group may keep what happened to it after `iteration`.

    Returns:
        Stored groups that are whole; groups in the new store; the journal.

    Raises:
        RunDirError: `output` cannot be written or is not empty; or the settings are damaged and there is no fallback.
    """
    settings = fallback if examination.settings is None else Fallback(*_typed(examination.settings))
    if settings is None:
        raise RunDirError("the settings of the replay store are damaged, and no config says what they were")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunDirError(f"--salvage: {output} exists and is not an empty folder; name another one")
    journal = examination.journal()
    newest = max((row[0] for row in journal), default=0)  # where the counters are lost
    target = max(examination.last_iteration, newest) if iteration is None else iteration
    before = _states_before(journal, target)
    database = Database(output, "write")
    try:
        database.create_schema(capacity=settings.capacity, keep=settings.keep, seed=settings.seed)
        stored, saved = 0, _Saved(database, before)
        with database.write() as connection:
            for whole in examination.groups():
                stored += whole.row.slot is not None
                saved.add(whole)
            saved.number_slots()
            progress = _progress(examination, target, saved)
            connection.execute(
                "INSERT INTO progress (iteration, seen, drawn, thresholds) VALUES (?, ?, ?, ?)", progress
            )
            connection.execute("UPDATE settings SET pruned = ?", (target,))
    finally:
        database.close()
    return stored, len(saved.ids), journal


class _Saved:
    """The groups of the new store, written as they are read. Slots are numbered when all are known."""

    def __init__(self, database: Database, before: dict[int, dict[str, Any]]) -> None:
        self._connection = database.connection
        self._before = before
        self.ids: set[str] = set()
        self.last_seq = self.draws = 0
        self._slots: dict[int, int] = {}

    def add(self, whole: Whole) -> None:
        row, before = whole.row, self._before.get(whole.row.seq)
        if before is not None:
            if not before["existed"]:
                return
            row = row._replace(keep_class=before["class"], **{name: before[name] for name in MUTABLE[:-1]})
        self.last_seq = max(self.last_seq, row.seq)
        if row.slot is None or row.slot in self._slots or row.id in self.ids:
            return
        self.ids.add(row.id)
        self._slots[row.slot] = row.seq
        self.draws += row.draws
        newcomer = Newcomer(
            seq=row.seq,
            group=whole.group,
            payload=row.payload,
            standing=Standing(row.keep_class, row.rank),
            success=row.success,
            cluster=row.cluster,
            embedding=None if whole.embedding is None else np.frombuffer(whole.embedding, dtype="<f4"),
        )
        insert(self._connection, newcomer, None, draws=row.draws)
        self._connection.execute("UPDATE groups SET priority = ? WHERE seq = ?", (row.priority, row.seq))

    def number_slots(self) -> None:
        """In their order, without the gaps that lost groups leave."""
        self._connection.executemany(
            "UPDATE groups SET slot = ? WHERE seq = ?",
            [(number, self._slots[slot]) for number, slot in enumerate(sorted(self._slots))],
        )


def _states_before(journal: list[tuple[Any, ...]], iteration: int) -> dict[int, dict[str, Any]]:
    """By sequence number: what a group was like at the end of `iteration`, where it changed later."""
    states: dict[int, dict[str, Any]] = {}
    for values in journal:
        row = dict(zip(COLUMNS["journal"], values, strict=True))
        if row["iteration"] > iteration:
            states.setdefault(row["seq"], row)
    return states


def _progress(examination: Examination, target: int, saved: _Saved) -> Progress:
    """The counters as of `target`; where they are lost, what the groups say."""
    known = [progress for progress in examination.progress if progress.iteration <= target]
    if known:
        return known[-1]._replace(iteration=target, seen=max(known[-1].seen, saved.last_seq))
    return Progress(target, saved.last_seq, saved.draws, "{}")


def _typed(settings: tuple[Any, ...]) -> tuple[int, str, int]:
    capacity, keep, seed, _ = settings
    return int(capacity), str(keep), int(seed)
