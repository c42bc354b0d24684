"""From rows to groups, as the rows come."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rlsf.errors import DataError
from rlsf.experience import Group
from rlsf.replay.codec import check_group
from rlsf.replay.exchange.rows import Member


@dataclass(frozen=True, slots=True)
class Gathered:
    """A group, and where it was read."""

    where: str
    """For messages: file and line of its first row."""
    group: Group


def gather(members: Iterable[Member]) -> Iterator[Gathered]:
    """Each group when its last row has come. In memory are the groups of which rows are still missing: rows of a group
    may stand apart where they say its size; where they do not, the group ends with the first row of another one.

    Raises:
        DataError: rows of a group contradict each other, one is missing or stands twice, or a group breaks the store's
            contract; with the row.
    """
    waiting: dict[str, list[Member]] = {}
    complete: dict[str, str] = {}
    unsized: str | None = None
    for member in members:
        if unsized is not None and member.group != unsized:
            complete[unsized] = waiting[unsized][-1].where
            yield _group(waiting.pop(unsized))
            unsized = None
        if member.group in complete:
            raise DataError(
                f"{member.where}: group {member.group!r} is complete with the row at {complete[member.group]}: it "
                "stands twice in the file, or its rows do not follow each other and have no group_size"
            )
        rows = waiting.setdefault(member.group, [])
        rows.append(member)
        if member.size is None:
            unsized = member.group
        elif len(rows) >= member.size:
            complete[member.group] = member.where
            yield _group(waiting.pop(member.group))
    if unsized is not None:
        yield _group(waiting.pop(unsized))
    for id, rows in waiting.items():
        raise DataError(
            f"{rows[-1].where}: group {id!r} has {len(rows)} of {rows[-1].size} rows; the file is cut off, or rows "
            "were taken out of it: then leave out the columns position and group_size, and keep the rows of a group "
            "together"
        )


def _group(rows: Sequence[Member]) -> Gathered:
    first = rows[0]
    for row in rows:
        for name, one, other in (
            ("prompt", first.prompt, row.prompt),
            ("group_size", first.size, row.size),
            ("task", first.experience.task, row.experience.task),
            ("iteration", first.experience.iteration, row.experience.iteration),
            ("priority", first.experience.priority, row.experience.priority),
        ):
            if one != other:
                raise DataError(
                    f"{row.where}: the {name} differs from that at {first.where}, and both are of group "
                    f"{first.group!r}; the rows of a group share it"
                )
    group = Group(first.group, first.prompt, tuple(row.experience for row in _in_order(rows)))
    try:
        check_group(group)
    except ValueError as error:
        raise DataError(f"{first.where}: {error}") from error
    return Gathered(first.where, group)


def _in_order(rows: Sequence[Member]) -> Sequence[Member]:
    if all(row.position is None for row in rows):
        return rows
    at: dict[int | None, Member] = {}
    for row in rows:
        if row.position in at:
            raise DataError(
                f"{row.where}: position {row.position} of group {row.group!r} is taken by the row at "
                f"{at[row.position].where}"
            )
        at[row.position] = row
    missing = next((position for position in range(len(rows)) if position not in at), None)
    if missing is not None:
        raise DataError(
            f"{rows[-1].where}: group {rows[-1].group!r} has {len(rows)} rows, but none at position {missing}; mend "
            "the column position, or leave it out"
        )
    return [at[position] for position in range(len(rows))]
