"""Rollouts that a run left in its replay store."""

from collections.abc import Iterator
from dataclasses import dataclass

from rlsf.errors import RunDirError
from rlsf.replay.reader import ReplayReader
from rlsf.run_dir import RunDir, read_jsonl
from rlsf.tasks import Task
from rollouts.types import Prompt, Rollout

ENOUGH = 32
"""Groups by one policy version that need no others beside them."""
LIMIT = 128
"""Groups taken where nobody says how many."""


@dataclass(frozen=True, slots=True)
class StoredGroup:
    prompt: Prompt
    """With its labels, from the task's data."""
    rollouts: list[Rollout]

    @property
    def version(self) -> int:
        """Of the policy that wrote them."""
        return self.rollouts[0].policy_version


def version_at(directory: RunDir, iteration: int | None) -> int:
    """The policy version that an iteration left behind; 0 for None, the base model.

    Raises:
        RunDirError: metrics.jsonl does not say.
    """
    if iteration is None:
        return 0
    versions = {row["iteration"]: row["policy_version"] for row in read_jsonl(directory.metrics)}
    if iteration not in versions:
        raise RunDirError(f"{directory.metrics} has no line of iteration {iteration}: the run directory is incomplete")
    return versions[iteration]


def nearest_groups(
    store: ReplayReader, task: Task, *, iteration: int | None, version: int, limit: int
) -> list[StoredGroup]:
    """Groups of a task that were written by `version`, if there are ENOUGH (or `limit`) of them; else those of the
    versions around it as well, the nearest first, up to `limit`.

    Args:
        iteration: that left `version` behind; None for the base model.
    """
    groups: list[StoredGroup] = []
    for group in _by_distance(store, task, iteration or 0):
        if group.version != version and sum(known.version == version for known in groups) >= ENOUGH:
            break
        groups.append(group)
        if len(groups) == limit:
            break
    return groups


def _by_distance(store: ReplayReader, task: Task, iteration: int) -> Iterator[StoredGroup]:
    """The groups of a task, those that were written right after `iteration` first."""
    prompts = {prompt.id: prompt for prompt in (*task.train, *task.validation, *task.test)}
    for later in sorted(store.stats().iterations, key=lambda number: (abs(number - iteration - 1), -number)):
        for group in store.groups(task=task.name, iteration=later):
            if group.is_lesson:
                continue
            rollouts = [experience.rollout for experience in group.experiences]
            yield StoredGroup(prompts.get(group.prompt.id, group.prompt), rollouts)


def describe_versions(groups: list[StoredGroup], version: int) -> str:
    """One line on who wrote the rollouts."""
    written = sorted({group.version for group in groups})
    if written == [version]:
        return f"{len(groups)} groups, written by this very policy (version {version})"
    versions = f"version {written[0]}" if len(written) == 1 else f"versions {written[0]} to {written[-1]}"
    return (
        f"{len(groups)} groups, written by policy {versions}: the adapter's own version, {version}, wrote too few that "
        "are kept. Signals that read probabilities say what this adapter thinks of them now"
    )
