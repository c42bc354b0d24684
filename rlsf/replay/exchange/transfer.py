"""Groups out of a store and into one, as files and as datasets."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import TYPE_CHECKING

from rlsf.errors import DataError, RunDirError
from rlsf.experience import Group
from rlsf.replay.exchange.formats import READ, as_dataset, check_target, read_rows, write_rows
from rlsf.replay.exchange.gathering import Gathered, gather
from rlsf.replay.exchange.rows import read_row, rows_of
from rlsf.replay.exchange.tables import from_batch
from rlsf.replay.reader import ReplayReader
from rlsf.replay.store import ReplayStore

if TYPE_CHECKING:
    import datasets

BATCH = 128
"""Groups added to a store at a time."""


def export_groups(groups: Iterable[Group], path: Path | str) -> int:
    """Write groups to a .parquet or .jsonl file, or to a new folder that `datasets.load_from_disk` reads, and return
    how many. They are read as they are written; a file that was there is replaced when all are.

    Everything is written that a store keeps of a group: `import_groups` gives groups that equal them, floats bit for
    bit. (A store does not keep `Score.unasked`.)

    Raises:
        DataError: there is no group, or the suffix is another one.
        RunDirError: the file cannot be written, or is one of a run.
        ValueError: something in a group is no JSON; the message names it.
    """
    path = Path(path)
    check_target(path)
    iterator = iter(groups)
    first = next(iterator, None)
    if first is None:
        raise DataError(f"{path}: there is no group to write")
    written = 0

    def counted() -> Iterator[Group]:
        nonlocal written
        for group in chain((first,), iterator):
            yield group
            written += 1

    write_rows(path, (row for group in counted() for row in rows_of(group)))
    return written


def import_groups(path: Path | str) -> Iterator[Group]:
    """The groups of a file or folder that `export_groups` wrote, as they are asked for.

    Raises:
        DataError: at the row that is broken, with the file, the row, and what is wrong: groups before it have been
            given by then. `load_into` checks the whole file first.
    """
    return (gathered.group for gathered in read_groups(Path(path)))


def read_groups(path: Path) -> Iterator[Gathered]:
    """As `import_groups`, with the place of each."""
    return gather(read_row(row, where) for where, row in read_rows(path))


def to_dataset(store: ReplayReader) -> "datasets.Dataset":
    """The stored groups with one row per rollout and the columns of the Parquet file. The rows lie in a temporary file
    until the process ends, and not in memory: `save_to_disk` keeps them."""
    rows = (row for group in store.groups() for row in rows_of(group))
    return as_dataset(Path(mkdtemp(dir=_scratch().name)) / "rows.arrow", rows)


@cache
def _scratch() -> "TemporaryDirectory[str]":
    """Removed when the process ends."""
    return TemporaryDirectory(prefix="rlsf_datasets_")


def from_dataset(dataset: "datasets.Dataset | datasets.IterableDataset") -> Iterator[Group]:
    """The groups of a dataset with the columns of `to_dataset`, as they are asked for.

    Raises:
        DataError: at the row that is broken, counted from 1.
    """

    def members() -> Iterator[tuple[str, dict[str, object]]]:
        rows = (row for table in dataset.with_format("arrow").iter(READ) for row in from_batch(table))
        for number, row in enumerate(rows, 1):
            yield f"dataset row {number}", row

    return (gathered.group for gathered in gather(read_row(row, where) for where, row in members()))


def load_into(
    store: ReplayStore,
    path: Path | str,
    iteration: int = 0,
    *,
    skip_known: bool = False,
    advance: Callable[[int], None] = lambda groups: None,
) -> int:
    """Add the groups of a file to a store, as they are, and return how many. The whole file is read and checked before
    the first is added.

    Args:
        iteration: that the additions belong to, for a rollback; not before the store's last one.
        skip_known: leave out groups whose ids are in the store.
        advance: told how many more groups are read; each is read twice.

    Raises:
        DataError: a row is broken, or (without `skip_known`) a group is in the store; nothing is added then.
        RunDirError: the disk is full, or the like; the message says how many groups were added.
        ValueError: `iteration` lies before the last one.
    """
    path = Path(path)
    known = _known(store, read_groups(path), skip_known, advance)
    added = 0
    for batch in batched(group for group in import_groups(path) if group.id not in known):
        try:
            store.add(batch, iteration=iteration)
        except RunDirError as error:
            if not added:
                raise
            raise RunDirError(
                f"{error}. The first {added} groups of {path} were added; --skip-known goes on after them"
            ) from error
        added += len(batch)
        advance(len(batch))
    return added


def _known(
    store: ReplayReader, groups: Iterable[Gathered], skip_known: bool, advance: Callable[[int], None]
) -> set[str]:
    """The ids among `groups` that are in the store. Goes through all of them, and so checks them."""
    known = set()
    for gathered in groups:
        if holds(store, gathered.group.id):
            if not skip_known:
                raise DataError(
                    f"{gathered.where}: group {gathered.group.id!r} is in the store already; --skip-known leaves out "
                    "what is"
                )
            known.add(gathered.group.id)
        advance(1)
    return known


def holds(store: ReplayReader, group_id: str) -> bool:
    """Whether a group is in the store."""
    try:
        store.get(group_id)
    except KeyError:
        return False
    return True


def batched(groups: Iterable[Group]) -> Iterator[Sequence[Group]]:
    """Lists of at most BATCH."""
    batch: list[Group] = []
    for group in groups:
        batch.append(group)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
