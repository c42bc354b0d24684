"""Writing that survives a loss of power, and says in one line what kept it from writing."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

from rlsf.errors import RunDirError


@contextmanager
def clear_os_errors(path: Path) -> Iterator[None]:
    """A full disk, missing rights and their like below `path`, as a RunDirError."""
    try:
        yield
    except OSError as error:
        raise RunDirError(
            f"cannot write {path}: {error.strerror or error}. Free space or mend the rights; then `rlsf resume` "
            "continues from the last checkpoint"
        ) from error


def write_text(path: Path, text: str) -> None:
    """As `write_parts`, of one part."""
    write_parts(path, (text,))


def write_parts(path: Path, parts: Iterable[str]) -> None:
    """Replace a file whole, folders above it included: a reader sees the old text or the new one, never half of it. A
    link stays, and the file that it leads to is replaced; a pipe or a device is written to.

    Raises:
        OSError: it cannot be written; the old one is untouched then.
    """
    if is_special(path):
        with path.open("w", encoding="utf-8") as file:
            file.writelines(parts)
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        try:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            temporary.unlink()
            raise
    temporary.replace(path)
    fsync(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place to write a file or a folder that takes the place of `path` when the block ends, folders above it
    included; nothing is left of it where the block raises. A folder cannot replace another one that is not empty.

    Raises:
        OSError: it cannot be written; what was at `path` is untouched then.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name[:100]}.", dir=path.parent) as folder:
        written = Path(folder) / path.name
        yield written
        for part in (*written.rglob("*"), written):
            fsync(part)
        written.replace(path)
    fsync(path.parent)


@contextmanager
def mendable_output(output: Path, name: str = "--output") -> Iterator[None]:
    """What keeps a command's `--output`, or another argument of that `name`, from being written, as a RunDirError."""
    try:
        yield
    except OSError as error:
        raise RunDirError(f"{name}: cannot write {output}: {error.strerror or error}") from error


def check_output(output: Path, name: str = "--output") -> None:
    """Raises RunDirError where the file cannot be written: to learn that after long work would be too late."""
    if output.is_dir():
        raise RunDirError(f"{name}: {output} is a folder; name a file in it")
    if is_special(output):
        return
    with mendable_output(output, name):
        output = output.resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=output.parent, prefix=f".{output.name[:100]}."):
            pass


def check_output_folder(output: Path) -> None:
    """Raises RunDirError where nothing can be written into the folder."""
    if output.exists() and not output.is_dir():
        raise RunDirError(f"--output: {output} is a file; name a folder")
    with mendable_output(output):
        output.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=output):
            pass


def is_special(path: Path) -> bool:
    """A pipe, a terminal, /dev/null: to put a file in its place would take it away from everybody."""
    return path.exists() and not path.is_file() and not path.is_dir()


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it. Raises RunDirError where that is not allowed."""
    with clear_os_errors(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def fsync(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
