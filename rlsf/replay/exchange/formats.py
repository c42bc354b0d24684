"""The files: JSONL, Parquet, and folders of the `datasets` library. Written and read piece by piece."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from rlsf.errors import DataError, RunDirError
from rlsf.files import check_output, is_special, mendable_output, replacing, write_parts
from rlsf.paths import nearest, unreachable
from rlsf.replay.exchange.rows import Row
from rlsf.replay.exchange.tables import from_batch, to_batch
from rlsf.run_dir import check_not_of_a_run
from rlsf.tasks.files import Record, as_record, parse_json

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

Format = Literal["jsonl", "parquet", "folder"]
FILE = "FILE"
"""What the command line calls the file, for messages."""
ROWS = 2048
"""Rows of a Parquet row group, at most."""
TOKENS = 2**18
"""Tokens of a Parquet row group, roughly at most: with three numbers each some 25 MB in memory."""
READ = 128
"""Rows read at a time."""


def format_of(path: Path) -> Format:
    """What the suffix says.

    Raises:
        DataError: it says nothing.
    """
    match path.suffix.lower():
        case ".jsonl":
            return "jsonl"
        case ".parquet":
            return "parquet"
        case "":
            return "folder"
    if path.is_dir():
        return "folder"
    raise DataError(
        f"{path}: unknown suffix {path.suffix!r}; expected .parquet, .jsonl, or a name without one for a folder that "
        "`datasets` loads"
    )


def check_target(path: Path) -> None:
    """Raises RunDirError or DataError where `path` cannot, or should not, be written."""
    format = format_of(path)
    check_not_of_a_run(path, name=FILE)
    if format == "folder":
        if path.exists():
            raise RunDirError(f"{FILE}: {path} exists already; remove it, or name another folder")
        return
    check_output(path, FILE)
    if format == "parquet" and is_special(path):
        raise RunDirError(f"{FILE}: {path} is a pipe or a device, and Parquet needs a file; write .jsonl there")


def write_rows(
    path: Path, rows: Iterable[Row], to_batch: "Callable[[Sequence[Row]], pa.RecordBatch]" = to_batch
) -> None:
    """Write rows, piece by piece, under a temporary name, and rename it when all are written.

    Args:
        to_batch: rows as Arrow has them; it gives the first batch a schema that all others have.

    Raises:
        DataError, RunDirError: `path` cannot, or should not, be written.
    """
    check_target(path)
    with mendable_output(path, FILE):
        match format_of(path):
            case "jsonl":
                write_parts(path, map(json_line, rows))
            case "parquet":
                with replacing(path) as temporary:
                    _write_parquet(temporary, map(to_batch, _pieces(rows)))
            case "folder":
                with replacing(path) as temporary, TemporaryDirectory(dir=temporary.parent) as scratch:
                    _write_arrow(Path(scratch) / "rows.arrow", map(to_batch, _pieces(rows)))
                    _load_arrow(Path(scratch) / "rows.arrow").save_to_disk(temporary)


def json_line(row: Row) -> str:
    """As people read it, but for text that UTF-8 cannot hold."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(row, allow_nan=False)
    return line + "\n"


def _write_parquet(path: Path, batches: "Iterator[pa.RecordBatch]") -> None:
    """One row group for each batch."""
    import pyarrow.parquet as pq

    first = next(batches)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


def _write_arrow(path: Path, batches: "Iterator[pa.RecordBatch]") -> None:
    """As the `datasets` library maps it into memory."""
    import pyarrow as pa

    first = next(batches)
    with path.open("wb") as file, pa.ipc.new_stream(file, first.schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


def _load_arrow(path: Path) -> "datasets.Dataset":
    import datasets

    return datasets.Dataset.from_file(str(path))


def as_dataset(path: Path, rows: Iterable[Row]) -> "datasets.Dataset":
    """A dataset of rollouts that lies in the file `path`, which must stay."""
    _write_arrow(path, map(to_batch, _pieces(rows)))
    return _load_arrow(path)


def _pieces(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """As many rows as memory holds with ease; the first piece may be empty, and is the only one then."""
    piece: list[Row] = []
    tokens, is_first = 0, True
    for row in rows:
        own = len(row.get("prompt_ids", ())) + len(row.get("completion_ids", ()))
        if piece and (len(piece) == ROWS or tokens + own > TOKENS):
            yield piece
            piece, tokens, is_first = [], 0, False
        piece.append(row)
        tokens += own
    if piece or is_first:
        yield piece


# -- reading -----------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> Iterator[Record]:
    """Each row with its place, as it is asked for.

    Raises:
        DataError: the file is missing, broken, or of another format; with the line where there is one.
    """
    readers: dict[Format, Callable[[Path], Iterator[Record]]] = {
        "jsonl": _read_jsonl,
        "parquet": _read_parquet,
        "folder": _read_folder,
    }
    try:
        found = False
        for record in readers[format_of(path)](path):
            found = True
            yield record
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file{nearest(path)}") from None
    except IsADirectoryError:
        raise DataError(f"{path}: this is a directory; name the file") from None
    except OSError as error:
        raise DataError(unreachable(path, error)) from error
    if not found:
        raise DataError(f"{path}: the file has no rows")


def _read_jsonl(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(f"{path}:{number}: not UTF-8 text; save the file as UTF-8") from None
            if text.strip():
                yield as_record(f"{path}:{number}", parse_json(text, path, number), "one {...} a line")


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.is_dir():
        raise IsADirectoryError
    with path.open("rb") as opened:  # pyarrow's own errors do not tell a missing file from a broken one
        try:
            batches = pq.ParquetFile(opened).iter_batches(READ)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, "Parquet file", error) from error
        yield from _read_batches(path, "Parquet file", batches)


def _read_folder(path: Path) -> Iterator[Record]:
    import datasets

    if not path.is_dir():
        raise (
            FileNotFoundError
            if not path.exists()
            else DataError(f"{path}: this is a file without a suffix; call it .parquet or .jsonl")
        )
    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # of many kinds: json, pyarrow, datasets
        raise _unreadable(path, "folder of `datasets`", error) from error
    if isinstance(dataset, datasets.DatasetDict):
        raise DataError(f"{path}: it holds several splits ({', '.join(dataset)}); name the folder of one")
    yield from _read_batches(path, "folder of `datasets`", dataset.with_format("arrow").iter(READ))


def _read_batches(path: Path, what: str, batches: "Iterable[Any]") -> Iterator[Record]:
    import pyarrow as pa

    number, reader = 0, iter(batches)
    while True:
        try:
            batch = next(reader, None)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, what, error, after=number) from error
        if batch is None:
            return
        for row in from_batch(batch):
            number += 1
            yield f"{path} row {number}", row


def _unreadable(path: Path, what: str, error: Exception, after: int = 0) -> DataError:
    place = f" after row {after}" if after else ""
    reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    return DataError(f"{path}: not a readable {what}{place}: {reason}. Was it cut off? Copy or export it again")
