"""Reading a store, also while a run writes to it."""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from rlsf.errors import RunDirError
from rlsf.experience import Group
from rlsf.replay.codec import decode, uncompressed
from rlsf.replay.database import Database
from rlsf.replay.keep import Keep
from rlsf.replay.tables import COLUMNS, Value, blob_checksum, listed, row_checksum

PAGE = 64
"""Groups fetched at a time when iterating."""

GROUP_COLUMNS = (
    f"{listed(COLUMNS['groups'], 'g.')}, g.checksum, p.data, p.checksum "
    "FROM groups AS g LEFT JOIN payloads AS p USING (seq)"
)
"""What `ReplayReader.checked` takes. A payload that is gone must not make its group vanish without a word."""
SELECTED = (
    "g.slot IS NOT NULL AND (:task IS NULL OR g.task = :task) AND (:iteration IS NULL OR g.iteration = :iteration)"
)


class GroupRow(NamedTuple):
    """A row of the table groups, and the group's payload."""

    seq: int
    id: str
    task: str
    iteration: int
    policy_version: int
    slot: int | None
    priority: float
    draws: int
    cluster: int | None
    keep_class: str
    rank: float
    success: float | None
    payload: bytes


class Progress(NamedTuple):
    """The counters at the end of an iteration."""

    iteration: int
    seen: int
    drawn: int
    thresholds: str


@dataclass(frozen=True, slots=True)
class TaskStats:
    """The stored groups of one task; reward figures are over its rollouts that have a reward, None where none has."""

    task: str
    groups: int
    rollouts: int
    unscored: int
    """Rollouts whose reward is None."""
    reward_mean: float | None
    reward_min: float | None
    reward_max: float | None
    draws: int
    """How often its stored groups were drawn, taken together."""


@dataclass(frozen=True, slots=True)
class ReplayStats:
    """What a store holds at one moment."""

    path: Path
    bytes_on_disk: int
    capacity: int
    keep: str
    groups: int
    seen: int
    """Groups ever added."""
    drawn: int
    """Groups ever drawn; one drawn twice counts twice."""
    never_drawn: int
    """Stored groups that were never drawn."""
    last_iteration: int
    """The last one that changed the store."""
    policy_versions: tuple[int, int] | None
    """Oldest and newest; None where the store is empty."""
    priorities: tuple[float, float, float] | None
    """Smallest, mean, largest; None where the store is empty."""
    tasks: tuple[TaskStats, ...]
    """By name."""
    iterations: dict[int, int]
    """Stored groups by the iteration in which they were generated, in ascending order."""
    clusters: dict[int | None, int]
    """Stored groups by cluster, the largest first; None: those without one."""

    @property
    def evicted(self) -> int:
        """Groups that were seen and are no longer, or never were, kept."""
        return self.seen - self.groups


class ReplayReader:
    """The store, read-only. Sees what was committed when each call began."""

    def __init__(self, database: Database) -> None:
        self._db = database
        try:
            database.check_schema()
            with database.read() as connection:
                row = connection.execute(f"SELECT {listed(COLUMNS['settings'])}, checksum FROM settings").fetchone()
            if row is None or row_checksum(*row[:-1]) != row[-1]:
                raise database.damage("the row of settings")
        except BaseException:
            database.close()
            raise
        self.capacity: int = row[0]
        self.keep: Keep = row[1]
        self.seed = int(row[2])

    @staticmethod
    def open_read_only(directory: Path | str) -> "ReplayReader":
        """The store in `directory`.

        Raises:
            RunDirError: there is none, or it cannot be read.
        """
        return ReplayReader(Database(directory, "read"))

    def close(self) -> None:
        """Safe to call twice."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Groups in the store."""
        with self._db.read() as connection:
            last = connection.execute("SELECT max(slot) FROM groups WHERE slot IS NOT NULL").fetchone()[0]
        return 0 if last is None else last + 1  # slots 0 to last are occupied

    @property
    def seen(self) -> int:
        """Groups ever added, those included that are gone."""
        return self._progress().seen

    @property
    def last_iteration(self) -> int:
        """The last iteration that changed the store; 0 before the first."""
        return self._progress().iteration

    def get(self, group_id: str) -> Group:
        """Raises:
        KeyError: the store does not hold it.
        RunDirError: it is damaged.
        """
        with self._db.read() as connection:
            row = connection.execute(
                f"SELECT {GROUP_COLUMNS} WHERE g.id = ? AND g.slot IS NOT NULL", (group_id,)
            ).fetchone()
        if row is None:
            raise KeyError(f"the store {self._db.path} holds no group {group_id!r}")
        return self._group(self.checked(row, id=group_id))

    def find(self, prefix: str) -> Group:
        """The stored group whose id, or the id of one of whose rollouts, is `prefix`; or else the only one with an id
        that starts with it.

        Raises:
            RunDirError: there is none, or more than one.
        """
        end = prefix + chr(0x10FFFF)
        for match, values in (("= ?", [prefix]), (">= ? AND {0} < ?", [prefix, end])):
            with self._db.read() as connection:
                ids = connection.execute(
                    f"SELECT id FROM groups WHERE slot IS NOT NULL AND id {match.format('id')} "
                    "UNION SELECT g.id FROM rollouts AS r JOIN groups AS g USING (seq) "
                    f"WHERE g.slot IS NOT NULL AND r.id {match.format('r.id')} ORDER BY 1 LIMIT 6",
                    values * 2,
                ).fetchall()
            if len(ids) == 1:
                return self.get(ids[0][0])
            if ids:
                shown = ", ".join(row[0] for row in ids[:5]) + (", ..." if len(ids) > 5 else "")
                raise RunDirError(f"more than one group fits {prefix!r}: {shown}. Give more of the id")
        raise RunDirError(
            f"replay store {self._db.path}: no group and no rollout has an id that starts with {prefix!r}. "
            "It may have been evicted; samples/ in the run directory keeps what was generated"
        )

    def groups(
        self, *, task: str | None = None, iteration: int | None = None, newest_first: bool = False
    ) -> Iterator[Group]:
        """The stored groups in the order in which they came, or the other way round, read as they are asked for.

        Raises:
            RunDirError: one is damaged.
        """
        beyond, order, last = ("<", "DESC", 2**63 - 1) if newest_first else (">", "ASC", 0)
        while True:
            with self._db.read() as connection:
                rows = connection.execute(
                    f"SELECT {GROUP_COLUMNS} WHERE {SELECTED} AND g.seq {beyond} :last "
                    f"ORDER BY g.seq {order} LIMIT :page",
                    {"last": last, "task": task, "iteration": iteration, "page": PAGE},
                ).fetchall()
            for row in rows:
                yield self._group(self.checked(row))
            if len(rows) < PAGE:
                return
            last = rows[-1][0]

    def clusters(self) -> dict[str, int]:
        """Cluster by group id, of the stored groups that have one, in the order in which they came."""
        with self._db.read() as connection:
            rows = connection.execute(
                "SELECT id, cluster FROM groups WHERE slot IS NOT NULL AND cluster IS NOT NULL ORDER BY seq"
            ).fetchall()
        return dict(rows)

    def embeddings(self) -> tuple[list[str], np.ndarray]:
        """The ids of the N stored groups that have an embedding, in the order in which they came, and the embeddings
        as float32 of shape (N, D); (0, 0) where there is none.

        Raises:
            RunDirError: one is damaged.
        """
        with self._db.read() as connection:
            rows = connection.execute(
                "SELECT g.id, e.data, e.checksum FROM embeddings AS e JOIN groups AS g USING (seq) "
                "WHERE g.slot IS NOT NULL ORDER BY e.seq"
            ).fetchall()
        for group_id, data, checksum in rows:
            if blob_checksum(group_id, data) != checksum:
                raise self._db.damage(f"the embedding of group {group_id!r}")
        stacked = np.frombuffer(b"".join(data for _, data, _ in rows), dtype="<f4")
        return [row[0] for row in rows], stacked.reshape(len(rows), -1) if rows else np.empty((0, 0), np.float32)

    def count(self, *, task: str | None = None, iteration: int | None = None) -> int:
        """How many groups `groups` would go through. Takes time in proportion to the store's size."""
        with self._db.read() as connection:
            row = connection.execute(
                f"SELECT count(*) FROM groups AS g WHERE {SELECTED}", {"task": task, "iteration": iteration}
            ).fetchone()
        return int(row[0])

    def stats(self) -> ReplayStats:
        """Counts and summaries, without reading a payload. Takes time in proportion to the store's size."""
        with self._db.read() as connection:
            last_iteration, seen, drawn, _ = self._progress()
            groups, never_drawn, *extremes = connection.execute(
                "SELECT count(*), count(*) FILTER (WHERE draws = 0), min(policy_version), max(policy_version), "
                "min(priority), avg(priority), max(priority) FROM groups WHERE slot IS NOT NULL"
            ).fetchone()
            tasks = connection.execute(
                "SELECT g.task, count(DISTINCT g.seq), count(*), count(*) - count(r.reward), avg(r.reward), "
                "min(r.reward), max(r.reward), sum(g.draws) FILTER (WHERE r.position = 0) "
                "FROM groups AS g JOIN rollouts AS r USING (seq) WHERE g.slot IS NOT NULL GROUP BY 1 ORDER BY 1"
            ).fetchall()
            iterations = connection.execute(
                "SELECT iteration, count(*) FROM groups WHERE slot IS NOT NULL GROUP BY 1 ORDER BY 1"
            ).fetchall()
            clusters = connection.execute(
                "SELECT cluster, count(*) FROM groups WHERE slot IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
            ).fetchall()
        return ReplayStats(
            path=self._db.path,
            bytes_on_disk=self._db.size_on_disk(),
            capacity=self.capacity,
            keep=self.keep,
            groups=groups,
            seen=seen,
            drawn=drawn,
            never_drawn=never_drawn,
            last_iteration=last_iteration,
            policy_versions=(extremes[0], extremes[1]) if groups else None,
            priorities=(extremes[2], extremes[3], extremes[4]) if groups else None,
            tasks=tuple(TaskStats(*row) for row in tasks),
            iterations=dict(iterations),
            clusters=dict(clusters),
        )

    def digest(self) -> str:
        """SHA-256 (hex) of the content: settings, counters, thresholds, and each group with its slot, priority, draws,
        cluster, payload and embedding.

        Two stores with the same digest draw and evict alike from here on. The layout of the file plays no part, nor
        do groups that are only kept for a rollback.
        """
        digest = hashlib.sha256()

        def update(*values: Value) -> None:
            for value in values:
                data = value if isinstance(value, bytes) else _to_bytes(value)
                digest.update(struct.pack("<Q", len(data)) + data)

        with self._db.read() as connection:
            _, seen, drawn, thresholds = self._progress()
            update(self.capacity, self.keep, self.seed, seen, drawn, thresholds)
            for *columns, payload, embedding in connection.execute(
                "SELECT g.slot, g.seq, g.id, g.task, g.iteration, g.policy_version, g.priority, g.draws, g.cluster, "
                "g.class, g.rank, p.data, e.data FROM groups AS g JOIN payloads AS p USING (seq) "
                "LEFT JOIN embeddings AS e USING (seq) WHERE g.slot IS NOT NULL ORDER BY g.slot"
            ):
                update(*columns, uncompressed(payload, group_id=columns[2]), embedding)
        return digest.hexdigest()

    def _progress(self) -> Progress:
        with self._db.read() as connection:
            row = connection.execute(
                f"SELECT {listed(COLUMNS['progress'])}, checksum FROM progress ORDER BY iteration DESC LIMIT 1"
            ).fetchone()
        if row is None:
            return Progress(0, 0, 0, "{}")
        if row_checksum(*row[:-1]) != row[-1]:
            raise self._db.damage(f"the row of counters of iteration {row[0]}")
        return Progress(*row[:-1])

    def checked(self, row: tuple[Any, ...], **expected: int | str) -> GroupRow:
        """A row of GROUP_COLUMNS, whole, and with the values that were asked for: an index may be damaged too.

        Raises:
            RunDirError: it is damaged; the message names the group.
        """
        *columns, checksum, payload, payload_checksum = row
        group = GroupRow._make([*columns, payload])
        if row_checksum(*columns) != checksum or any(getattr(group, name) != expected[name] for name in expected):
            raise self._db.damage(f"group {group.id!r}")
        if not isinstance(payload, bytes) or blob_checksum(group.id, payload) != payload_checksum:
            raise self._db.damage(f"the payload of group {group.id!r}")
        return group

    @staticmethod
    def _group(row: GroupRow) -> Group:
        return decode(row.payload, group_id=row.id, task=row.task, iteration=row.iteration, priority=row.priority)


def _to_bytes(value: int | float | str | None) -> bytes:
    if isinstance(value, float):
        return struct.pack("<d", value)
    return str(value).encode("utf-8")
