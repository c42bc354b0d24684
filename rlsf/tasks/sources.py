"""Where rows come from: reasoning-gym, a file, or the `datasets` library."""

import dataclasses
import difflib
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rlsf.config.schema import DatasetsSource, FileSource, ReasoningGymSource, TaskConfig
from rlsf.errors import DataError
from rlsf.paths import expand
from rlsf.seeds import derive_seed
from rlsf.tasks.files import Record, read_file
from rlsf.tasks.rows import Row, make_row, row_from_columns

HASH_SEEDED = frozenset(
    {"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
)
"""Data sets of reasoning-gym 0.1.25 that iterate over sets of strings, whose order changes with PYTHONHASHSEED."""


def read_rows(config: TaskConfig, seed: int) -> list[Row]:
    """All rows of a task's source, in its order, duplicates included.

    Args:
        config: the task.
        seed: of the run. Procedural sources derive theirs from it and the task's name.

    Raises:
        DataError: the source is missing, broken, or lacks what the config names.
    """
    source = config.source
    if isinstance(source, ReasoningGymSource):
        return _reasoning_gym(config, source, derive_seed(seed, "task", config.name))
    if isinstance(source, FileSource):
        return _rows(config, source, read_file(expand(source.path)))
    return _rows(config, source, _datasets_records(source))


def _rows(config: TaskConfig, source: FileSource | DatasetsSource, records: Iterable[Record]) -> list[Row]:
    return [row_from_columns(config, source, columns, where) for where, columns in records]


def _reasoning_gym(config: TaskConfig, source: ReasoningGymSource, seed: int) -> list[Row]:
    name, task = source.dataset, f"task {config.name!r}"
    _check_reasoning_gym(name, source.params, task)
    import reasoning_gym

    try:
        # Its generators add the problem's index to the seed and hand it to Random and numpy, which takes 32 bits.
        with _seeded_globals(seed % 2**31):
            data = reasoning_gym.create_dataset(name, size=source.size, seed=seed % 2**31, **source.params)
            entries = [data[index] for index in range(source.size)]
    except Exception as error:  # whatever third-party generators raise for parameters they do not like
        raise DataError(f"{task}: reasoning-gym's {name} refuses source.params: {error!r}") from error
    return [
        make_row(
            config,
            entry["question"],
            f"{name} problem {index}",
            reference=None if entry["answer"] is None else str(entry["answer"]),
            grading={"dataset": name, "params": source.params, "entry": _jsonable(entry)},
        )
        for index, entry in enumerate(entries, 1)
    ]


@contextmanager
def _seeded_globals(seed: int) -> Iterator[None]:
    """Some generators (list_functions, codeio) draw from the global generators: seed these, and give them back."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _jsonable(value: Any) -> Any:
    """What json.dumps takes. Tuples stay tuples: the scorers of arc_agi and rearc compare with them."""
    if isinstance(value, dict):
        return {key if isinstance(key, str | int) else str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_jsonable(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _check_reasoning_gym(name: str, params: Mapping[str, Any], task: str) -> None:
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, 3)
        guess = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(sorted(DATASETS))}"
        raise DataError(f"{task}: reasoning-gym has no data set {name!r}; {guess}")
    known = [field.name for field in dataclasses.fields(DATASETS[name][1]) if field.name not in ("seed", "size")]
    for key in params:
        if key in ("seed", "size"):
            raise DataError(
                f"{task}: source.params.{key}: set {'source.size' if key == 'size' else 'the seed of the run'}"
            )
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            guess = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise DataError(f"{task}: source.params.{key}: reasoning-gym's {name} has no such parameter; {guess}")
    if name in HASH_SEEDED and sys.flags.hash_randomization:
        raise DataError(
            f"{task}: reasoning-gym's {name} draws other problems in every process, because it depends on Python's "
            "hash seed; set PYTHONHASHSEED=0 in the environment before the run and before resuming it"
        )


def _datasets_records(source: DatasetsSource) -> list[Record]:
    import datasets

    label = f"{source.path}{f' ({source.name})' if source.name else ''}"
    try:
        if _is_saved_to_disk(Path(source.path)):
            data = datasets.load_from_disk(source.path)
        else:
            data = datasets.load_dataset(source.path, source.name, split=source.split)
    except Exception as error:  # each builder and file format has errors of its own
        raise DataError(
            f"data set {label}: cannot be loaded: {_first_line(error)}{_offline_hint(source, error)}"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        if source.split not in data:
            raise DataError(f"data set {label}: there is no split {source.split!r}; it has {', '.join(data)}")
        data = data[source.split]
    return [(f"{label} row {number}", dict(row)) for number, row in enumerate(data, 1)]


def _is_saved_to_disk(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _offline_hint(source: DatasetsSource, error: Exception) -> str:
    """`datasets` answers a missing folder and an unreachable hub alike."""
    if not isinstance(error, OSError):
        return ""
    return (
        f". {source.path!r} is neither a folder here nor in the local cache, and the hub does not have it or cannot be "
        "reached; check the name and HF_HUB_OFFLINE"
    )
