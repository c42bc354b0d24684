"""The replay store: add, draw, re-prioritise, and roll back to the end of any recent iteration.

Everything is a function of the calls made and the seed. A store that was killed, opened again and rolled back to
iteration k goes on exactly like one that was left alone after iteration k.
"""

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np

from rlsf.config.replay import ReplayConfig
from rlsf.errors import RunDirError
from rlsf.experience import Group
from rlsf.replay import journal
from rlsf.replay.codec import check_priority
from rlsf.replay.database import Database
from rlsf.replay.draw import Shares
from rlsf.replay.index import DrawIndex, Entry
from rlsf.replay.insert import check_clusters, check_embeddings, insert, make_newcomers
from rlsf.replay.keep import Keeper, Standing, class_of
from rlsf.replay.reader import GROUP_COLUMNS, ReplayReader

DRAW_STREAM = 2
"""Separates these random numbers from those of the ranks, which share the store's seed."""

CHUNK = 10_000
"""Groups taken over at a time when a store is opened."""

ENTRY_COLUMNS = "slot, iteration, policy_version, priority, task, cluster, success"


class ReplayStore(ReplayReader):
    """The one writer of a store. Groups stay on disk; in memory are about 60 bytes for each."""

    _keeper: Keeper

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

    @classmethod
    def reopen(cls, directory: Path | str) -> Self:
        """The store in `directory`, with the settings that it was made with and whatever draw. Raises RunDirError where
        there is none."""
        with ReplayReader.open_read_only(directory) as reader:
            config = ReplayConfig(capacity=reader.capacity, keep=reader.keep)
            return cls.open(directory, config, seed=reader.seed)

    def add(
        self,
        groups: Sequence[Group],
        *,
        iteration: int,
        clusters: Mapping[str, int] | None = None,
        embeddings: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Add groups in order, one after the other, evicting as `keep` says. A batch larger than the capacity is fine.

        Args:
            clusters: by group id; groups may be left out.
            embeddings: by group id, vectors (D,) that are stored as float32; groups may be left out. D is the same for
                all groups of the store.

        Raises:
            ValueError: a group breaks its contract, is in the store already or twice in the batch, or holds something
                that is no JSON; a cluster or an embedding is none, or of a group that is not in the batch; the message
                names it. `iteration` lies before the last one. Nothing is added then.
            RunDirError: the disk is full, or the like. Nothing is added then.
        """
        newcomers = make_newcomers(
            groups, clusters or {}, embeddings or {}, first=self._seen + 1, keep=self.keep, seed=self.seed
        )
        keeper = self._keeper.copy()
        entries: list[Entry] = []
        with self._write(iteration) as connection:
            for group in groups:
                if connection.execute("SELECT 1 FROM groups WHERE id = ? AND slot IS NOT NULL", (group.id,)).fetchone():
                    raise ValueError(f"group {group.id!r} is in the replay store already")
            check_embeddings(connection, newcomers)
            for newcomer in newcomers:
                slot = self._make_room(connection, keeper, newcomer.standing, iteration)
                if slot is not None:
                    insert(connection, newcomer, slot)
                    journal.record_added(connection, newcomer.seq, iteration)
                    keeper.enter(newcomer.standing.keep_class)
                    entries.append(newcomer.entry(slot))
            self._save_progress(connection, iteration, keeper, seen=len(groups))
        self._keeper = keeper
        self._seen += len(groups)
        self._index.put(entries)

    def draw(
        self,
        n_groups: int,
        *,
        iteration: int,
        policy_version: int,
        exclude_iteration: int | None = None,
        exclude_tasks: Collection[str] = (),
        shares: Shares | None = None,
    ) -> list[Group]:
        """Up to `n_groups` different groups, as `config.draw` says. Fewer where fewer are eligible.

        Not eligible are groups generated in `exclude_iteration` (those that are in the batch as fresh ones), groups of
        `exclude_tasks`, and groups more than `max_staleness` versions older than `policy_version`. A group of weight 0
        (of priority 0, where priorities count; without a reward, for `success`) is drawn only where all eligible ones
        have weight 0.

        A function of the store's content, the seed and the arguments; how many groups were ever drawn is part of the
        content, so a second call in an iteration draws anew. Takes O(log size) time for each group that is drawn,
        excluded by its iteration, or has become too old since the last call.

        Args:
            shares: of the draw, by task for `per_task` and by cluster for `per_cluster`, instead of those in the
                config; up to a common factor, all 0 are equal shares. What is not named here, or has share 0, only
                gets what the others cannot fill.

        Raises:
            ValueError: `n_groups` is negative, `iteration` lies before the last one, or `shares` are negative, not
                finite, or given for another `draw`.
            RunDirError: as `add`, for the draws are counted in the store; or a group that was drawn is damaged.
        """
        if n_groups < 0:
            raise ValueError(f"cannot draw {n_groups} groups")
        with self._write(iteration) as connection:
            self._expire(connection, policy_version)
            excluded = connection.execute(
                "SELECT slot FROM groups WHERE iteration = ? AND slot IS NOT NULL ORDER BY slot", (exclude_iteration,)
            ).fetchall()
            rng = np.random.default_rng([self.seed, DRAW_STREAM, iteration, self._drawn])
            slots = self._index.draw(
                n_groups, rng, hidden=[slot for (slot,) in excluded], exclude_tasks=exclude_tasks, shares=shares
            )
            groups = [self._draw_slot(connection, slot, iteration) for slot in slots]
            self._save_progress(connection, iteration, self._keeper, drawn=len(groups))
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
                    "SELECT seq, slot FROM groups WHERE id = ? AND slot IS NOT NULL", (group_id,)
                ).fetchone()
                if row is not None:
                    journal.record_change(connection, row[0], iteration)
                    connection.execute("UPDATE groups SET priority = ? WHERE seq = ?", (priority + 0.0, row[0]))
                    changed.append((row[1], priority))
            self._save_progress(connection, iteration, self._keeper)
        self._index.set_priorities(changed)
        return len(changed)

    def set_clusters(self, clusters: Mapping[str, int], *, iteration: int) -> int:
        """Set clusters by group id, and return how many were set. Groups that are not named keep theirs; ids that are
        not, or no longer, in the store are passed over.

        With `keep: diverse` the classes change their meaning, so their thresholds start anew: from here on the store
        keeps a sample of what each new cluster had left and of what comes.

        Raises:
            ValueError: a cluster is no integer of 64 bits; the message names the group, and nothing is changed.
            RunDirError: as `add`.
        """
        check_clusters(clusters)
        keeper = self._keeper.copy()
        keeper.thresholds.clear()
        entries: list[Entry] = []
        with self._write(iteration) as connection:
            for group_id, cluster in clusters.items():
                row = connection.execute(
                    f"SELECT seq, class, {ENTRY_COLUMNS} FROM groups WHERE id = ? AND slot IS NOT NULL", (group_id,)
                ).fetchone()
                if row is None:
                    continue
                seq, was, entry = row[0], row[1], Entry(*row[2:])._replace(cluster=int(cluster))
                keep_class = was if self.keep != "diverse" else class_of(self.keep, entry.task, entry.cluster)
                journal.record_change(connection, seq, iteration)
                connection.execute(
                    "UPDATE groups SET cluster = ?, class = ? WHERE seq = ?", (entry.cluster, keep_class, seq)
                )
                keeper.leave(was)
                keeper.enter(keep_class)
                entries.append(entry)
            if self.keep != "diverse":
                keeper = self._keeper
            self._save_progress(connection, iteration, keeper)
        self._keeper = keeper
        self._index.put(entries)
        return len(entries)

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
            if journal.damaged_since(connection, iteration):
                raise self._db.damage(f"the journal of what happened after iteration {iteration}")
            journal.undo(connection, iteration)
        self._load()

    def prune_journal(self, iteration: int) -> None:
        """Give up going back to before the end of `iteration`, and free what was kept for that. Call it when the
        checkpoint of `iteration` is on disk and no older one will be resumed."""
        with self._exclusive() as connection:
            journal.prune(connection, iteration)

    def compact(self) -> tuple[int, int]:
        """Give the room of what is gone back to the disk. Needs as much room again meanwhile; a kill loses nothing.

        Returns:
            Bytes on disk, before and after.

        Raises:
            RunDirError: as `add`.
        """
        before = self._db.size_on_disk()
        with self._exclusive():
            pass  # raises where another process has written
        with self._db.errors():
            self._db.connection.execute("VACUUM")
            self._db.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return before, self._db.size_on_disk()

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
        self._index = DrawIndex(self._config.draw, capacity=self.capacity)
        with self._exclusive(first=True) as connection:
            self._last_iteration, self._seen, self._drawn, thresholds = self._progress()
            sizes = connection.execute("SELECT class, count(*) FROM groups WHERE slot IS NOT NULL GROUP BY class")
            self._keeper = Keeper(self.keep, dict(sizes.fetchall()), json.loads(thresholds))
            slots = connection.execute("SELECT count(*), min(slot), max(slot) FROM groups WHERE slot IS NOT NULL")
            count, first, last = slots.fetchone()
            if count != self._keeper.size or (count and (first, last) != (0, count - 1)) or count > self.capacity:
                raise self._db.damage("the numbering of slots, or an index,")
            cursor = connection.execute(f"SELECT {ENTRY_COLUMNS} FROM groups WHERE slot IS NOT NULL")
            try:
                self._index.load([Entry(*row) for row in rows] for rows in iter(lambda: cursor.fetchmany(CHUNK), []))
            except (TypeError, ValueError, IndexError, OverflowError) as error:  # a column of another type or range
                raise self._db.damage(f"a row of the table groups ({error})") from error
            self._data_version = _data_version(connection)

    def _make_room(
        self, connection: sqlite3.Connection, keeper: Keeper, newcomer: Standing, iteration: int
    ) -> int | None:
        """The slot that a newcomer takes, after the eviction of another group if need be; None where it is not kept."""
        if not keeper.admits(newcomer):
            return None
        if keeper.size < self.capacity:
            return keeper.size
        keep_class = keeper.shrinking_class(newcomer)
        lowest = connection.execute(
            "SELECT rank, seq, slot FROM groups WHERE class = ? AND slot IS NOT NULL ORDER BY rank, seq LIMIT 1",
            (keep_class,),
        ).fetchone()
        if keep_class == newcomer.keep_class and (lowest is None or newcomer.rank < lowest[0]):
            keeper.let_go(newcomer)
            return None
        if lowest is None:
            raise self._db.damage("the index of ranks")
        rank, seq, slot = lowest
        journal.evict(connection, seq, iteration)
        keeper.leave(keep_class)
        keeper.let_go(Standing(keep_class, rank))
        return slot

    def _draw_slot(self, connection: sqlite3.Connection, slot: int, iteration: int) -> Group:
        """The group in a slot, which counts as drawn once more."""
        row = connection.execute(f"SELECT {GROUP_COLUMNS} WHERE g.slot = ?", (slot,)).fetchone()
        if row is None:
            raise self._db.damage(f"slot {slot}, or the index of slots,")
        checked = self.checked(row, slot=slot)
        journal.record_change(connection, checked.seq, iteration)
        connection.execute("UPDATE groups SET draws = draws + 1 WHERE seq = ?", (checked.seq,))
        return self._group(checked)

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

    def _save_progress(
        self, connection: sqlite3.Connection, iteration: int, keeper: Keeper, *, seen: int = 0, drawn: int = 0
    ) -> None:
        thresholds = json.dumps(keeper.thresholds, sort_keys=True)
        connection.execute(
            "INSERT OR REPLACE INTO progress (iteration, seen, drawn, thresholds) VALUES (?, ?, ?, ?)",
            (iteration, self._seen + seen, self._drawn + drawn, thresholds),
        )


def _data_version(connection: sqlite3.Connection) -> int:
    """A number that changes when another connection commits (https://sqlite.org/pragma.html#pragma_data_version)."""
    return connection.execute("PRAGMA data_version").fetchone()[0]
