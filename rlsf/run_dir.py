"""The folder of a run: what is in it, and how it is written so that a kill at any moment loses nothing.

config.yaml          resolved config             versions.json   packages, commit, machine
metrics.jsonl        one line per iteration: the same on every resume, bit for bit
timings.jsonl        one line per iteration: seconds and tokens per second, never the same twice
summary.json         what a script reads         samples/        rollouts with scores and evidence
evaluations/         outcome of every held-out prompt
replay/              the store                   checkpoints/iter_000012/    latest -> the newest one's name
outbox/              the adapter on its way to the engine          evidence.html  what `rlsf replay page` made
adapters/            of each task, and merged, where `continual.adapters` keeps one for each
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rlsf.errors import RunDirError
from rlsf.files import clear_os_errors, fsync, remove, write_text

OWN = {
    "config.yaml", "versions.json", "metrics.jsonl", "timings.jsonl", "summary.json", "samples",
    "evaluations", "replay", "checkpoints", "failures", "outbox", "latest", "tensorboard", "wandb", ".lock",
    "guard.jsonl", "targets.jsonl", "evidence.html", "adapters",
}  # fmt: skip
"""What rlsf itself puts into the folder of a run."""


def check_not_of_a_run(output: Path, run: Path | None = None, name: str = "--output") -> None:
    """Raises RunDirError where a command's `--output`, or another argument of that `name`, would replace what `run`, or
    any run, keeps for itself."""
    place = output.resolve()
    for folder in place.parents:
        is_run = (folder / "versions.json").is_file() and (folder / "config.yaml").is_file()
        is_run = is_run or (run is not None and folder == run.resolve())
        if is_run and place.relative_to(folder).parts[0] in OWN - {"evidence.html"}:
            raise RunDirError(f"{name}: {output} is a file of the run itself; name another one")


START_WAIT = 10.0
"""Seconds that a start waits for another one of the same name."""


class RunDir:
    """Paths and atomic writes below one run's folder."""

    def __init__(self, path: Path) -> None:
        path = path.absolute()  # a reward may change the working directory
        self.path = path
        self.config = path / "config.yaml"
        self.versions = path / "versions.json"
        self.metrics = path / "metrics.jsonl"
        self.timings = path / "timings.jsonl"
        self.summary = path / "summary.json"
        self.samples = path / "samples"
        self.evaluations = path / "evaluations"
        self.replay = path / "replay"
        self.checkpoints = path / "checkpoints"
        self.best = self.checkpoints / "best"
        self.guarded = self.checkpoints / "guarded"
        self.adapters = path / "adapters"
        self.guard = path / "guard.jsonl"
        self.targets = path / "targets.jsonl"
        self.failures = path / "failures"
        self.outbox = path / "outbox"
        self.previous = path.parent / f".{path.name}.previous"
        """Where a run of the same name waits until this one has its first checkpoint."""
        self._starting = path.parent / f".{path.name}.starting"
        self._latest = path / "latest"
        self._lock = path / ".lock"
        self._locked_file: tuple[int, int] | None = None

    @classmethod
    def create(cls, path: Path) -> "RunDir":
        """A new run's folder.

        Raises:
            RunDirError: a run is there already, or the folder cannot be written.
        """
        run = cls(path)
        if run.config.exists():
            raise RunDirError(
                f"{path} holds a run already: continue it with `rlsf resume {path}`, start it anew with --overwrite, "
                "or give another name with --name"
            )
        if path.exists() and not run._is_unstarted():
            raise RunDirError(f"{path} exists and is no run of rlsf: choose another name with --name, or move it away")
        with clear_os_errors(path):
            for folder in (run.samples, run.evaluations, run.replay, run.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """An existing run's folder.

        Raises:
            RunDirError: there is no run.
        """
        run = cls(path)
        if not run.config.is_file():
            mend = "Start one with `rlsf run CONFIG`"
            if run.previous.exists():
                mend = f"The one that was to be replaced is {run.previous}: rename it to continue it"
            raise RunDirError(f"{path} holds no run: config.yaml is missing. {mend}")
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within the block no other process works on this run.

        Raises:
            RunDirError: another one does.
        """
        busy = f"another process is working on {self.path}: wait until it ends, or stop it first"
        with _held(self._lock, busy):
            self._locked_file = _identity(self._lock)
            yield

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Within the block no other process starts, replaces or undoes a run of this name. Waits for one that does.

        Raises:
            RunDirError: it takes longer than START_WAIT seconds, or the folder above cannot be written.
        """
        with clear_os_errors(self._starting.parent):
            self._starting.parent.mkdir(parents=True, exist_ok=True)
        with _held(
            self._starting, f"another process is starting a run in {self.path}: wait for it", timeout=START_WAIT
        ):
            try:
                yield
            finally:
                self._starting.unlink(missing_ok=True)

    def check_in_place(self) -> None:
        """Raises RunDirError where the folder is no longer the one that was locked."""
        if _identity(self._lock) != self._locked_file:
            raise RunDirError(
                f"{self.path} was moved, replaced or deleted while the run worked on it. If it was moved, `rlsf "
                "resume` it at its new place; what has been written here since does not belong to it"
            )

    def set_aside(self) -> None:
        """Make way for a new run of the same name: the old one is at `previous` then.

        Raises:
            RunDirError: it is no run, holds files that rlsf did not write, or is being worked on.
        """
        if not self.config.exists():
            return
        foreign = self._foreign()
        if self.path.is_symlink() or not self.versions.exists() or foreign:
            holds = f"it holds {foreign[0]}" if foreign else "it is a link, or no run of rlsf"
            raise RunDirError(f"{self.path} is not overwritten: {holds}. Move it away, or give another --name")
        with self.locked(), clear_os_errors(self.previous):
            if self.previous.exists() and not self._latest.exists():  # its replacement was killed as it started
                remove(self.path)
                return
            self.drop_previous()
            self.path.rename(self.previous)

    def put_back(self) -> None:
        """Undo `set_aside` where nothing came of the new run."""
        if self.previous.exists() and (not self.path.exists() or self._is_unstarted()):
            with clear_os_errors(self.path):
                shutil.rmtree(self.path, ignore_errors=True)
                self.previous.rename(self.path)

    def drop_previous(self) -> None:
        """Delete what `set_aside` kept: the new run stands."""
        if self.previous.exists():
            remove(self.previous)

    def _is_unstarted(self) -> bool:
        """Whether nothing is there but what a start leaves behind that was killed before config.yaml was written."""
        left = {".lock", "versions.json", "versions.json.tmp", "config.yaml.tmp"}
        entries = list(self.path.rglob("*")) if self.path.is_dir() else [self.path]
        return all(path.is_dir() or (path.parent == self.path and path.name in left) for path in entries)

    def _foreign(self) -> list[str]:
        """What is in the folder and not of rlsf."""
        return sorted(path.name for path in self.path.iterdir() if path.name.removesuffix(".tmp") not in OWN)

    def discard(self) -> None:
        """Undo `create` and `set_aside`, for a run that could not start. Within `starting`, as those are."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.put_back()

    # -- files ---------------------------------------------------------------------------------------------------------

    def write_json(self, path: Path, value: Any) -> None:
        self.write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_text(self, path: Path, text: str) -> None:
        """Replace a file whole: a reader sees the old text or the new one, never half of it."""
        with clear_os_errors(path):
            write_text(path, text)

    def read_json(self, path: Path) -> dict[str, Any]:
        """Raises RunDirError where the file is missing, broken, or holds no object."""
        try:
            content = json.loads(path.read_text("utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it holds no object")
        except (OSError, ValueError) as error:
            raise RunDirError(f"cannot read {path}: {error}. The run directory is damaged or incomplete") from error
        return content

    def append_line(self, path: Path, row: dict[str, Any]) -> None:
        with clear_os_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())

    def write_samples(self, iteration: int, rows: Iterable[dict[str, Any]]) -> None:
        self.write_text(self.samples / f"iter_{iteration:06d}.jsonl", "".join(map(_line, rows)))

    def drop_after(self, iteration: int) -> None:
        """Forget what was written by iterations later than `iteration`: they will be run again."""
        for path in (self.metrics, self.timings, self.guard, self.targets):
            if path.exists():
                rows = [row for row in read_jsonl(path) if row.get("iteration", 0) <= iteration]
                self.write_text(path, "".join(map(_line, rows)))
        for folder in (self.samples, self.evaluations):
            for path in folder.glob("iter_[0-9]*"):
                if iteration_of(path) > iteration:
                    remove(path)
        for path in self.checkpoints.glob(".iter_*/"):  # one that was being written
            remove(path)
        kept = (*iterations_in(self.best), *iterations_in(self.guarded), *self._task_adapters())
        for path in (*iterations_in(self.checkpoints), *kept):
            if iteration_of(path) > iteration:
                remove(path)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def checkpoint(self, iteration: int) -> Path:
        return self.checkpoints / f"iter_{iteration:06d}"

    def write_checkpoint(self, iteration: int, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a temporary folder, make it durable, rename it into place, and point `latest` at it."""
        final = self.checkpoint(iteration)
        temporary = self.checkpoints / f".iter_{iteration:06d}"
        with clear_os_errors(final):
            for leftover in (temporary, final):
                if leftover.exists():
                    shutil.rmtree(leftover)
            temporary.mkdir(parents=True)
            write(temporary)
            for path in [*sorted(temporary.rglob("*")), temporary]:
                fsync(path)
            temporary.rename(final)
            fsync(self.checkpoints)
        self._point_latest_at(final)
        return final

    def _point_latest_at(self, checkpoint: Path) -> None:
        self.write_text(self._latest, checkpoint.name + "\n")

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint, or None before the first.

        Raises:
            RunDirError: `latest` is gone, or names one that is gone.
        """
        there = [path.name for path in iterations_in(self.checkpoints)]
        name = self._latest.read_bytes().decode("utf-8", "replace").strip() if self._latest.is_file() else None
        if name in there:
            return self.checkpoints / name
        if name is None and there in ([], [self.checkpoint(0).name]):  # a kill before `latest` was first written
            return None
        what = "is missing" if name is None else f"names {name}, which is not in {self.checkpoints}"
        raise RunDirError(
            f"{self._latest} {what}: write the name of one that is there into it ({', '.join(there) or 'none is'})"
        )

    def prune_checkpoints(self, keep: int) -> list[Path]:
        """Delete all but the newest `keep`, and return those, oldest first."""
        paths = iterations_in(self.checkpoints)
        for path in paths[:-keep]:
            remove(path)
        return paths[-keep:]

    def best_adapter(self, iteration: int) -> Path:
        return self.best / f"iter_{iteration:06d}"

    def guard_adapter(self, iteration: int) -> Path:
        return self.guarded / f"iter_{iteration:06d}"

    def prune_best(self, iterations: set[int]) -> None:
        """Keep only the best adapters as of these iterations."""
        self._prune(self.best, iterations)

    def prune_guarded(self, iterations: set[int]) -> None:
        """Keep only the adapters of these iterations for the guard to go back to."""
        self._prune(self.guarded, iterations)

    def _task_adapters(self) -> list[Path]:
        return [path for task in (self.adapters / "tasks").glob("*/") for path in iterations_in(task)]

    def task_adapters(self) -> dict[str, Path]:
        """By task, the newest adapter that was kept of it."""
        return {path.parent.name: path for path in self._task_adapters()}

    def prune_task_adapters(self, kept: set[tuple[str, int]]) -> None:
        """Keep only the adapters of tasks after these iterations."""
        for path in self._task_adapters():
            if (path.parent.name, iteration_of(path)) not in kept:
                remove(path)

    def _prune(self, folder: Path, iterations: set[int]) -> None:
        for path in iterations_in(folder):
            if iteration_of(path) not in iterations:
                remove(path)


@contextmanager
def _held(path: Path, busy: str, timeout: float = 0) -> Iterator[None]:
    """Within the block this process has the lock; RunDirError(busy) where another keeps it for `timeout` seconds."""
    lock = FileLock(path)
    with clear_os_errors(path):
        try:
            lock.acquire(timeout=timeout)
        except Timeout:  # is an OSError too
            raise RunDirError(busy) from None
    try:
        yield
    finally:
        lock.release()


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode: they stay with a file that is moved. None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file that this module wrote; a last line cut off by a kill is skipped.

    Raises:
        RunDirError: another line is broken.
    """
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().splitlines(True), 1):
        if not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RunDirError(f"{path}:{number}: broken line ({error}); mend or remove it") from error
        if not isinstance(row, dict) or not isinstance(row.get("iteration", 0), int):
            raise RunDirError(f"{path}:{number}: broken line (no object, or no iteration); mend or remove it")
        yield row


def iterations_in(folder: Path) -> list[Path]:
    """The folders iter_000012 and so on, in order. Whatever has another name, a copy for instance, is not of rlsf."""
    return sorted(path for path in folder.glob("iter_*") if re.fullmatch(r"iter_\d{6,}", path.name) and path.is_dir())


def iteration_of(path: Path) -> int:
    """Of names such as iter_000012 and iter_000012_validation_sums.json."""
    match = re.match(r"\.?iter_(\d+)", path.name)
    assert match is not None, f"{path} is not of an iteration"
    return int(match[1])


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
