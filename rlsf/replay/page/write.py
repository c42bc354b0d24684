"""Groups of a replay store as one HTML file.

All text goes through the templates' escaping and through `visible`. The page may load nothing, and the one script and
the one style sheet that it may use are those whose digests stand in its policy.
"""

import hashlib
import shlex
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlsf.errors import RunDirError
from rlsf.experience import Group
from rlsf.files import write_parts
from rlsf.replay.page.view import Offset, nowhere, view
from rlsf.replay.reader import ReplayReader
from rlsf.replay.show import number, visible
from rlsf.run_dir import check_not_of_a_run

PACKAGE = "rlsf.replay.page"
LONGEST_NAME = 200
"""Characters of a name in the evidence."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which groups a page shows."""

    ids: Sequence[str] = ()
    """Of groups or rollouts, or how they begin; none is the newest groups."""
    task: str | None = None
    iteration: int | None = None
    limit: int = 200
    """Of groups that no id names."""


def write_page(
    store: ReplayReader, path: Path, selection: Selection, *, run: Path, reward: str = "", offset: Offset = nowhere
) -> tuple[int, int]:
    """Write the page to `path`, group by group, and rename it into place when it is whole.

    Args:
        run: the run's folder, for the commands that the page names.
        reward: how the run's reward is configured, as text.

    Returns:
        how many groups the page shows, and how many there would be without the limit.

    Raises:
        RunDirError: no group fits the selection, or the page cannot be written.
    """
    groups, stored = _select(store, selection)
    shown = stored if selection.ids else min(stored, selection.limit)
    style, script = (Markup((files(PACKAGE) / name).read_text("utf-8")) for name in ("style.css", "script.js"))
    parts = (
        _environment()
        .get_template("page.html.j2")
        .generate(
            groups=(view(group, offset) for group in groups),
            shown=shown,
            stored=stored,
            named=bool(selection.ids),
            last_iteration=store.last_iteration,
            run=run.resolve().name,
            show=lambda id: f"rlsf replay show {shlex.quote(str(run))} {shlex.quote(id)}",
            reward=reward,
            style=style,
            script=script,
            policy=f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
            "base-uri 'none'; form-action 'none'",
        )
    )
    try:
        if path.is_dir():
            raise RunDirError(f"--output: {path} is a folder; name a file in it")
        check_not_of_a_run(path, run)
        write_parts(path, parts)
    except OSError as error:
        raise RunDirError(
            f"cannot write {path}: {error.strerror or error}; --output FILE writes the page elsewhere"
        ) from error
    return shown, stored


def _select(store: ReplayReader, selection: Selection) -> tuple[Iterator[Group], int]:
    """The groups, and how many there are of them without the limit."""
    task, iteration = selection.task, selection.iteration
    if selection.ids:
        if task is not None or iteration is not None:
            raise RunDirError("give either ids, or --task and --iteration")
        found = {group.id: group for group in map(store.find, selection.ids)}
        return iter(found.values()), len(found)
    stored = store.count(task=task, iteration=iteration)
    if not stored and (task is not None or iteration is not None):
        raise RunDirError(_nothing(store, task, iteration))
    return islice(store.groups(task=task, iteration=iteration, newest_first=True), selection.limit), stored


def _nothing(store: ReplayReader, task: str | None, iteration: int | None) -> str:
    stats = store.stats()
    wanted = [f"of task {task!r}"] * (task is not None) + [f"of iteration {iteration}"] * (iteration is not None)
    there = "it is empty"
    if stats.groups:
        tasks = ", ".join(entry.task for entry in stats.tasks)
        there = f"its tasks are {tasks}, its iterations {min(stats.iterations)} to {max(stats.iterations)}"
    return f"replay store {stats.path}: no group {' '.join(wanted)}; {there}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(PACKAGE, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Applied to each value before it is escaped. Markup holds what went through here already.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {"number": number, "brief": _brief}
    return environment


def _brief(name: str) -> str:
    """Names may be a model's words too."""
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"


def _digest(text: str) -> str:
    """As a content security policy names what may run."""
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
