"""The stores that commands read, make, and add to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from rlsf.config.replay import ReplayConfig
from rlsf.errors import ConfigError, RunDirError
from rlsf.files import mendable_output, replacing
from rlsf.paths import nearest
from rlsf.replay.database import FILE_NAME
from rlsf.replay.reader import ReplayReader
from rlsf.replay.store import ReplayStore
from rlsf.run_dir import RunDir, check_not_of_a_run, iteration_of


def is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file()


def is_store(path: Path) -> bool:
    return (path / FILE_NAME).is_file()


def store_folder(path: Path) -> Path:
    """The folder of the store that `path` names: a run, or the store's own folder.

    Raises:
        RunDirError: it is neither.
    """
    if is_run(path):
        return RunDir.open(path).replay
    if is_store(path):
        return path
    if not path.exists():
        raise RunDirError(f"there is no {path}{nearest(path)}")
    raise RunDirError(f"{path} is neither a run nor a replay store: config.yaml and {FILE_NAME} are missing")


def open_store(path: Path) -> ReplayReader:
    """The store of a run, or in a folder, to read.

    Raises:
        RunDirError: there is none, or it cannot be read.
    """
    return ReplayStore.open_read_only(store_folder(path))


def store_name(path: Path) -> str:
    """What people call it: the name of the run, or of the folder."""
    folder = store_folder(path).resolve()
    return folder.parent.name if is_run(folder.parent) else folder.name


def check_new(path: Path, name: str) -> None:
    """Raises RunDirError where a new store cannot, or should not, be made at `path`; `name` is what the command line
    calls it."""
    check_not_of_a_run(path, name=name)
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise RunDirError(f"{name}: {path} exists already; name a new folder, or remove it")


@contextmanager
def new_store(path: Path, config: ReplayConfig, *, name: str, seed: int = 0) -> Iterator[ReplayStore]:
    """A store that is at `path` when the block ends, and of which nothing is left where the block raises.

    Raises:
        RunDirError: it cannot be made; see `check_new`.
    """
    check_new(path, name)
    with mendable_output(path, name), replacing(path) as folder, ReplayStore.open(folder, config, seed=seed) as store:
        yield store


@contextmanager
def existing_store(path: Path) -> Iterator[ReplayStore]:
    """The store of a run that is not at work, or in a folder, to add to.

    Raises:
        RunDirError: there is none, a process works on its run, or the run was stopped within an iteration.
    """
    folder = store_folder(path)
    if not is_run(folder.resolve().parent):
        with _opened(folder) as store:
            yield store
        return
    run = RunDir.open(folder.resolve().parent)
    with run.locked(), _opened(folder) as store:
        latest = run.latest_checkpoint()
        kept = 0 if latest is None else iteration_of(latest)
        if store.last_iteration > kept:
            raise RunDirError(
                f"{run.path} was stopped in iteration {store.last_iteration}, and resuming it from its checkpoint of "
                f"iteration {kept} would take back what is added now; resume it first, or import into a new store"
            )
        yield store


def _opened(folder: Path) -> ReplayStore:
    """With the settings that it has: how groups are drawn plays no part here."""
    with ReplayReader.open_read_only(folder) as reader:
        config, seed = replay_config(capacity=reader.capacity, keep=reader.keep), reader.seed
    return ReplayStore.open(folder, config, seed=seed)


def replay_config(*, capacity: int, keep: str) -> ReplayConfig:
    """Raises ConfigError where one of them is none that a store can have."""
    try:
        return ReplayConfig.model_validate({"capacity": capacity, "keep": keep})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise ConfigError(f"--{problem['loc'][0]}: {problem['msg']}, found {problem['input']!r}") from None
