"""Rows of JSONL, JSON, CSV and Parquet files, each with the place that an error message names."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlsf.config.check import FILE_SUFFIXES
from rlsf.errors import DataError
from rlsf.paths import nearest, unreachable

Record = tuple[str, dict[str, Any]]
"""Where a row stands (`data.jsonl:12`, `data.parquet row 12`), counted from 1, and its columns."""


def read_file(path: Path) -> list[Record]:
    """All rows of a file; the suffix says the format.

    Raises:
        DataError: the file is missing, empty, broken or of another format; with the line where there is one.
    """
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".jsonl": _jsonl,
        ".json": _json,
        ".csv": _csv,
        ".parquet": _parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown suffix {path.suffix!r}; expected one of {', '.join(FILE_SUFFIXES)}")
    try:
        records = list(reader(path))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file{nearest(path)}") from None
    except IsADirectoryError:
        raise DataError(f"{path}: this is a directory; name the file") from None
    except OSError as error:
        raise DataError(unreachable(path, error)) from error
    if not records:
        raise DataError(f"{path}: the file has no rows")
    return records


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None


def _jsonl(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_text(path).split("\n"), 1):  # splitlines() would split inside JSON strings too
        if line.strip():
            yield as_record(f"{path}:{number}", parse_json(line, path, number), "one {...} a line")


def _json(path: Path) -> Iterator[Record]:
    text = _text(path)
    rows = parse_json(text, path, 1) if text.strip() else []
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected one array [...] of objects; for one object a line, call it .jsonl")
    for number, row in enumerate(rows, 1):
        yield as_record(f"{path} row {number}", row, "an array of {...}")


def parse_json(text: str, path: Path, line: int) -> Any:
    """Raises DataError, naming the line, where the text that begins there is no JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{line + error.lineno - 1}"
        raise DataError(f"{place}: not valid JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{path}:{line}: the JSON is nested too deeply") from None
    except ValueError:  # Python's limit on the digits of a whole number
        limit = sys.get_int_max_str_digits()
        raise DataError(
            f"{path}:{line}: the JSON holds a whole number of more than {limit} digits; put it into quotes"
        ) from None


def as_record(where: str, row: Any, expected: str) -> Record:
    """Raises DataError where the row is no object."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: the row is a {type(row).__name__}, not an object; expected {expected}")
    return where, row


def _csv(path: Path) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long document
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = next((row for row in reader if row), None)
        if header is None:
            return
        _check_header(header, path)
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if len(cells) not in (0, len(header)):
                raise DataError(
                    f"{where}: {len(cells)} cells, but the header has {len(header)}; put text with commas into "
                    'double quotes, and write " inside it as ""'
                )
            if cells:
                # A column without a name is the index that pandas writes.
                yield where, {name: cell for name, cell in zip(header, cells, strict=True) if name}
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV: {error}") from None


def _check_header(header: list[str], path: Path) -> None:
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"{path}:1: the column {twice[0]!r} stands twice in the header; rename one")
    for delimiter, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and delimiter in header[0]:
            raise DataError(f"{path}:1: the columns are separated by {name}; expected commas")


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.is_file() and path.stat().st_size == 0:
        return
    if path.is_dir():
        raise IsADirectoryError
    try:
        rows = pq.read_table(path).to_pylist()
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from error
    for number, row in enumerate(rows, 1):
        yield f"{path} row {number}", row
