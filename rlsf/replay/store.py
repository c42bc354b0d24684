"""The replay store: add, draw, re-prioritise, and roll back to the end of any recent iteration.

Everything is a function of the calls made and the seed. A store that was killed, opened again and rolled back to
iteration k goes on exactly like one that was left alone after iteration k.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np

from rlsf.config.schema import ReplayConfig
from rlsf.errors import RunDirError
from rlsf.experience import Group
from rlsf.replay import journal
from rlsf.replay.codec import check_group, check_priority, encode
from rlsf.replay.database import Database
from rlsf.replay.keep import slot_for
from rlsf.replay.reader import GROUP_COLUMNS, ReplayReader
from rlsf.replay.sampling import DrawIndex

DRAW_STREAM = 2
"""Separates these random numbers from those of the reservoir, which share the store's seed."""

Placed = dict[int, tuple[int, Group, bytes]]
"""By slot: sequence number, group, payload."""


class ReplayStore(ReplayReader):
    """The one writer of a store. Groups stay on disk; in memory are at most 80 bytes for each."""

    def __init__(self, database: Database, config: ReplayConfig, *, seed: int) -> None:
        super().__init__(database)
        try:
            self._check_settings(config, seed)
            self._config = config
            self._load()
        except BaseException:
            database.close()
            raise

    @classmethod
    def open(cls, directory: Path | str, config: ReplayConfig, *, seed: int) -> Self:
        """The store in `directory`, as the last complete call left it; a new one where there is none.

        Raises:
            RunDirError: the directory cannot be written; or the store is damaged, or was made by another version of
                rlsf, or with another seed, capacity or `keep`. (`draw` and `max_staleness` may change.)
        """
        database = Database(directory, "write")
        try:
            database.create_schema(capacity=config.capacity, keep=config.keep, seed=seed)
        except BaseException:
            database.close()
            raise
        return cls(database, config, seed=seed)

    def add(self, groups: Sequence[Group], *, iteration: int) -> None:
        """Add groups in order, one after the other, evicting as `keep` says. A batch larger than the capacity is fine.

        Raises:
            ValueError: a group breaks its contract, is in the store already or twice in the batch, or holds something
                that is no JSON; the message names it. `iteration` lies before the last one. Nothing is added then.
            RunDirError: the disk is full, or the like. Nothing is added then.
        """
        placed = self._place(groups)
        with self._write(iteration) as connection:
            for group in groups:
                if connection.execute("SELECT 1 FROM groups WHERE id = ? AND slot IS NOT NULL", (group.id,)).fetchone():
                    raise ValueError(f"group {group.id!r} is in the replay store already")
            for slot, (seq, group, payload) in placed.items():
                journal.record_change(connection, slot, iteration)
                connection.execute("UPDATE groups SET slot = NULL WHERE slot = ?", (slot,))
                _insert(connection, seq, slot, group, payload)
                journal.record_added(connection, seq, iteration)
            self._save_progress(connection, iteration, seen=len(groups))
        self._seen += len(groups)
        self._index.put(
            (slot, group.iteration, group.policy_version, group.priority) for slot, (_, group, _) in placed.items()
        )

    def draw(
        self, n_groups: int, *, iteration: int, policy_version: int, exclude_iteration: int | None = None
    ) -> list[Group]:
        """Up to `n_groups` different groups, as `config.draw` says. Fewer where fewer are eligible.

        Not eligible are groups generated in `exclude_iteration` (those that are in the batch as fresh ones), and groups
        more than `max_staleness` versions older than `policy_version`. A group of priority 0 is drawn only where all
        eligible ones have priority 0 (or with `uniform` or alpha = 0, which ignore priorities).

        A function of the store's content, the seed and `iteration`; how many groups were ever drawn is part of the
        content, so a second call in an iteration draws anew. Takes O(log size) time for each group that is drawn,
        excluded, or has become too old since the last call.

        Raises:
            ValueError: `n_groups` is negative, or `iteration` lies before the last one.
            RunDirError: as `add`; the draws are counted in the store.
        """
        if n_groups < 0:
            raise ValueError(f"cannot draw {n_groups} groups")
        with self._write(iteration) as connection:
            self._expire(connection, policy_version)
            excluded = connection.execute(
                "SELECT slot FROM groups WHERE iteration = ? AND slot IS NOT NULL ORDER BY slot", (exclude_iteration,)
            ).fetchall()
            rng = np.random.default_rng([self.seed, DRAW_STREAM, iteration, self._drawn])
            slots = self._index.draw(n_groups, rng, hidden=[slot for (slot,) in excluded]) if n_groups else []
            groups = []
            for slot in slots:
                row = connection.execute(f"SELECT {GROUP_COLUMNS} WHERE g.slot = ?", (slot,)).fetchone()
                groups.append(self._group(row))
                journal.record_change(connection, slot, iteration)
                connection.execute("UPDATE groups SET draws = draws + 1 WHERE slot = ?", (slot,))
            self._save_progress(connection, iteration, drawn=len(groups))
        self._drawn += len(groups)
        return groups

    def update_priorities(self, priorities: Mapping[str, float], *, iteration: int) -> int:
        """Set priorities by group id, and return how many were set. Ids that are not, or no longer, in the store are
        passed over: it does not keep every group that it is given.

        Raises:
            ValueError: a priority is negative or not finite; the message names the group, and nothing is changed.
            RunDirError: as `add`.
        """
        for group_id, priority in priorities.items():
            check_priority(group_id, priority)
        changed: list[tuple[int, float]] = []
        with self._write(iteration) as connection:
            for group_id, priority in priorities.items():
                row = connection.execute(
                    "SELECT slot FROM groups WHERE id = ? AND slot IS NOT NULL", (group_id,)
                ).fetchone()
                if row is not None:
                    journal.record_change(connection, row[0], iteration)
                    connection.execute("UPDATE groups SET priority = ? WHERE slot = ?", (priority + 0.0, row[0]))
                    changed.append((row[0], priority))
            self._save_progress(connection, iteration)
        self._index.set_priorities(changed)
        return len(changed)

    def rollback(self, iteration: int) -> None:
        """Undo everything that happened after the end of `iteration`: additions, evictions, priorities, draw counts
        and counters. After that, `digest` is what it was then.

        Raises:
            RunDirError: the journal was pruned beyond that point, or the store never got that far: it is not the one
                that belongs to the checkpoint of `iteration`.
        """
        if iteration > self._last_iteration:
            raise RunDirError(
                f"replay store {self._db.path}: it ends with iteration {self._last_iteration} and cannot be resumed "
                f"from iteration {iteration}. Was it deleted or replaced?"
            )
        with self._exclusive() as connection:
            pruned = connection.execute("SELECT pruned FROM settings").fetchone()[0]
            if iteration < pruned:
                raise RunDirError(
                    f"replay store {self._db.path}: cannot go back to iteration {iteration}, since the journal was "
                    f"pruned up to iteration {pruned}"
                )
            journal.undo(connection, iteration)
        self._load()

    def prune_journal(self, iteration: int) -> None:
        """Give up going back to before the end of `iteration`, and free what was kept for that. Call it when the
        checkpoint of `iteration` is on disk and no older one will be resumed."""
        with self._exclusive() as connection:
            journal.prune(connection, iteration)

    def _check_settings(self, config: ReplayConfig, seed: int) -> None:
        for name, was, wanted in (
            ("seed", self.seed, seed),
            ("replay.capacity", self.capacity, config.capacity),
            ("replay.keep", self.keep, config.keep),
        ):
            if was != wanted:
                raise RunDirError(
                    f"the replay store {self._db.path} was made with {name} = {was} and cannot go on with {wanted}: "
                    "keep the setting, or start a new run"
                )

    def _load(self) -> None:
        """Take over the counters, and build the index that drawing needs, from what is on disk."""
        self._index = DrawIndex(self._config.draw)
        with self._exclusive(first=True) as connection:
            self._last_iteration, self._seen, self._drawn = self._counters()
            self._index.put(
                connection.execute(
                    "SELECT slot, iteration, policy_version, priority FROM groups WHERE slot IS NOT NULL ORDER BY slot"
                )
            )
            self._data_version = _data_version(connection)

    def _place(self, groups: Sequence[Group]) -> Placed:
        """Which of `groups` are in the store once all have been added, and where."""
        placed: Placed = {}
        ids: set[str] = set()
        for seq, group in enumerate(groups, start=self._seen + 1):
            check_group(group)
            if group.id in ids:
                raise ValueError(f"group {group.id!r} is twice in the batch")
            ids.add(group.id)
            payload = encode(group)
            slot = slot_for(seq, keep=self._config.keep, capacity=self.capacity, seed=self.seed)
            if slot is not None:
                placed[slot] = (seq, group, payload)
        return placed

    def _expire(self, connection: sqlite3.Connection, policy_version: int) -> None:
        """Take what has become too old out of the draw, once."""
        if self._config.max_staleness is None:
            return
        oldest = policy_version - self._config.max_staleness
        known = self._index.oldest_version
        if known is None or oldest < known:  # the first draw, or the policy was set back
            self._index.set_oldest_version(oldest)
            return
        slots = connection.execute(
            "SELECT slot FROM groups WHERE slot IS NOT NULL AND policy_version >= ? AND policy_version < ?",
            (known, oldest),
        ).fetchall()
        self._index.set_oldest_version(oldest, too_old=[slot for (slot,) in slots])

    @contextmanager
    def _write(self, iteration: int) -> Iterator[sqlite3.Connection]:
        """A transaction of a change that belongs to `iteration`."""
        if iteration < self._last_iteration:
            raise ValueError(
                f"iteration {iteration} lies before iteration {self._last_iteration}, which the replay store has "
                "recorded already; roll back first"
            )
        with self._exclusive() as connection:
            yield connection
        self._last_iteration = iteration

    @contextmanager
    def _exclusive(self, *, first: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction in which nobody else can write, and before which nobody else has."""
        with self._db.write() as connection:
            if not first and _data_version(connection) != self._data_version:
                raise RunDirError(
                    f"replay store {self._db.path}: another process has written to it. Only one run may write to a "
                    "run directory"
                )
            yield connection

    def _save_progress(self, connection: sqlite3.Connection, iteration: int, *, seen: int = 0, drawn: int = 0) -> None:
        connection.execute(
            "INSERT OR REPLACE INTO progress (iteration, seen, drawn) VALUES (?, ?, ?)",
            (iteration, self._seen + seen, self._drawn + drawn),
        )


def _insert(connection: sqlite3.Connection, seq: int, slot: int, group: Group, payload: bytes) -> None:
    connection.execute(
        "INSERT INTO groups (seq, id, task, iteration, policy_version, slot, priority, draws) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
        (seq, group.id, group.task, group.iteration, group.policy_version, slot, group.priority + 0.0),
    )
    connection.execute("INSERT INTO payloads (seq, data) VALUES (?, ?)", (seq, payload))
    connection.executemany(
        "INSERT INTO rollouts (seq, position, id, reward) VALUES (?, ?, ?, ?)",
        [
            (seq, position, experience.rollout.id, experience.score.value)
            for position, experience in enumerate(group.experiences)
        ],
    )


def _data_version(connection: sqlite3.Connection) -> int:
    """A number that changes when another connection commits (https://sqlite.org/pragma.html#pragma_data_version)."""
    return connection.execute("PRAGMA data_version").fetchone()[0]
