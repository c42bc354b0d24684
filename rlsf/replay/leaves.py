"""Rows of a damaged store, read from the pages of the file where SQLite no longer finds the way to them.

Format: https://sqlite.org/fileformat2.html#b_tree_pages and #record_format
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from rlsf.replay.log import PAGE_SIZE
from rlsf.replay.tables import COLUMNS, Value

LEAF = 13
"""Type of a page that has rows of a table."""
LOCAL = PAGE_SIZE - 35
"""A row of at most this many bytes stands on its page whole."""
LEAST = (PAGE_SIZE - 12) * 32 // 255 - 23
"""Of any other row, at least this many do."""
INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
"""Bytes of an integer, by its type in a record."""
PAYLOAD_START = b"\x78"
"""Of everything that zlib has compressed."""


class Leaves:
    """All rows of groups, and where payloads are. A page that is no longer in use may still have rows as they once
    were: what is read here must be checked, and may be out of date where it can change."""

    def __init__(self, path: Path) -> None:
        self._pages = path.read_bytes()
        self.groups: dict[int, tuple[Value, ...]] = {}
        """By sequence number: the values of COLUMNS, and the checksum."""
        self._blobs: dict[int, list[int]] = {}
        for offset in self._cells():
            try:
                seq, types, at = self._head(offset)
                if len(types) == len(COLUMNS["groups"]) + 1:
                    self.groups[seq] = _as_declared([seq, *self._values(offset, types, at)[1:]])
                elif len(types) == 3 and types[1] >= 12 and not types[1] % 2:
                    self._blobs.setdefault(seq, []).append(offset)
            except (IndexError, struct.error, ValueError):
                continue  # a damaged cell

    def payloads(self, seq: int) -> Iterator[tuple[Value, Value]]:
        """What may be the payload of a group, and its checksum."""
        for offset in self._blobs.get(seq, []):
            try:
                _, types, at = self._head(offset)
                _, data, checksum = self._values(offset, types, at)
            except (IndexError, struct.error, ValueError):
                continue
            if isinstance(data, bytes) and data.startswith(PAYLOAD_START):
                yield data, checksum

    def _cells(self) -> Iterator[int]:
        """Where the cells begin of all pages of rows."""
        for start in range(PAGE_SIZE, len(self._pages) - PAGE_SIZE + 1, PAGE_SIZE):
            if self._pages[start] == LEAF:
                count = min(struct.unpack_from(">H", self._pages, start + 3)[0], (PAGE_SIZE - 8) // 2)
                for pointer in struct.unpack_from(f">{count}H", self._pages, start + 8):
                    if 8 <= pointer < PAGE_SIZE:
                        yield start + pointer

    def _head(self, offset: int) -> tuple[int, list[int], int]:
        """Key, types of the columns, and where in the record their values begin."""
        _, at = _varint(self._pages, offset)
        key, at = _varint(self._pages, at)
        record = at
        length, at = _varint(self._pages, at)
        if not 0 < length < 100:
            raise ValueError("no record of a store")
        types = []
        while at < record + length:
            kind, at = _varint(self._pages, at)
            types.append(kind)
        return key, types, length

    def _values(self, offset: int, types: list[int], at: int) -> list[Value]:
        record = self._record(offset)
        values: list[Value] = []
        for kind in types:
            length = _length(kind)
            data = record[at : at + length]
            if len(data) < length:
                raise ValueError("the record is cut off")
            values.append(_value(kind, data))
            at += length
        return values

    def _record(self, offset: int) -> bytes:
        """All of it, its end from overflow pages."""
        size, at = _varint(self._pages, offset)
        _, at = _varint(self._pages, at)
        if size > len(self._pages):
            raise ValueError("longer than the file")
        if size <= LOCAL:
            return self._pages[at : at + size]
        local = LEAST + (size - LEAST) % (PAGE_SIZE - 4)
        local = local if local <= LOCAL else LEAST
        parts = [self._pages[at : at + local]]
        page, missing = struct.unpack_from(">I", self._pages, at + local)[0], size - local
        while missing > 0:
            if page == 0:
                raise ValueError("the record is cut off")
            start = (page - 1) * PAGE_SIZE
            page = struct.unpack_from(">I", self._pages, start)[0]
            parts.append(self._pages[start + 4 : start + 4 + min(missing, PAGE_SIZE - 4)])
            missing -= PAGE_SIZE - 4
        return b"".join(parts)


def _as_declared(values: list[Value]) -> tuple[Value, ...]:
    """SQLite stores whole numbers of REAL columns as integers."""
    for name in ("priority", "rank", "success"):
        position = COLUMNS["groups"].index(name)
        value = values[position]
        values[position] = float(value) if isinstance(value, int) else value
    return tuple(values)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where the next begins."""
    value = 0
    for position in range(9):
        byte = data[at + position]
        if position == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + position + 1
    raise AssertionError("unreachable")


def _length(kind: int) -> int:
    if kind >= 12:
        return (kind - 12) // 2
    return 8 if kind == 7 else INTEGERS.get(kind, 0)


def _value(kind: int, data: bytes) -> Value:
    if kind >= 12:
        return data if kind % 2 == 0 else data.decode("utf-8", "surrogateescape")
    if kind == 7:
        return float(struct.unpack(">d", data)[0])
    if kind in (8, 9):
        return kind - 8
    return int.from_bytes(data, "big", signed=True) if kind else None
