"""The tables of a store. Every row carries a checksum of all its columns, which triggers keep up to date.

A row that is damaged already is not updated: its new checksum would vouch for the damage.
"""

import struct
import zlib
from collections.abc import Iterable

FILE_NAME = "replay.sqlite"
APPLICATION_ID = 0x726C7366  # "rlsf" in ASCII
SCHEMA_VERSION = 2

Value = int | float | str | bytes | None

COLUMNS = {
    "settings": ("capacity", "keep", "seed", "pruned"),
    "progress": ("iteration", "seen", "drawn", "thresholds"),
    "groups": (
        "seq", "id", "task", "iteration", "policy_version", "slot", "priority", "draws", "cluster", "class", "rank",
        "success",
    ),
    "journal": ("iteration", "seq", "existed", "slot", "priority", "draws", "cluster", "class"),
}  # fmt: skip
"""By table: the columns that the checksum of a row covers, in order. Payloads and embeddings have theirs computed where
they are written; rollouts repeat what the payloads say."""

TABLES = """
CREATE TABLE settings (             -- one row
    capacity INTEGER NOT NULL,
    keep TEXT NOT NULL,
    seed TEXT NOT NULL,             -- text, since it may exceed 64 bits
    pruned INTEGER NOT NULL,        -- no rollback to an iteration before this one
    checksum INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE progress (             -- counters at the end of each iteration
    iteration INTEGER PRIMARY KEY,
    seen INTEGER NOT NULL,          -- groups ever added
    drawn INTEGER NOT NULL,         -- groups ever drawn
    thresholds TEXT NOT NULL,       -- JSON: highest rank that each class has let go
    checksum INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE groups (
    seq INTEGER PRIMARY KEY,        -- the how-manieth group ever seen, from 1
    id TEXT NOT NULL,
    task TEXT NOT NULL,
    iteration INTEGER NOT NULL,
    policy_version INTEGER NOT NULL,
    slot INTEGER,                   -- NULL: evicted, and kept for a rollback until the journal is pruned
    priority REAL NOT NULL,
    draws INTEGER NOT NULL,
    cluster INTEGER,
    class TEXT NOT NULL,            -- the lowest rank of the largest class goes
    rank REAL NOT NULL,
    success REAL,                   -- mean reward; NULL: no rollout has one
    checksum INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX groups_by_slot ON groups (slot) WHERE slot IS NOT NULL;
CREATE UNIQUE INDEX groups_by_id ON groups (id) WHERE slot IS NOT NULL;
CREATE INDEX groups_by_version ON groups (policy_version, slot) WHERE slot IS NOT NULL;
CREATE INDEX groups_by_iteration ON groups (iteration, slot) WHERE slot IS NOT NULL;
CREATE INDEX groups_by_rank ON groups (class, rank, seq) WHERE slot IS NOT NULL;
CREATE TABLE payloads (             -- apart from groups, so that scans of groups do not page through blobs
    seq INTEGER PRIMARY KEY REFERENCES groups ON DELETE CASCADE,
    data BLOB NOT NULL,
    checksum INTEGER NOT NULL       -- of the group's id and the data
);
CREATE TABLE embeddings (
    seq INTEGER PRIMARY KEY REFERENCES groups ON DELETE CASCADE,
    data BLOB NOT NULL,             -- float32, little-endian
    checksum INTEGER NOT NULL       -- of the group's id and the data
);
CREATE TABLE rollouts (
    seq INTEGER NOT NULL REFERENCES groups ON DELETE CASCADE,
    position INTEGER NOT NULL,
    id TEXT NOT NULL,
    reward REAL,                    -- NULL: no opinion
    PRIMARY KEY (seq, position)
) WITHOUT ROWID;
CREATE INDEX rollouts_by_id ON rollouts (id);
CREATE TABLE journal (              -- a group as it was before an iteration first touched it
    iteration INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    existed INTEGER NOT NULL,       -- 0: the iteration added it, and what follows means nothing
    slot INTEGER,
    priority REAL,
    draws INTEGER,
    cluster INTEGER,
    class TEXT,
    checksum INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (iteration, seq)
) WITHOUT ROWID;
CREATE INDEX journal_by_seq ON journal (seq, iteration);
"""

KEYS = {"settings": ("rowid",), "progress": ("iteration",), "groups": ("seq",), "journal": ("iteration", "seq")}


def statements() -> list[str]:
    """What makes an empty database a store, in order."""
    tables = [statement.strip() for statement in TABLES.split(";\n") if statement.strip()]
    return [*tables, *(trigger for table in COLUMNS for trigger in _triggers(table))]


def _triggers(table: str) -> list[str]:
    columns = ", ".join(COLUMNS[table])
    key = " AND ".join(f"{name} = NEW.{name}" for name in KEYS[table])
    old = ", ".join(f"OLD.{name}" for name in COLUMNS[table])
    renew = f"BEGIN UPDATE {table} SET checksum = row_checksum({columns}) WHERE {key}; END"
    return [
        f"CREATE TRIGGER {table}_insert AFTER INSERT ON {table} {renew}",
        f"CREATE TRIGGER {table}_check BEFORE UPDATE OF {columns} ON {table} "
        f"WHEN NOT row_is_whole('{table}', OLD.checksum, {old}) BEGIN SELECT RAISE(ABORT, 'damaged row'); END",
        f"CREATE TRIGGER {table}_update AFTER UPDATE OF {columns} ON {table} {renew}",
    ]


def row_checksum(*values: Value) -> int:
    """CRC-32 of a row's values and their types."""
    return zlib.crc32(b"".join(map(_encoded, values)))


def blob_checksum(group_id: str, data: bytes) -> int:
    """CRC-32 of a payload or an embedding and the id of the group that it belongs to."""
    return zlib.crc32(data, zlib.crc32(group_id.encode("utf-8", "surrogateescape") + b"\0"))


def _encoded(value: Value) -> bytes:
    if value is None:
        return b"n"
    if isinstance(value, float):
        return b"f" + struct.pack("<d", value)
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
    return type(value).__name__[:1].encode() + struct.pack("<Q", len(data)) + data


def listed(columns: Iterable[str], prefix: str = "") -> str:
    """Column names for a SELECT."""
    return ", ".join(prefix + name for name in columns)
