"""The SQLite file below the store: schema, connections, transactions, and errors that say how to mend them."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rlsf.errors import RunDirError

FILE_NAME = "replay.sqlite"
APPLICATION_ID = 0x726C7366  # "rlsf" in ASCII
SCHEMA_VERSION = 1
BUSY_SECONDS = 30.0

SCHEMA = """
CREATE TABLE settings (             -- one row
    capacity INTEGER NOT NULL,
    keep TEXT NOT NULL,
    seed TEXT NOT NULL,             -- text, since it may exceed 64 bits
    pruned INTEGER NOT NULL         -- no rollback to an iteration before this one
);
CREATE TABLE progress (             -- counters at the end of each iteration
    iteration INTEGER PRIMARY KEY,
    seen INTEGER NOT NULL,          -- groups ever added
    drawn INTEGER NOT NULL          -- groups ever drawn
);
CREATE TABLE groups (
    seq INTEGER PRIMARY KEY,        -- the how-manieth group ever seen, from 1
    id TEXT NOT NULL,
    task TEXT NOT NULL,
    iteration INTEGER NOT NULL,
    policy_version INTEGER NOT NULL,
    slot INTEGER,                   -- NULL: evicted, and kept for a rollback until the journal is pruned
    priority REAL NOT NULL,
    draws INTEGER NOT NULL
);
CREATE UNIQUE INDEX groups_by_slot ON groups (slot) WHERE slot IS NOT NULL;
CREATE UNIQUE INDEX groups_by_id ON groups (id) WHERE slot IS NOT NULL;
CREATE INDEX groups_by_version ON groups (policy_version, slot) WHERE slot IS NOT NULL;
CREATE INDEX groups_by_iteration ON groups (iteration, slot) WHERE slot IS NOT NULL;
CREATE TABLE payloads (             -- apart from groups, so that scans of groups do not page through blobs
    seq INTEGER PRIMARY KEY REFERENCES groups ON DELETE CASCADE,
    data BLOB NOT NULL
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
    PRIMARY KEY (iteration, seq)
) WITHOUT ROWID;
CREATE INDEX journal_by_seq ON journal (seq, iteration);
"""

MENDING = {
    sqlite3.SQLITE_FULL: "the disk is full. Free some space, then resume the run",
    sqlite3.SQLITE_IOERR: "the disk is full or fails, or a file size limit is reached. Mend that, then resume",
    sqlite3.SQLITE_READONLY: "the file or its directory may not be written. Change its permissions, or output_dir",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened. Check that the directory exists and may be written",
    sqlite3.SQLITE_BUSY: "another process is writing to it. Only one run may write to a run directory",
    sqlite3.SQLITE_NOTADB: "it is not a replay store. Was the file replaced or damaged?",
    sqlite3.SQLITE_CORRUPT: "the file is damaged. Restore it from a backup, or start the run anew",
}


class Database:
    """One connection. Every error of SQLite's leaves it as a RunDirError."""

    def __init__(self, directory: Path | str, access: Literal["write", "read"]) -> None:
        self.directory = Path(directory)
        self.path = self.directory / FILE_NAME
        if access == "write":
            self._make_directory()
        elif not self.path.exists():
            raise RunDirError(f"there is no replay store in {self.directory}: {FILE_NAME} is missing")
        with self.errors():
            self.connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?{self._mode(access)}",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
            )
            self.connection.execute("PRAGMA foreign_keys = ON")
            self.connection.execute("PRAGMA synchronous = FULL")  # a checkpoint must not outlive what it refers to

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirError(
                f"cannot make the directory {self.directory} for the replay store: {error.strerror}"
            ) from error

    def _mode(self, access: str) -> str:
        if access != "read":
            return "mode=rwc"
        wal = self.path.with_name(FILE_NAME + "-wal")
        # Readers and writers share memory through a file beside the store, which a reader cannot make in a read-only
        # directory; there, without a log left to replay, nobody writes either.
        if not os.access(self.directory, os.W_OK) and not wal.exists():
            return "mode=ro&immutable=1"
        return "mode=ro"

    def create_schema(self, *, capacity: int, keep: str, seed: int) -> None:
        """Make an empty file a store, in one transaction. Leaves any other file alone."""
        with self.errors():
            self.connection.execute("PRAGMA journal_mode = WAL")
        with self.write() as connection:
            if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                return
            for statement in SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute("INSERT INTO settings VALUES (?, ?, ?, 0)", (capacity, keep, str(seed)))
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def check_schema(self) -> None:
        """Raises RunDirError unless the file is a store that this version of rlsf can read."""
        with self.read() as connection:
            if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise RunDirError(f"{self.path} is not a replay store of rlsf")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA_VERSION:
            raise RunDirError(
                f"{self.path} has schema version {version}, and this rlsf reads version {SCHEMA_VERSION}: "
                "use the rlsf that wrote it"
            )

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of the store, whatever another process writes meanwhile."""
        with self.errors():
            nested = self.connection.in_transaction
            if not nested:
                self.connection.execute("BEGIN")
            try:
                yield self.connection
            finally:
                if not nested and self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing; on disk when the block ends."""
        with self.errors():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # SQLite itself rolls back after some errors
                    self.connection.execute("ROLLBACK")
                raise

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
            raise RunDirError(f"replay store {self.path}: {MENDING.get(primary, error)} ({error})") from error

    def size_on_disk(self) -> int:
        """Bytes, write-ahead log included."""
        files = (self.path.with_name(FILE_NAME + suffix) for suffix in ("", "-wal", "-shm"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        self.connection.close()
