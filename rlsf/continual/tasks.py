"""What a run does when its task changes, and what comes back from the tasks before."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rlsf.algorithms.samples import token_pair
from rlsf.continual.strategies import newest_experiences
from rlsf.errors import TrainingError
from rlsf.experience import Group
from rlsf.forward import TokenPair
from rlsf.preferences import opinions, reward_of
from rlsf.scoring import Answered, make_groups, score_rollouts
from rlsf.tasks import Part

if TYPE_CHECKING:
    from rlsf.run import Run


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
    if run.adapters is not None and run.adapters.begin(name, known):
        run.algorithm.forget_moments()
        run.deliver()
    warm_start = run.config.warm_start
    if warm_start is None or warm_start.tasks != "each" or not known or name in known:
        return {}
    run.strategies.replay(draw(run, run.strategies.distilled_groups, iteration, earlier_only=True))
    metrics = run.warm_start(run.tasks[name], rehearsed=rehearsed(run, iteration))
    run.deliver()
    return metrics


def _leave(run: "Run", name: str) -> None:
    wanted = run.strategies.fisher_samples
    recent = newest_experiences(run.replay.groups(task=name, newest_first=True), wanted) if wanted else []
    if wanted and not recent:
        run.display.warn(
            f"continual: the replay store holds no completion of task {name}, so no Fisher information can be "
            "estimated for it; raise replay.capacity"
        )
    run.strategies.end_task(recent)
    if run.config.continual.reference == "last_task":
        run.state.reference_since = run.state.iteration + 1
    if run.adapters is not None:
        run.adapters.keep(name)


def rehearsed(run: "Run", iteration: int) -> list[TokenPair]:
    """What a warm start learns besides its labels, so that it does not cost the earlier tasks: `replay.ratio` times as
    many of the policy's own best answers to prompts from the store. No label is needed: the reward says which answer
    is the best. In the mode `prompts` they are answered anew."""
    assert run.config.warm_start is not None
    count = round(run.config.replay.ratio * run.config.warm_start.examples)
    if run.config.replay.mode == "samples":
        return best_answers(draw(run, count, iteration, earlier_only=True))
    found = []
    for number, part in enumerate(replayed_prompts(run, iteration, count), start=1):
        rollouts = run.generate(part, number, iteration)
        scored = score_rollouts(run, part.task, part.prompts, rollouts, iteration)
        answered = Answered(part.task, part.prompts, rollouts, scored)
        found += best_answers(make_groups(run, answered, iteration))
    return found


def best_answers(groups: Sequence[Group]) -> list[TokenPair]:
    """Of each group with different rewards, or with the best reward that any group has, the first of the best."""
    known = [opinions(group) for group in groups]
    values = [[reward_of(e) for e in members] for members in known]
    highest = max((value for row in values for value in row), default=0.0)
    return [
        token_pair(members[int(np.argmax(row))])
        for members, row in zip(known, values, strict=True)
        if row and (max(row) > min(row) or max(row) == highest)
    ]


def earlier_groups(run: "Run", groups: Sequence[Group]) -> frozenset[str]:
    """Ids of those that are of a task that came before the current one."""
    before = {*run.state.tasks} - {run.state.task}
    return frozenset(group.id for group in groups if group.task in before)


def replayed_prompts(run: "Run", iteration: int, count: int) -> list[Part]:
    """Up to `count` prompts from the store for the policy to answer anew, by task; none in the mode `samples`.

    Raises:
        TrainingError: one of them is of no task of this run, so that nothing knows how to answer or to grade it.
    """
    if run.config.replay.mode != "prompts":
        return []
    groups = draw(run, count, iteration)
    parts: dict[str, Part] = {}
    for group in groups:
        task = run.tasks.get(group.prompt.task)
        if task is None:
            raise TrainingError(
                f"replay.mode: the replay store holds a prompt of task {group.prompt.task!r}, which is none of this "
                f"run's ({', '.join(run.tasks)}); add the task, or replay samples"
            )
        prompt = run.training_prompts.get(group.prompt.id, group.prompt)  # with its labels, where there are any
        part = parts.setdefault(task.name, Part(task, []))
        if prompt not in part.prompts:
            part.prompts.append(prompt)
    return list(parts.values())


def replayed_samples(run: "Run", fresh: int, iteration: int) -> list[Group]:
    """Groups from the store to be learned from as they are; none in the mode `prompts`."""
    if run.config.replay.mode != "samples":
        return []
    return up_to_date(run, draw(run, round(run.config.replay.ratio * fresh), iteration))


def draw(run: "Run", count: int, iteration: int, *, earlier_only: bool = False) -> list[Group]:
    """Groups from the store, but none of this iteration, and of earlier tasks alone where that is asked for."""
    only_earlier = earlier_only or run.config.replay.source == "earlier"
    return run.replay.draw(
        count,
        iteration=iteration,
        policy_version=run.state.policy_version,
        exclude_iteration=iteration,
        exclude_tasks=(run.state.task,) if only_earlier else (),
    )


def up_to_date(run: "Run", groups: Sequence[Group]) -> list[Group]:
    """The same groups, without the reference log-probabilities that are of an earlier reference."""
    since = run.state.reference_since
    return [
        group
        if group.iteration >= since
        else replace(group, experiences=tuple(replace(e, reference_logprobs=None) for e in group.experiences))
        for group in groups
    ]
