"""Opening a store that may be damaged: as it stands, or else a copy with a new first page."""

import shutil
import sqlite3
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rlsf.replay.database import Database, as_text
from rlsf.replay.leaves import Leaves
from rlsf.replay.log import PAGE_SIZE, Log, read_log
from rlsf.replay.tables import APPLICATION_ID, FILE_NAME, SCHEMA_VERSION, statements

HEADER = {
    0: b"SQLite format 3\0" + struct.pack(">H", PAGE_SIZE) + b"\2\2\0\x40\x20\x20",
    44: struct.pack(">I", 4),
    52: bytes(4),
    56: struct.pack(">III", 1, SCHEMA_VERSION, 0),
    68: struct.pack(">I", APPLICATION_ID) + bytes(20),
}
"""By offset: what is the same in the header of every store (https://sqlite.org/fileformat2.html#the_database_header)."""

LOG_NAME = FILE_NAME + "-wal"


@dataclass
class Source:
    """Where the rows of a store can be read from."""

    connection: sqlite3.Connection | None
    """None where nothing can be read."""
    problems: list[str]
    """Of the file as a whole."""
    leaves: Callable[[], Leaves] | None = None
    """Reads all pages, for rows that SQLite does not find."""


def open_source(directory: Path, workspace: Path) -> Source:
    """The store in `directory`; where SQLite cannot read it as it stands, a copy in the empty folder `workspace`, in
    which the header, and if need be the schema too, are those of a new store.

    Raises:
        FileNotFoundError: there is no store.
    """
    path = directory / FILE_NAME
    log = read_log(path.with_name(LOG_NAME))
    problems = [*_header_problems(path, log), *log.problems]
    if not path.stat().st_size:
        return Source(None, problems)
    copy = workspace / "copy.sqlite"

    @cache
    def leaves() -> Leaves:
        if not copy.exists():
            _copy(path, copy, log)
        return Leaves(copy)

    if not problems or problems == log.problems:
        connection = _opened(path, directory, problems)
        if connection is not None:
            return Source(connection, problems, leaves)
    _copy(path, copy, log)
    for mend in (_mend_header, _mend_schema):
        mend(copy, workspace)
        connection = _opened(copy, None, problems)
        if connection is not None:
            return Source(connection, problems, leaves)
    problems.append("nothing can be read: too much of the file is damaged")
    return Source(None, problems)


def _header_problems(path: Path, log: Log) -> list[str]:
    size = path.stat().st_size
    if not size:
        return [f"{path.name}: the file is empty"]
    head = _bytes_at(path, 0, 100)
    newest = _newest_header(path, log)
    problems = []
    # Even where the log has a newer first page, SQLite looks for the size of a page in the file.
    if not head.startswith(HEADER[0]) or any(newest[at : at + len(data)] != data for at, data in HEADER.items()):
        problems.append(f"{path.name}: the header is damaged, or was written by another version of rlsf")
    if size % PAGE_SIZE:
        problems.append(f"{path.name}: the file is cut off in the middle of a page")
    if log.page_count is None and len(head) == 100:  # else the log says how many
        pages = struct.unpack_from(">I", head, 28)[0]
        if head[24:28] != head[92:96] or pages != size // PAGE_SIZE:
            problems.append(f"{path.name}: it has {size // PAGE_SIZE:,} pages and should have {pages:,}")
    return problems


def schema_version(path: Path) -> int:
    """What the header says, as of the last change; 0 where there is none."""
    return int.from_bytes(_newest_header(path, read_log(path.with_name(LOG_NAME)))[60:64], "big")


def _newest_header(path: Path, log: Log) -> bytes:
    if 1 in log.offsets:
        return _bytes_at(path.with_name(LOG_NAME), log.offsets[1], 100)
    return _bytes_at(path, 0, 100)


def _bytes_at(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _opened(path: Path, directory: Path | None, problems: list[str]) -> sqlite3.Connection | None:
    """A connection that knows the tables of a store; None, and a line in `problems`, where SQLite cannot make one. The
    store itself is in a `directory`; a copy has no log, and nobody else writes to it."""
    mode = "mode=ro&immutable=1" if directory is None else Database.read_mode(directory)
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)
    connection.text_factory = as_text
    try:
        connection.execute("PRAGMA cell_size_check = ON")
        if _schema(connection) == _expected_schema():
            return connection
        reason = "its tables are not those of a store"
    except sqlite3.Error as error:
        reason = str(error)
    connection.close()
    problems.append(f"{path.name}: SQLite cannot read it ({reason})")
    return None


def _schema(connection: sqlite3.Connection) -> set[tuple[str, ...]]:
    return set(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema"))


def _expected_schema() -> set[tuple[str, ...]]:
    connection = sqlite3.connect(":memory:")
    for statement in statements():
        connection.execute(statement)
    schema = _schema(connection)
    connection.close()
    return schema


def _copy(path: Path, copy: Path, log: Log) -> None:
    """The database with what was committed to its log."""
    shutil.copyfile(path, copy)
    with copy.open("r+b") as file:
        if log.offsets:
            with path.with_name(LOG_NAME).open("rb") as wal:
                for page, offset in log.offsets.items():
                    wal.seek(offset)
                    file.seek((page - 1) * PAGE_SIZE)
                    file.write(wal.read(PAGE_SIZE))
        size = file.seek(0, 2)
        pages = max(-(-size // PAGE_SIZE), log.page_count or 0)
        file.truncate(pages * PAGE_SIZE)


def _mend_header(copy: Path, _: Path) -> None:
    pages = copy.stat().st_size // PAGE_SIZE
    with copy.open("r+b") as file:
        for offset, data in HEADER.items():
            file.seek(offset)
            file.write(data)
        for offset, number in ((24, 1), (92, 1), (28, pages), (32, 0), (36, 0)):  # no page counts as free
            file.seek(offset)
            file.write(struct.pack(">I", number))


def _mend_schema(copy: Path, workspace: Path) -> None:
    """A new store has the same tables at the same pages: they were made by the same statements in the same order."""
    database = Database(workspace / "new", "write")
    database.create_schema(capacity=1, keep="fifo", seed=0)
    database.close()
    new = (workspace / "new" / FILE_NAME).read_bytes()
    with copy.open("r+b") as file:
        for page in _schema_pages(new):
            file.seek((page - 1) * PAGE_SIZE)
            file.write(new[(page - 1) * PAGE_SIZE : page * PAGE_SIZE])
    _mend_header(copy, workspace)


def _schema_pages(data: bytes) -> list[int]:
    """The first page, and the leaves below it where the schema does not fit there."""
    if data[100] != 5:  # https://sqlite.org/fileformat2.html#b_tree_pages
        return [1]
    cells = struct.unpack_from(">H", data, 103)[0]
    pointers = struct.unpack_from(f">{cells}H", data, 112)
    return [1, struct.unpack_from(">I", data, 108)[0], *(struct.unpack_from(">I", data, at)[0] for at in pointers)]
