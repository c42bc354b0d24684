"""What `rlsf replay export`, `import`, `filter` and `merge` do."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from rich.console import Console

from rlsf.display import Display, say
from rlsf.errors import DataError, RunDirError
from rlsf.experience import Experience, Group
from rlsf.quiet import quiet_datasets
from rlsf.replay.exchange.formats import check_target, format_of
from rlsf.replay.exchange.selection import Selection, best_of_prompts, only_best
from rlsf.replay.exchange.stores import (
    check_new,
    existing_store,
    is_run,
    is_store,
    new_store,
    open_store,
    replay_config,
    store_folder,
    store_name,
)
from rlsf.replay.exchange.training import export_training
from rlsf.replay.exchange.transfer import batched, export_groups, import_groups, load_into, read_groups
from rlsf.replay.reader import ReplayReader
from rlsf.replay.store import ReplayStore

T = TypeVar("T")
Format = Literal["rollouts", "pairs", "trl"]


def export_store(source: Path, path: Path, selection: Selection, format: Format, console: Console) -> None:
    """Write what a store holds to a file.

    Raises:
        RlsfError: with a message for the user.
    """
    check_target(path)
    if format_of(path) == "folder":
        quiet_datasets()
    with open_store(source) as store:
        groups = _chosen(store, selection)
        total = selection.total(store)
        with Display(console, f"rlsf replay export {source}", total=total) as display, display.phase("export"):
            if format == "rollouts":
                written = export_groups(_watched(groups, display), path)
            else:
                written = export_training(_watched(groups, display), path, format)
    say(console, f"{path}: {_counted(written, {'rollouts': 'group', 'pairs': 'pair', 'trl': 'completion'}[format])}")


def import_file(
    path: Path, target: Path, *, capacity: int | None, keep: str | None, skip_known: bool, console: Console
) -> None:
    """Make a store of a file, or add the file to one that is there.

    Args:
        capacity: of a new store; None is the number of groups in the file.
        keep: of a new store; None is fifo.

    Raises:
        RlsfError: with a message for the user; nothing is imported where a row is broken.
    """
    if is_run(target) or is_store(target):
        if capacity is not None or keep is not None:
            raise RunDirError(f"STORE: {target} exists, and has a capacity and keep of its own; leave out the options")
        with existing_store(target) as store, Display(console, f"rlsf replay import {path}", total=None) as display:
            with display.phase("import"):
                added = load_into(store, path, store.last_iteration, skip_known=skip_known, advance=display.advance)
            held = len(store)
    else:
        check_new(target, "STORE")
        with Display(console, f"rlsf replay import {path}", total=None) as display:
            with display.phase("check"):
                added = sum(1 for _ in _counting(read_groups(path), display))
            config = replay_config(capacity=added if capacity is None else capacity, keep=keep or "fifo")
            with display.phase("import"), new_store(target, config, name="STORE") as store:
                _fill(store, _counting(import_groups(path), display))
                held = len(store)
    say(console, f"{target}: {_counted(added, 'group')} added; it holds {held:,} of {store.capacity:,}")


def filter_store(source: Path, new: Path, selection: Selection, *, keep_best: int | None, console: Console) -> None:
    """A new store, with the settings of the old one, of what fits.

    Args:
        keep_best: rollouts of each prompt, those of the highest rewards; None is all.

    Raises:
        RlsfError: with a message for the user.
    """
    check_new(new, "NEW")
    with open_store(source) as store:
        passes = 1 if keep_best is None else 2
        total = passes * selection.total(store)
        with Display(console, f"rlsf replay filter {source}", total=total) as display, display.phase("filter"):
            groups: Iterable[Group] = _watched(_chosen(store, selection), display)
            if keep_best is not None:
                best = best_of_prompts(groups, keep_best)
                again = _watched(_chosen(store, selection), display)
                groups = (kept for kept in (only_best(group, best) for group in again) if kept is not None)
            config = replay_config(capacity=store.capacity, keep=store.keep)
            with new_store(new, config, name="NEW", seed=store.seed) as made:
                kept = _fill(made, groups)
                if not kept:
                    raise DataError(f"{source}: no rollout has a reward; --keep-best has nothing to choose by")
        before = len(store)
    say(console, f"{new}: {kept:,} of {_counted(before, 'group')}")


def merge_stores(
    sources: Sequence[Path],
    new: Path,
    *,
    capacity: int | None,
    keep: str | None,
    prefix: bool,
    skip_known: bool,
    console: Console,
) -> None:
    """One store of several, in their order.

    Args:
        capacity: of the new store; None is the number of groups in all.
        keep: None is fifo.
        prefix: put the name of its run, or folder, before each id.
        skip_known: of groups of one id keep the first.

    Raises:
        RlsfError: with a message for the user; of ids that stand in two stores, where neither option says what to do.
    """
    check_new(new, "NEW")
    names = _names(sources)
    with ExitStack() as stack:
        stores = [stack.enter_context(open_store(source)) for source in sources]
        total = sum(map(len, stores))
        if not total:
            raise DataError("there is nothing to merge: all of the stores are empty")
        config = replay_config(capacity=total if capacity is None else capacity, keep=keep or "fifo")
        display = stack.enter_context(Display(console, f"rlsf replay merge into {new}", total=total))
        with display.phase("merge"), new_store(new, config, name="NEW") as made:
            groups = _merged(dict(zip(names, stores, strict=True)), prefix=prefix, skip_known=skip_known)
            added = _fill(made, _counting(groups, display))
            held = len(made)
    say(
        console, f"{new}: {_counted(added, 'group')} of {len(sources)} stores; it holds {held:,} of {config.capacity:,}"
    )


def _merged(stores: Mapping[str, ReplayReader], *, prefix: bool, skip_known: bool) -> Iterator[Group]:
    origin: dict[str, str] = {}
    for name, store in stores.items():
        for group in store.groups():
            if prefix:
                group = with_prefix(group, f"{name}/")
            if group.id not in origin:
                origin[group.id] = name
                yield group
            elif not skip_known:
                raise DataError(
                    f"group {group.id!r} is in {origin[group.id]} and in {name}: --prefix puts their names before the "
                    "ids, --skip-known keeps the first"
                )


def with_prefix(group: Group, prefix: str) -> Group:
    """The group with `prefix` before its id and those of its rollouts, also where the evidence names them."""
    renamed = {experience.rollout.id: prefix + experience.rollout.id for experience in group.experiences}
    return replace(
        group, id=prefix + group.id, experiences=tuple(_renamed(e, prefix, renamed) for e in group.experiences)
    )


def _renamed(experience: Experience, prefix: str, ids: Mapping[str, str]) -> Experience:
    rollout, score = experience.rollout, experience.score
    return replace(
        experience,
        rollout=replace(rollout, id=ids[rollout.id], group_id=prefix + rollout.group_id),
        score=replace(score, evidence={name: _with_ids(value, ids) for name, value in score.evidence.items()}),
    )


def _with_ids(value: Any, ids: Mapping[str, str]) -> Any:
    """With the new id wherever an old one stands by itself."""
    if isinstance(value, str):
        return ids.get(value, value)
    if isinstance(value, Mapping):
        return {ids.get(name, name): _with_ids(item, ids) for name, item in value.items()}
    return [_with_ids(item, ids) for item in value] if isinstance(value, list | tuple) else value


def _names(sources: Sequence[Path]) -> list[str]:
    """Of the stores, numbered where two have the same.

    Raises:
        RunDirError: one is there twice.
    """
    names: list[str] = []
    seen: Counter[str] = Counter()
    known: dict[Path, Path] = {}
    for source in sources:
        name = store_name(source)
        place = store_folder(source).resolve()
        if place in known:
            raise RunDirError(f"{source} is the same store as {known[place]}; name each once")
        known[place] = source
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return names


def _chosen(store: ReplayReader, selection: Selection) -> Iterator[Group | None]:
    """Raises DataError at the end, where not one was chosen."""
    found = False
    for group in selection.groups(store):
        found = found or group is not None
        yield group
    if not found:
        stats = store.stats()
        there = "it is empty"
        if stats.groups:
            tasks = ", ".join(task.task for task in stats.tasks)
            there = f"its tasks are {tasks}, its iterations {min(stats.iterations)} to {max(stats.iterations)}"
        wanted = str(selection)
        raise DataError(f"replay store {stats.path}: nothing fits{f' {wanted}' if wanted else ''}; {there}")


def _watched(groups: Iterable[Group | None], display: Display) -> Iterator[Group]:
    """Those that are some, counting all."""
    for group in groups:
        display.advance(1)
        if group is not None:
            yield group


def _counting(items: Iterable[T], display: Display) -> Iterator[T]:
    for item in items:
        display.advance(1)
        yield item


def _fill(store: ReplayStore, groups: Iterable[Group]) -> int:
    """Add groups to a new store, before any iteration, and return how many."""
    added = 0
    for batch in batched(groups):
        store.add(batch, iteration=0)
        added += len(batch)
    return added


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
