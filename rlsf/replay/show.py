"""What `rlsf replay stats` and `rlsf replay show` print. Fits a terminal of 80 columns."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from rlsf.experience import Experience, Group
from rlsf.replay.reader import ReplayReader, ReplayStats

BAR = 30
"""Characters of the longest bar."""

BINS = 10
"""Rows of the tables of ages and of clusters, at most."""

_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def print_stats(store: ReplayReader, console: Console) -> None:
    """Size, counters, tasks with their rewards, clusters, and how old the groups are."""
    stats = store.stats()
    console.print(_summary(stats))
    if stats.groups:
        console.print(_tasks(stats))
        if stats.clusters.keys() != {None}:
            console.print(_clusters(stats))
        console.print(_ages(stats))


def print_group(group: Group, console: Console) -> None:
    """The prompt, then each completion with its reward and the reasons for it."""
    first = group.experiences[0].rollout
    console.print(Rule(Text(f"group {visible(group.id)}", style="bold")))
    console.print(
        Text(
            f"task {visible(group.task)} · iteration {group.iteration} · policy version {group.policy_version} · "
            f"priority {number(group.priority)} · temperature {first.sampling.temperature:g}"
        )
    )
    console.print(Panel(_prompt(group), title=Text(f"prompt {visible(group.prompt.id)}"), title_align="left"))
    for position, experience in enumerate(group.experiences, start=1):
        console.print(_experience(experience, f"{position}/{len(group.experiences)}"))


def visible(text: str) -> str:
    """`text` with control characters, lone surrogates and what turns the direction of writing around (Trojan Source,
    arXiv 2111.00169) written out: a completion must neither steer the terminal nor read other than it is."""
    return _INVISIBLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def number(value: float | None) -> str:
    """Four significant digits; a dash for None."""
    return "–" if value is None else f"{value:.4g}"


def _summary(stats: ReplayStats) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("store", Text(str(stats.path)))
    table.add_row("on disk", f"{stats.bytes_on_disk / 2**20:,.1f} MiB")
    table.add_row("groups", f"{stats.groups:,} of {stats.capacity:,} ({stats.keep})")
    table.add_row("seen", f"{stats.seen:,}, of which {stats.evicted:,} evicted or not kept")
    table.add_row("drawn", f"{stats.drawn:,} times; {stats.never_drawn:,} stored groups never")
    table.add_row("last iteration", f"{stats.last_iteration:,}")
    if stats.policy_versions is not None:
        table.add_row("policy versions", "{} to {}".format(*stats.policy_versions))
    if stats.priorities is not None:
        lowest, mean, highest = map(number, stats.priorities)
        table.add_row("priority", f"{lowest} to {highest}, mean {mean}")
    return table


def _tasks(stats: ReplayStats) -> Table:
    table = Table(title="Tasks", title_justify="left")
    table.add_column("task", overflow="fold")
    for name in ("groups", "rollouts", "no reward", "mean", "min", "max", "draws"):
        table.add_column(name, justify="right")
    for task in stats.tasks:
        table.add_row(
            Text(visible(task.task)),
            f"{task.groups:,}",
            f"{task.rollouts:,}",
            f"{task.unscored:,}",
            number(task.reward_mean),
            number(task.reward_min),
            number(task.reward_max),
            f"{task.draws:,}",
        )
    return table


def _clusters(stats: ReplayStats) -> Table:
    table = Table(title="Clusters", title_justify="left")
    table.add_column("cluster", justify="right")
    table.add_column("groups", justify="right")
    table.add_column("")
    largest = max(stats.clusters.values())
    for cluster, count in list(stats.clusters.items())[:BINS]:
        table.add_row("none" if cluster is None else str(cluster), f"{count:,}", "█" * math.ceil(BAR * count / largest))
    if len(stats.clusters) > BINS:
        rest = list(stats.clusters.values())[BINS:]
        table.add_row(f"{len(rest):,} smaller", f"{sum(rest):,}", "")
    return table


def _ages(stats: ReplayStats) -> Table:
    table = Table(title="Groups by the iteration that generated them", title_justify="left")
    table.add_column("iteration", justify="right")
    table.add_column("groups", justify="right")
    table.add_column("")
    bins = list(_bins(stats.iterations))
    largest = max(count for _, _, count in bins)
    for first, last, count in bins:
        label = str(first) if first == last else f"{first}–{last}"
        table.add_row(label, f"{count:,}", "█" * math.ceil(BAR * count / largest))
    return table


def _bins(counts: Mapping[int, int]) -> Iterator[tuple[int, int, int]]:
    """(first iteration, last iteration, groups) of at most BINS equally wide ranges."""
    low, high = min(counts), max(counts)
    width = math.ceil((high - low + 1) / BINS)
    for first in range(low, high + 1, width):
        last = min(first + width - 1, high)
        yield first, last, sum(count for iteration, count in counts.items() if first <= iteration <= last)


def _prompt(group: Group) -> RenderableType:
    content = group.prompt.content
    parts: list[RenderableType] = []
    if isinstance(content, str):
        parts.append(Text(visible(content)))
    else:
        for message in content:
            parts.append(Text(visible(message["role"]), style="bold"))
            parts.append(Padding(Text(visible(message["content"])), (0, 0, 0, 2)))
    if group.prompt.metadata:
        parts += [Text("metadata", style="bold"), *_fields(group.prompt.metadata, indent=2)]
    return Stack(*parts)


def _experience(experience: Experience, position: str) -> Panel:
    rollout, score = experience.rollout, experience.score
    parts: list[RenderableType] = [
        Text(visible(rollout.text)) if rollout.text else Text("(empty)", style="dim"),
        Rule(style="dim"),
        Text(visible(rollout.id), style="dim"),
    ]
    tokens = len(rollout.completion_ids)
    facts = f"{tokens} token{'' if tokens == 1 else 's'} · finished by {rollout.finish_reason}"
    if rollout.truncated:
        facts += " (cut off: it has no answer)"
    if tokens:
        facts += f" · mean log p {number(math.fsum(rollout.logprobs) / tokens)}"
        if experience.reference_logprobs is not None:
            facts += f", reference {number(math.fsum(experience.reference_logprobs) / tokens)}"
    parts.append(Text(facts))
    for name, fields in (("components", score.components), ("evidence", score.evidence)):
        if fields:
            parts += [Text(name, style="bold"), *_fields(fields, indent=2)]
    reward = "no opinion" if score.value is None else f"reward {number(score.value)}"
    return Panel(Stack(*parts), title=Text(f"{position} · {reward}", style="bold"), title_align="left")


def _fields(fields: Mapping[str, Any], *, indent: int) -> Iterator[RenderableType]:
    """One line for what is short, an indented block for what is not."""
    for name, value in fields.items():
        label = visible(str(name))
        nested = entries(value)
        if nested is not None:
            yield Padding(Text(f"{label}:"), (0, 0, 0, indent))
            yield from _fields(nested, indent=indent + 2)
        elif isinstance(value, str) and "\n" in value:
            yield Padding(Text(f"{label}:"), (0, 0, 0, indent))
            yield Padding(Text(visible(value)), (0, 0, 0, indent + 2))
        else:
            yield Padding(Text(f"{label}: {short(value)}"), (0, 0, 0, indent))


def entries(value: Any) -> Mapping[str, Any] | None:
    """What is inside a value that needs several lines: a mapping, or a list that is not only short plain values."""
    if isinstance(value, Mapping):
        return value or None
    if isinstance(value, Sequence) and not isinstance(value, str):
        plain = all(not isinstance(item, Mapping | list | tuple) for item in value)
        if plain and not any(
            isinstance(item, str) and (" " in item or "\n" in item or len(item) > 40) for item in value
        ):
            return None
        return {f"{index}": item for index, item in enumerate(value, start=1)}
    return None


def short(value: Any) -> str:
    """A value, or a list of plain ones, as people write it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return visible(value) if value else '""'
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Sequence):
        return ", ".join(map(short, value)) if value else "(none)"
    return str(value) if value != {} else "(none)"
