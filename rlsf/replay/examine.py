"""Every row of a store that may be damaged, one by one: what is whole, and what is not."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlsf.errors import RunDirError
from rlsf.experience import Group
from rlsf.replay.codec import decode
from rlsf.replay.leaves import Leaves
from rlsf.replay.reader import GroupRow, Progress
from rlsf.replay.tables import COLUMNS, blob_checksum, listed, row_checksum

CHUNK = 4096
"""Rows read at a time."""
FAR = 10**8
"""No store has more rows; a number beyond it is damage, and nothing to count up to."""


@dataclass
class TableReport:
    whole: int = 0
    damaged: list[str] = field(default_factory=list)
    """Which ones, in words."""


@dataclass
class Whole:
    """A group whose row and payload are whole."""

    row: GroupRow
    group: Group
    embedding: bytes | None
    """None where it has none, or that is damaged."""


class Examination:
    """Reads a store through a connection that may fail at any row.

    Attributes:
        tables: filled while rows are read, as are
        seqs: sequence numbers of the groups whose rows can be read, and
        slots: those of the rows that are whole.
    """

    def __init__(self, connection: sqlite3.Connection, leaves: Callable[[], Leaves] | None = None) -> None:
        self._connection = connection
        self._leaves = leaves
        self.tables = {
            name: TableReport()
            for name in ("settings", "progress", "groups", "payloads", "rollouts", "embeddings", "journal")
        }
        self.seqs: set[int] = set()
        self.slots: list[int] = []
        self.settings = next(self._whole_rows("settings", "rowid"), None)
        self.progress = [Progress(*row) for row in self._whole_rows("progress", "iteration")]
        if self.settings is None and not self.tables["settings"].damaged:
            self.tables["settings"].damaged.append("the only row is gone")

    @property
    def last_iteration(self) -> int:
        return self.progress[-1].iteration if self.progress else 0

    def groups(self) -> Iterator[Whole]:
        """Those that are whole, evicted ones that are kept for a rollback included, in the order in which they came."""
        for values in self._whole_rows("groups", "seq", self.seqs):
            row = GroupRow._make([*values, b""])
            if row.slot is not None:
                self.slots.append(row.slot)
            whole = self._with_payload(row)
            if whole is not None:
                yield whole
        unreadable: list[str] = []
        for (seq,) in self._walk("SELECT seq FROM payloads", "seq", unreadable):
            if seq not in self.seqs:
                self.tables["groups"].damaged.append(f"no. {seq}: its row is lost")
        self.tables["payloads"].damaged += unreadable

    def journal(self) -> list[tuple[Any, ...]]:
        """The rows that are whole, in the order of iterations: values of COLUMNS."""
        return list(self._whole_rows("journal", "iteration"))

    def _with_payload(self, row: GroupRow) -> Whole | None:
        payload = self._blob("payloads", row)
        embedding = self._blob("embeddings", row)
        if payload is None:
            return None
        try:
            group = decode(
                payload, group_id=row.id, task=row.task, iteration=row.iteration, priority=float(row.priority)
            )
        except (RunDirError, ValueError, TypeError, KeyError) as error:
            self.tables["payloads"].damaged.append(f"{row.id} ({error})")
            return None
        self._check_rollouts(row, group)
        return Whole(row._replace(payload=payload), group, embedding)

    def _blob(self, table: str, row: GroupRow) -> bytes | None:
        try:
            found = self._connection.execute(f"SELECT data, checksum FROM {table} WHERE seq = ?", (row.seq,)).fetchone()
        except sqlite3.Error:
            found = (None, 0)
        if found is None and table == "embeddings":  # not every group has one
            return None
        candidates = [found or (None, 0)]
        if table == "payloads" and not _is_whole(row.id, *candidates[0]) and self._leaves is not None:
            candidates += self._leaves().payloads(row.seq)
        for data, checksum in candidates:
            if _is_whole(row.id, data, checksum):
                self.tables[table].whole += 1
                return data
        self.tables[table].damaged.append(row.id)
        return None

    def _check_rollouts(self, row: GroupRow, group: Group) -> None:
        """They repeat what the payload says: damage here loses nothing."""
        expected = [(experience.rollout.id, experience.score.value) for experience in group.experiences]
        try:
            found = self._connection.execute(
                "SELECT id, reward FROM rollouts WHERE seq = ? ORDER BY position", (row.seq,)
            ).fetchall()
        except sqlite3.Error:
            found = []
        if found == expected:
            self.tables["rollouts"].whole += len(found)
        else:
            self.tables["rollouts"].damaged.append(row.id)

    def _whole_rows(self, table: str, key: str, seen: set[int] | None = None) -> Iterator[tuple[Any, ...]]:
        """Values of COLUMNS of the rows that are whole; `seen` collects the keys of all that could be read."""
        report = self.tables[table]
        columns = COLUMNS[table]
        for row_key, *values, checksum in self._walk(
            f"SELECT {key}, {listed(columns)}, checksum FROM {table}", key, report.damaged
        ):
            if seen is not None:
                seen.add(row_key)
            if row_checksum(*values) == checksum:
                report.whole += 1
                yield tuple(values)
            else:
                name = values[1] if table == "groups" else f"{key} {row_key}"
                report.damaged.append(str(name))

    def _walk(self, select: str, key: str, unreadable: list[str]) -> Iterator[Sequence[Any]]:
        """All rows that can be read, by key; past damage, those around it are looked for one by one."""
        last = -1
        while True:
            try:
                rows = self._connection.execute(
                    f"{select} WHERE {key} > ? ORDER BY {key} LIMIT ?", (last, CHUNK)
                ).fetchall()
            except sqlite3.Error as error:
                found = list(self._search(select, key, last + 1, last + CHUNK))
                if self._leaves is not None and select.endswith(" FROM groups"):
                    found = self._with_leaves(found, range(last + 1, last + CHUNK + 1))
                yield from found
                last += CHUNK
                unreadable.append(f"{key} {last - CHUNK + 1:,} to {last:,}: only {len(found):,} found ({error})")
                if last >= self._furthest(key):
                    return
                continue
            yield from self._unsplit(select, key, rows)
            if len(rows) < CHUNK:
                return
            last = rows[-1][0] if rows[-1][0] > last else last + CHUNK  # damaged keys may run backwards

    def _with_leaves(self, found: list[Any], seqs: range) -> list[Any]:
        """Rows of groups, with those that no way leads to."""
        assert self._leaves is not None
        leaves, known = self._leaves().groups, {row[0] for row in found}
        more = [(seq, *leaves[seq]) for seq in seqs if seq in leaves and seq not in known]
        return sorted([*found, *more], key=lambda row: row[0])

    def _unsplit(self, select: str, key: str, rows: list[Any]) -> Iterator[Sequence[Any]]:
        """Where a key has several rows (the journal), those of the last one may go on in the next chunk."""
        yield from rows
        if len(rows) == CHUNK and key == "iteration":
            same = sum(row[0] == rows[-1][0] for row in rows)
            yield from self._connection.execute(
                f"{select} WHERE {key} = ? LIMIT -1 OFFSET ?", (rows[-1][0], same)
            ).fetchall()

    def _search(self, select: str, key: str, low: int, high: int) -> Iterator[Sequence[Any]]:
        """Rows of a range, halved until a part can be read or is a single key."""
        try:
            yield from self._connection.execute(
                f"{select} WHERE {key} BETWEEN ? AND ? ORDER BY {key}", (low, high)
            ).fetchall()
        except sqlite3.Error:
            if low < high:
                middle = (low + high) // 2
                yield from self._search(select, key, low, middle)
                yield from self._search(select, key, middle + 1, high)

    def _furthest(self, key: str) -> int:
        """No row beyond it is looked for."""
        if key == "seq":
            known = [progress.seen for progress in getattr(self, "progress", [])]
            questions = [f"SELECT max(seq) FROM {table}" for table in ("groups", "payloads", "rollouts")]
        else:
            known = [progress.iteration for progress in getattr(self, "progress", [])]
            questions = [f"SELECT max(iteration) FROM {table}" for table in ("groups", "progress")]
        for question in questions if not known else []:
            try:
                known.append(self._connection.execute(question).fetchone()[0] or 0)
            except sqlite3.Error:
                continue
        return min(max(known, default=0), FAR)


def _is_whole(group_id: str, data: Any, checksum: Any) -> bool:
    return isinstance(data, bytes) and blob_checksum(group_id, data) == checksum
