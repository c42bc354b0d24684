"""Train, validation and test without leakage.

**Duplicates.** Rows whose prompts are equal up to case, white space and the composition of characters count once,
whether they come as text or as a chat; the first with a reference stays.
Where such rows of a file carry different references, one of the labels is wrong and nobody knows which: all of them are
dropped. (Procedural problems may have several right answers, which their scorer knows: there the first stays.)

**Assignment.** Blocks (a row, or all rows of one group, or of one question under several system messages) are put in
the order of a hash of the seed and the block's own words, and fill test, then validation, then train. So the order of
the file does not matter, nor does the wording of the task (`system`, `template`). Sizes are exact, but for groups,
which may not fit and leave a split smaller than asked. Exact sizes have a price when rows are added: one that hashes
low enters test and moves test's last row to validation and validation's last row to train; all others stay. With N
rows, each added one moves a row from the held-out data into train with probability (validation + test) / N. So fix the
file before you compare runs.

**Labels.** If only some rows have a reference, those without one are for training alone.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rlsf.config.schema import TaskConfig
from rlsf.errors import DataError
from rlsf.tasks.rows import Row, folded


@dataclass(frozen=True, slots=True)
class DataReport:
    """What became of the rows of a source."""

    rows: int
    duplicates: int = 0
    """Rows dropped because an equal prompt stays."""
    contradictions: int = 0
    """Rows dropped because equal prompts carry different references."""
    leaked: int = 0
    """Training rows dropped because another task of the stream holds out the same prompt."""
    unlabelled: int = 0
    """Rows without a reference, among those that stay; all of them in train if any row has one."""


@dataclass(frozen=True, slots=True)
class Split:
    """Rows of one task, each split in the random but fixed order of the hash: any first k are a random sample."""

    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]
    report: DataReport


def split_rows(config: TaskConfig, rows: Sequence[Row], seed: int) -> Split:
    """Split a task's rows; `split.train` is not applied yet, since leaks are dropped first.

    Raises:
        DataError: there are too few rows for the splits that the config asks for.
    """
    kept, report = drop_duplicates(rows)
    any_label = any(row.is_labelled for row in kept)
    _check_enough(config, kept, report, any_label)
    wanted = {"test": config.split.test, "validation": config.split.validation}
    parts: dict[str, list[Row]] = {"test": [], "validation": [], "train": []}
    for block in _blocks(kept, seed):
        may_be_held_out = not any_label or all(row.is_labelled for row in block)
        for name, part in parts.items():
            if name == "train" or (may_be_held_out and len(part) + len(block) <= wanted[name]):
                part.extend(block)
                break
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise DataError(
            f"task {config.name!r}: the groups of source.group_column are too large to leave anything for "
            f"{' and '.join(empty)}; raise split.test and split.validation, or choose a finer column"
        )
    return Split(tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["test"]), report)


def drop_duplicates(rows: Sequence[Row]) -> tuple[list[Row], DataReport]:
    """One row per prompt, in the order of the source, and the counts of what was dropped."""
    equal: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        equal[row.words].append(row)
    kept: list[Row] = []
    duplicates = contradictions = 0
    for copies in equal.values():
        if _contradict(copies):
            contradictions += len(copies)
        else:
            kept.append(next((row for row in copies if row.is_labelled), copies[0]))
            duplicates += len(copies) - 1
    unlabelled = sum(not row.is_labelled for row in kept)
    return kept, DataReport(len(rows), duplicates, contradictions, unlabelled=unlabelled)


def drop_held_out_elsewhere(splits: Sequence[Split]) -> list[Split]:
    """Take from each task's train what another task of the stream validates or tests on."""
    held_out: dict[str, set[int]] = defaultdict(set)
    for index, split in enumerate(splits):
        for row in (*split.validation, *split.test):
            held_out[row.key].add(index)
    clean = []
    for index, split in enumerate(splits):
        train = tuple(row for row in split.train if not held_out.get(row.key, set()) - {index})
        report = replace(split.report, leaked=len(split.train) - len(train))
        clean.append(replace(split, train=train, report=report))
    return clean


def _contradict(copies: Iterable[Row]) -> bool:
    references = {
        folded(row.prompt.reference) for row in copies if row.prompt.reference is not None and not row.prompt.grading
    }
    return len(references) > 1


def _blocks(rows: Iterable[Row], seed: int) -> list[list[Row]]:
    """Rows that share a group or a key, directly or through others, in the order of the hash. It leaves out the task's
    name, so that tasks over the same data hold out the same rows."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(name: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    rows = list(rows)
    for row in rows:
        first, second = sorted((root(("group", row.group)), root(("key", row.key))))
        parent[second] = first
    blocks: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        blocks[root(("group", row.group))].append(row)
    for block in blocks.values():
        block.sort(key=lambda row: (_rank(seed, row.key), row.words))
    return sorted(blocks.values(), key=lambda block: _rank(seed, min(row.group for row in block)))


def _rank(seed: int, words: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{words}".encode()).digest()


def _check_enough(config: TaskConfig, kept: Sequence[Row], report: DataReport, any_label: bool) -> None:
    held_out = config.split.test + config.split.validation
    labelled = sum(row.is_labelled for row in kept)
    usable = labelled if any_label else len(kept)
    if usable >= held_out and len(kept) > held_out:
        return
    dropped = [
        f"{count} {what}"
        for count, what in ((report.duplicates, "duplicates"), (report.contradictions, "with contradictory references"))
        if count
    ]
    lost = f" ({report.rows} rows, {' and '.join(dropped)} dropped)" if dropped else ""
    shortage = f"{len(kept)} different prompts{lost}"
    if any_label and labelled < len(kept):
        shortage += f", {labelled} of them with a reference,"
    raise DataError(
        f"task {config.name!r}: {shortage} are too few for split.test ({config.split.test}), split.validation "
        f"({config.split.validation}) and at least one to train on; lower those two"
    )
