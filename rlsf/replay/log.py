"""The write-ahead log beside a store, read without SQLite: it passes over a damaged end without a word.

Format: https://sqlite.org/fileformat2.html#the_write_ahead_log
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

PAGE_SIZE = 4096
_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = (0x377F0682, 0x377F0683)


class _Frame(NamedTuple):
    offset: int
    """Of the page, in the file."""
    page: int
    pages_after: int
    """Of the database, where the frame ends a transaction; else 0."""
    salts: tuple[int, int]
    checksum: tuple[int, int]
    covered: bytes
    """What the checksum is of."""


@dataclass
class Log:
    """What SQLite would read from the log, and what it would not mention."""

    offsets: dict[int, int] = field(default_factory=dict)
    """By page number, from 1: where its last committed version begins in the file."""
    page_count: int | None = None
    """Pages of the database after the last commit; None where there is none."""
    problems: list[str] = field(default_factory=list)


def read_log(path: Path) -> Log:
    """A missing file is an empty log. So is one whose frames all belong to an earlier generation: they stand in the
    database already. A last frame without its page is what a kill leaves behind, and no damage."""
    log = Log()
    size = path.stat().st_size if path.exists() else 0
    if size == 0:
        return log
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            log.problems.append(f"{path.name}: it is cut off in its header")
            return log
        magic, _, page_size, _, salt1, salt2, *expected = _HEADER.unpack(head)
        order = ">" if magic == _MAGIC[1] else "<"
        checksum = _checksum(head[:24], (0, 0), order)
        if magic not in _MAGIC or page_size != PAGE_SIZE or checksum != tuple(expected):
            log.problems.append(f"{path.name}: its header is damaged, so SQLite reads none of it")
            return log
        _read_frames(log, path.name, _frames(file), (salt1, salt2), checksum, order)
        rest = (size - _HEADER.size) % (_FRAME.size + PAGE_SIZE)
        if rest not in (0, _FRAME.size):
            log.problems.append(f"{path.name}: it is cut off in the middle of a page")
    return log


def _read_frames(
    log: Log, name: str, frames: Iterator[_Frame], salts: tuple[int, int], checksum: tuple[int, int], order: str
) -> None:
    pending: dict[int, int] = {}
    for number, frame in enumerate(frames, start=1):
        known = [ours == theirs for ours, theirs in zip(salts, frame.salts, strict=True)]
        checksum = _checksum(frame.covered, checksum, order)
        if not all(known) or checksum != frame.checksum:
            lost = sum(1 for later in frames if later.salts == salts and later.pages_after)
            if any(known) or lost:
                log.problems.append(
                    f"{name}: page {number} of the log is damaged, and SQLite reads nothing from there on: the last "
                    f"{lost + (frame.pages_after > 0)} or more changes (one, where a kill tore what was just written)"
                )
            return
        pending[frame.page] = frame.offset
        if frame.pages_after:
            log.offsets |= pending
            log.page_count = frame.pages_after
            pending.clear()


def _frames(file: BinaryIO) -> Iterator[_Frame]:
    while True:
        head, offset = file.read(_FRAME.size), file.tell()
        data = file.read(PAGE_SIZE)
        if len(data) < PAGE_SIZE:
            return
        page, pages_after, salt1, salt2, *checksum = _FRAME.unpack(head)
        yield _Frame(offset, page, pages_after, (salt1, salt2), (checksum[0], checksum[1]), head[:8] + data)


def _checksum(data: bytes, start: tuple[int, int], order: str) -> tuple[int, int]:
    s0, s1 = start
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for even, odd in zip(words, words, strict=True):
        s0 = (s0 + even + s1) & 0xFFFFFFFF
        s1 = (s1 + odd + s0) & 0xFFFFFFFF
    return s0, s1
