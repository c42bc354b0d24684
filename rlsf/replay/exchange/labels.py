"""Right answers for a reward that compares with them: a store keeps none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlsf.config.load import load_config
from rlsf.errors import DataError
from rlsf.run_dir import RunDir
from rlsf.same import check_same_data
from rlsf.tasks.files import read_file
from rlsf.tasks.rows import reference_of

Labels = Mapping[str, Mapping[str, Any]]
"""By prompt id: `reference` and `grading` of a `Prompt`."""


def labels_of_file(path: Path) -> Labels:
    """From a .jsonl, .json, .csv or .parquet file with `prompt_id`, and `reference` (text or a number) or `grading` (an
    object, for verifiers that need more).

    Raises:
        DataError: the file is missing or broken, a column is missing, or two rows of a prompt differ.
    """
    labels: dict[str, dict[str, Any]] = {}
    for where, row in read_file(path):
        id = row.get("prompt_id")
        if not isinstance(id, str):
            raise DataError(f"{where}: prompt_id must be text, as `rlsf replay export` writes it; found {id!r:.60}")
        reference = reference_of(row.get("reference"), "reference", where)
        grading = row.get("grading") or {}
        if not isinstance(grading, dict):
            raise DataError(f"{where}: grading must be an object, found {grading!r:.60}")
        if reference is None and not grading:
            raise DataError(f"{where}: the row has neither a reference nor a grading; columns: {', '.join(row)}")
        label = {"reference": reference, "grading": grading}
        if labels.setdefault(id, label) != label:
            raise DataError(f"{where}: prompt {id!r} has another reference in a row above; mend one of them")
    return labels


def labels_of_run(path: Path) -> Labels:
    """From the data of a run's tasks.

    Raises:
        RlsfError: the data cannot be read, or are not those that the run began with.
    """
    from rlsf.tasks import build_stream

    directory = RunDir.open(path)
    stream = build_stream(load_config(directory.config))
    check_same_data(directory, stream)
    return {
        prompt.id: {"reference": prompt.reference, "grading": prompt.grading}
        for task in stream.tasks
        for prompt in (*task.train, *task.validation, *task.test)
        if prompt.reference is not None or prompt.grading
    }
