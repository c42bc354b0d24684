"""What a run does when its task changes."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlsf.config.clustering import KnownIdentity
from rlsf.continual.replaying import draw, rehearsed
from rlsf.continual.strategies import newest_experiences
from rlsf.experience import Group
from rlsf.tasks import Part, Segment

if TYPE_CHECKING:
    from rlsf.run import Run


def current_task(run: "Run", parts: Sequence[Part], segment: Segment) -> tuple[str, dict[str, float]]:
    """The name of the task that is on: the segment's own, or where the strategies are not told, what its prompts show.
    With what was noticed on the way, as metrics."""
    if run.detector is None:
        return segment.task, {}
    points = run.embeddings.prompts([prompt for part in parts for prompt in part.prompts])
    verdict = run.detector.observe(points)
    run.state.identity = run.detector.to_json()
    return verdict.context, {
        "identity/contexts": float(len(run.state.identity["contexts"])),
        "identity/changed": float(verdict.changed),
        "identity/statistic": verdict.statistic,
    }


def enter_task(run: "Run", name: str, iteration: int) -> dict[str, float]:
    """Before the first iteration of a task: what the one before leaves behind is consolidated, the strategies make room
    for the next, and it is warm-started where the config says so. Returns the metrics of that."""
    state = run.state
    if name == state.task:
        return {}
    if state.task:
        _leave(run, state.task)
    known = list(state.tasks)
    state.task = name
    if name not in known:
        state.tasks.append(name)
    if not run.strategies.begin_task(name):
        run.display.warn(
            f"continual.orthogonal: no block of the adapter is left for task {name}, which shares the last one; raise "
            "model.lora.r"
        )
    if run.config.continual.orthogonal is not None:
        run.algorithm.forget_moments()  # of another block: a new one would take steps far too large
    if run.adapters is not None and run.adapters.begin(name, known):
        run.algorithm.forget_moments()
        run.deliver()
    warm_start = run.config.warm_start
    if warm_start is None or warm_start.tasks != "each" or not known or name in known:
        return {}
    compared = run.strategies.distilled_groups * warm_start.steps  # as many as its steps would draw one by one
    run.strategies.replay(draw(run, compared, iteration, earlier_only=True))
    metrics = run.warm_start(run.tasks[name], rehearsed=rehearsed(run, iteration))
    run.deliver()
    return metrics


def remember_prompts(run: "Run", parts: Sequence[Part]) -> None:
    """Where held-out prompts are routed to the adapter of the task they resemble: what the current one's look like."""
    if run.adapters is not None and run.adapters.routes:
        for part in parts:
            label = run.label_of(part.task)
            if label == run.state.task:  # a neighbour's prompts do not make the adapter theirs
                run.adapters.remember(label, np.asarray(run.embeddings.prompts(part.prompts)))


def _groups_of(run: "Run", name: str) -> Iterator[Group]:
    """Of a task, newest first. Where tasks are hidden, a change is noticed some batches late, and those that showed it
    stand under the name of the task before."""
    identity = run.config.continual.identity
    late = 0 if isinstance(identity, KnownIdentity) else identity.consecutive - 1
    groups = run.replay.groups(task=name, newest_first=True)
    return (group for group in groups if group.iteration <= run.state.iteration - late)


def _leave(run: "Run", name: str) -> None:
    wanted = run.strategies.fisher_samples
    recent = newest_experiences(_groups_of(run, name), wanted) if wanted else []
    if wanted and not recent:
        run.display.warn(
            f"continual: the replay store holds no completion of task {name}, so no Fisher information can be "
            "estimated for it; raise replay.capacity"
        )
    run.strategies.end_task(recent)
    if run.config.continual.reference == "last_task":
        run.state.reference_since = run.state.iteration + 1
    if run.adapters is not None:
        run.adapters.keep(name, run.state.iteration)
