"""The SQLite file below the store: connections, transactions, and errors that say how to mend them."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rlsf.errors import RunDirError
from rlsf.replay.tables import (
    APPLICATION_ID,
    FILE_NAME,
    SCHEMA_VERSION,
    Value,
    row_checksum,
    statements,
)

BUSY_SECONDS = 30.0

MENDING = {
    sqlite3.SQLITE_FULL: "the disk is full. Free some space, then resume the run",
    sqlite3.SQLITE_IOERR: "the disk is full or fails, or a file size limit is reached. Mend that, then resume",
    sqlite3.SQLITE_READONLY: "the file or its directory may not be written. Change its permissions, or output_dir",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened. Check that the directory exists and may be written",
    sqlite3.SQLITE_BUSY: "another process is writing to it. Only one run may write to a run directory",
    sqlite3.SQLITE_NOTADB: "it is not a replay store. Was the file replaced or damaged? {verify}",
    sqlite3.SQLITE_CORRUPT: "the file is damaged. {verify}",
}


class Database:
    """One connection. Every error of SQLite's leaves it as a RunDirError."""

    def __init__(self, directory: Path | str, access: Literal["write", "read"]) -> None:
        self.directory = Path(directory)
        self.path = self.directory / FILE_NAME
        self._damaged_row: str | None = None
        if access == "write":
            self._make_directory()
        elif not self.path.exists():
            raise RunDirError(f"there is no replay store in {self.directory}: {FILE_NAME} is missing")
        self._check_not_emptied()
        with self.errors():
            self.connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?{self._mode(access)}",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
            )
            self.connection.text_factory = as_text
            self.connection.create_function("row_checksum", -1, row_checksum)
            self.connection.create_function("row_is_whole", -1, self._row_is_whole)
            self.connection.execute("PRAGMA trusted_schema = ON")  # the triggers call these functions
            self.connection.execute("PRAGMA foreign_keys = ON")
            self.connection.execute("PRAGMA synchronous = FULL")  # a checkpoint must not outlive what it refers to

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirError(
                f"cannot make the directory {self.directory} for the replay store: {error.strerror}"
            ) from error

    def _check_not_emptied(self) -> None:
        """SQLite deletes a log beside an empty file, and with it what could still be saved."""
        log = self.path.with_name(FILE_NAME + "-wal")
        if self.path.exists() and not self.path.stat().st_size and log.exists() and log.stat().st_size:
            raise RunDirError(f"replay store {self.path}: the file is empty, and its log is not. {self.advice()}")

    def _mode(self, access: str) -> str:
        return "mode=rwc" if access == "write" else self.read_mode(self.directory)

    @staticmethod
    def read_mode(directory: Path) -> str:
        """What a reader of the store in `directory` asks SQLite for."""
        # Readers and writers share memory through a file beside the store, which a reader cannot make in a read-only
        # directory; there, without a log left to replay, nobody writes either.
        if not os.access(directory, os.W_OK) and not (directory / (FILE_NAME + "-wal")).exists():
            return "mode=ro&immutable=1"
        return "mode=ro"

    def create_schema(self, *, capacity: int, keep: str, seed: int) -> None:
        """Make an empty file a store, in one transaction. Leaves any other file alone."""
        with self.errors():
            self.connection.execute("PRAGMA page_size = 4096")  # `rlsf.replay.rescue` relies on it; has no effect later
            self.connection.execute("PRAGMA journal_mode = WAL")
        with self.write() as connection:
            if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                return
            for statement in statements():
                connection.execute(statement)
            connection.execute(
                "INSERT INTO settings (capacity, keep, seed, pruned) VALUES (?, ?, ?, 0)", (capacity, keep, str(seed))
            )
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
            damaged_row, self._damaged_row = self._damaged_row, None
            if damaged_row is not None:
                raise self.damage(damaged_row) from error
            primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
            mending = MENDING.get(primary, "SQLite cannot work with it. {verify}").replace("{verify}", self.advice())
            raise RunDirError(f"replay store {self.path}: {mending} ({error})") from error

    def damage(self, what: str) -> RunDirError:
        """An error that names what is damaged and the way out."""
        return RunDirError(f"replay store {self.path}: {what} is damaged. {self.advice()}")

    def advice(self) -> str:
        """What to do about damage."""
        return f"`rlsf replay verify {self.directory.parent}` says what is whole, and can save it"

    def _row_is_whole(self, table: str, checksum: int, *values: Value) -> bool:
        """For the triggers; remembers which row is not."""
        if row_checksum(*values) == checksum:
            return True
        self._damaged_row = f"group {values[1]!r}" if table == "groups" else f"a row of the table {table}"
        return False

    def size_on_disk(self) -> int:
        """Bytes, write-ahead log included."""
        files = (self.path.with_name(FILE_NAME + suffix) for suffix in ("", "-wal", "-shm"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        self.connection.close()


def as_text(data: bytes) -> str:
    """Damaged text is no reason to fail where it is read: the checksum of its row says so."""
    return data.decode("utf-8", "surrogateescape")
