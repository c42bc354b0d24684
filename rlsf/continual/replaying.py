"""What a run puts into the replay store, and what comes back from it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from rlsf.algorithms.samples import token_pair
from rlsf.config.stream import BlurredStream, DriftingStream
from rlsf.errors import DataError, TrainingError
from rlsf.experience import Group
from rlsf.forward import TokenPair
from rlsf.paths import expand
from rlsf.preferences import opinions, reward_of
from rlsf.scoring import Answered, make_groups, score_rollouts
from rlsf.tasks import Part
from rlsf.tasks.rows import folded
from rollouts.types import Rollout

if TYPE_CHECKING:
    from rlsf.clustering.population import Population
    from rlsf.run import Run


BATCH = 128
"""Groups of an earlier run put into the store at a time."""


def begin_with(run: "Run") -> int:
    """Put an earlier run's groups into the store before the first iteration, and return how many. They are of iteration
    0 and policy version 0 from now on, and the reference that they were compared with was another.

    Raises:
        DataError: a row of the file is broken, or this run can use no group of the file.
    """
    path = run.config.replay.begin_with
    if path is None:
        return 0
    from rlsf.replay.exchange import import_groups

    known = {group.id for group in run.replay.groups()}  # of a start that was killed
    unusable = _Unusable(run)
    fresh = (
        group
        for group in map(_of_before, import_groups(expand(path)))
        if not unusable.because(group) and group.id not in known
    )
    count = 0
    while groups := list(islice(fresh, BATCH)):
        if run.population is None:
            run.replay.add(groups, iteration=0)
        else:
            _add_with_clusters(run, run.population, groups, 0)
        count += len(groups)
    if run.population is not None and count:
        _fit_clusters(run, run.population, 0)
    left_out = ", ".join(f"{number} {reason}" for reason, number in unusable.counts.items())
    if left_out:
        run.display.warn(f"replay.begin_with: left out of {path}: {left_out}")
    if not count and not known:
        raise DataError(f"replay.begin_with: {path} has no group that this run can use: {left_out or 'it is empty'}")
    return count


class _Unusable:
    """Says why this run cannot use groups of an earlier one, and counts them."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._held_out = {
            folded(prompt.text) for task in run.tasks.values() for prompt in (*task.validation, *task.test)
        }
        self.counts: Counter[str] = Counter()

    def because(self, group: Group) -> str:
        """The reason; empty where the group can be used."""
        reason = self._reason(group)
        if reason:
            self.counts[reason] += 1
        return reason

    def _reason(self, group: Group) -> str:
        run, prompt = self._run, group.prompt
        if folded(prompt.text) in self._held_out:
            return "of prompts that this run is validated or tested on"
        if run.config.replay.mode == "samples":
            return ""
        if prompt.task not in run.tasks:
            return "of tasks that this run does not have, so that their prompts cannot be answered anew"
        if run.config.uses_labels() and prompt.id not in run.training_prompts:
            return "of prompts without the label that the reward needs to grade new answers"
        return ""


def _of_before(group: Group) -> Group:
    """With ids of its own: those of a run with the same seed are the same."""
    name = f"before/{group.id}"

    def renamed(rollout: Rollout) -> Rollout:
        return replace(rollout, id=f"before/{rollout.id}", group_id=name, policy_version=0)

    return replace(
        group,
        id=name,
        experiences=tuple(
            replace(e, iteration=0, reference_logprobs=None, rollout=renamed(e.rollout)) for e in group.experiences
        ),
    )


def stream_parts(run: "Run", iteration: int) -> list[Part]:
    """The stream's prompts of an iteration; with a curriculum, more of those that lie in clusters which fail."""
    parts = run.stream.batch(iteration)
    if run.population is None:
        return parts
    return [
        replace(
            part,
            prompts=run.population.choose(
                part.task.train, len(part.prompts), run.seed("curriculum", iteration, part.task.name)
            )
            or part.prompts,
        )
        for part in parts
    ]


def remember(run: "Run", groups: Sequence[Group], iteration: int) -> dict[str, float]:
    """Put an iteration's groups into the store, with their clusters where the run keeps any; returns their metrics."""
    population = run.population
    if population is None:
        run.replay.add(groups, iteration=iteration)
        return {}
    population.observe(groups, _add_with_clusters(run, population, groups, iteration))
    if population.is_fit_due(iteration):
        _fit_clusters(run, population, iteration)
    return population.metrics()


def _add_with_clusters(
    run: "Run", population: "Population", groups: Sequence[Group], iteration: int
) -> Mapping[str, int]:
    embeddings = population.embed(groups)
    clusters = population.assign(embeddings)
    run.replay.add(groups, iteration=iteration, clusters=clusters, embeddings=embeddings)
    return clusters


def _fit_clusters(run: "Run", population: "Population", iteration: int) -> None:
    run.replay.set_clusters(population.fit(*run.replay.embeddings(), iteration), iteration=iteration)


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
        rollouts = run.generate(part, number, iteration, purpose="rehearse")
        scored = score_rollouts(run, part.task, part.prompts, rollouts, iteration)
        answered = Answered(part, rollouts, scored)
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
    """Ids of those that are of a task that came before the current one, in this run or in one that it begins with."""
    before = {*run.state.tasks}
    return frozenset(
        group.id for group in groups if group.task != run.state.task and (group.task in before or group.iteration == 0)
    )


def replayed_prompts(run: "Run", iteration: int, count: int) -> list[Part]:
    """Up to `count` prompts from the store for the policy to answer anew, by task; none in the mode `samples`.

    Raises:
        TrainingError: one of them is of no task of this run, so that nothing knows how to answer or to grade it.
    """
    if run.config.replay.mode != "prompts":
        return []
    groups = draw(run, count, iteration)
    parts: dict[tuple[str, str], Part] = {}
    for group in groups:
        task = run.tasks.get(group.prompt.task)
        if task is None:
            raise TrainingError(
                f"replay.mode: the replay store holds a prompt of task {group.prompt.task!r}, which is none of this "
                f"run's ({', '.join(run.tasks)}); add the task, or replay samples"
            )
        prompt = run.training_prompts.get(group.prompt.id, group.prompt)  # with its labels, where there are any
        part = parts.setdefault((task.name, group.task), Part(task, [], group.task))
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
        exclude_tasks=_not_earlier(run) if only_earlier else (),
        shares=_shares(run),
    )


def _not_earlier(run: "Run") -> set[str]:
    """The current task, and where tasks take part in iterations before they lead: those that never led."""
    mixed = isinstance(run.config.stream, BlurredStream | DriftingStream)
    return {run.state.task} | (set(run.tasks) - {*run.state.tasks} if mixed else set())


def _shares(run: "Run") -> Mapping[str | int, float] | None:
    """Of the clusters, where a curriculum sets them."""
    if run.population is None or run.config.replay.draw.kind != "per_cluster":
        return None
    shares = run.population.replay_shares()
    return None if shares is None else dict(shares.items())


def up_to_date(run: "Run", groups: Sequence[Group]) -> list[Group]:
    """The same groups, without the reference log-probabilities that are of an earlier reference."""
    since = run.state.reference_since
    return [
        group
        if group.iteration >= since
        else replace(group, experiences=tuple(replace(e, reference_logprobs=None) for e in group.experiences))
        for group in groups
    ]
