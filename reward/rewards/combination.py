"""Several rewards in one: a weighted sum, a product, a minimum."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from reward.base import BaseReward, Groups, check_scores, prompt_of, restrict
from reward.config import Normalize
from reward.moments import Moments
from reward.types import Need, Reward, RewardContext, RewardError, Score

Scores = list[list[Score]]
Values = list[list[float | None]]
Weight = float | Mapping[int, float]
"""A factor, or factors by iteration."""


@dataclass(frozen=True, slots=True)
class Component:
    """One part of a combination."""

    reward: Reward
    weight: Weight = 1.0
    """In a weighted sum alone."""
    normalize: Normalize = "none"
    """`group`: minus the mean, over the sample deviation (n − 1), of the group; `task`: the same over everything scored
    so far on the same task, `running`: on any task, this batch included. Values that do not differ become 0."""


class CombinedReward(BaseReward):
    """What combinations share: every component scores what it may see, is normalised, and all are made one number.

    `Score.components` holds each component's own value, before normalisation and weight, `Score.evidence` its
    evidence and normalised value, both by name. Every component sees only what it declares itself: a label-free one
    stays so beside a verifier.
    """

    def __init__(self, components: Mapping[str, Component]) -> None:
        self._components = dict(components)
        self.needs: frozenset[Need] = frozenset().union(*(c.reward.needs for c in self._components.values()))
        self._moments: dict[str, dict[str, Moments]] = {
            name: {} for name, c in self._components.items() if c.normalize in ("task", "running")
        }

    def _stand_ins(
        self, values: Mapping[str, float | None], means: Mapping[str, float], iteration: int
    ) -> Mapping[str, float]:
        """What components without an opinion on a rollout count as. `means` are those of the group, of components that
        have an opinion on any of it; what stating no answer earns unasked is none."""
        return {}

    @abstractmethod
    def _combine(self, values: Mapping[str, float | None], iteration: int) -> float | None:
        """One number from the components' normalised values, stand-ins among them; None is no opinion."""

    def _score(self, groups: Groups, context: RewardContext) -> Scores:
        scores = {name: part_scores(name, c.reward, groups, context) for name, c in self._components.items()}
        tasks = [prompt_of(group[0], context).task if group else "" for group in groups]
        normalized = {name: self._normalized(name, parts, tasks) for name, parts in scores.items()}
        return [
            self._combined_group(
                {name: parts[g] for name, parts in scores.items()},
                {name: values[g] for name, values in normalized.items()},
                context.iteration,
            )
            for g in range(len(groups))
        ]

    def _combined_group(
        self, scores: dict[str, list[Score]], normalized: dict[str, list[float | None]], iteration: int
    ) -> list[Score]:
        known = {
            name: _known([v for v, part in zip(values, scores[name], strict=True) if not part.unasked])
            for name, values in normalized.items()
        }
        means = {name: math.fsum(values) / len(values) for name, values in known.items() if values}
        size = len(next(iter(scores.values())))
        return [
            self._combined(
                {name: parts[r] for name, parts in scores.items()},
                {name: values[r] for name, values in normalized.items()},
                means,
                iteration,
            )
            for r in range(size)
        ]

    def _normalized(self, name: str, scores: Scores, tasks: Sequence[str]) -> Values:
        values: Values = [[score.value for score in group] for group in scores]
        match self._components[name].normalize:
            case "none":
                return values
            case "group":
                return [_standardized(group, Moments().merged(_known(group))) for group in values]
            case "running":
                tasks = [""] * len(tasks)
        moments = self._moments[name]
        for task in dict.fromkeys(tasks):
            batch = [value for group, own in zip(values, tasks, strict=True) if own == task for value in group]
            moments[task] = moments.get(task, Moments()).merged(_known(batch))
        return [_standardized(group, moments[task]) for group, task in zip(values, tasks, strict=True)]

    def _combined(
        self,
        scores: dict[str, Score],
        normalized: dict[str, float | None],
        means: Mapping[str, float],
        iteration: int,
    ) -> Score:
        components: dict[str, float] = {}
        evidence: dict[str, Any] = {}
        for name, score in scores.items():
            components |= part_components(name, self._components[name].reward, score)
            evidence[name] = dict(score.evidence)
            if self._components[name].normalize != "none":
                evidence[name]["normalized"] = normalized[name]
        stand_ins = self._stand_ins(normalized, means, iteration)
        for name, mean in stand_ins.items():
            evidence[name]["counted_as"] = mean
        value = self._combine({**normalized, **stand_ins}, iteration)
        is_unasked = value is not None and all(score.unasked or score.value is None for score in scores.values())
        return Score(value, components, evidence, unasked=is_unasked)

    def state(self) -> dict[str, Any]:
        """Running moments by component and task, and the states of the components."""
        return {
            "running": {
                name: {task: [m.count, m.mean, m.m2] for task, m in moments.items()}
                for name, moments in self._moments.items()
            },
            "components": {name: reward.state() for name, reward in self._stateful()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._moments = {
            name: {task: Moments(*values) for task, values in state["running"][name].items()} for name in self._moments
        }
        for name, reward in self._stateful():
            reward.restore(state["components"][name])

    def _stateful(self) -> list[tuple[str, BaseReward]]:
        return [(name, c.reward) for name, c in self._components.items() if isinstance(c.reward, BaseReward)]


class WeightedSumReward(CombinedReward):
    """Σ weight · component; no opinion where no component has one. A component without an opinion on the rollout counts
    as its mean over the group, so that within the group it speaks neither for the rollout nor against it; one without
    an opinion on any of the group is left out. The zeros of completions that state no answer, about which nobody was
    asked, are no part of that mean. At weight 0 a component is scored for the record, and its opinion does
    not count."""

    name = "weighted_sum"

    def _stand_ins(
        self, values: Mapping[str, float | None], means: Mapping[str, float], iteration: int
    ) -> Mapping[str, float]:
        counting = self._counting(iteration)
        silent = [name for name in counting if values[name] is None]
        return {name: means[name] for name in silent if name in means} if len(silent) < len(counting) else {}

    def _combine(self, values: Mapping[str, float | None], iteration: int) -> float | None:
        weighted = [(weight, values[name]) for name, weight in self._counting(iteration).items()]
        terms = [weight * value for weight, value in weighted if value is not None]
        return _total(terms) if terms else None

    def _counting(self, iteration: int) -> dict[str, float]:
        """The weights that are not 0."""
        weights = {name: weight_at(c.weight, iteration) for name, c in self._components.items()}
        return {name: weight for name, weight in weights.items() if weight != 0}


class ProductReward(CombinedReward):
    """Π component; no opinion where one of them has none.

    Raises:
        RewardError: a component is negative.
    """

    name = "product"

    def _combine(self, values: Mapping[str, float | None], iteration: int) -> float | None:
        for name, value in values.items():
            if value is not None and value < 0:
                raise RewardError(
                    f"component {name!r} of a product is {value:g}: the product of two negative components would be "
                    "good; take a component that stays at 0 or above, or a weighted_sum or minimum instead"
                )
        known = _known(list(values.values()))
        return math.prod(known) if len(known) == len(values) else None


class MinimumReward(CombinedReward):
    """The smallest component; no opinion where one of them has none."""

    name = "minimum"

    def _combine(self, values: Mapping[str, float | None], iteration: int) -> float | None:
        known = _known(list(values.values()))
        return min(known) if len(known) == len(values) else None


def part_scores(name: str, reward: Reward, groups: Groups, context: RewardContext) -> Scores:
    """The scores of one part of a reward: it sees what it declares, and its counters carry its name.

    Raises:
        RewardError: from the part, naming it.
    """
    try:
        scores = reward.score(groups, restrict(counting_as(name, context), reward))
        check_scores(reward.name, groups, scores)
    except RewardError as error:
        raise type(error)(f"component {name!r}: {error}") from error
    return scores


def counting_as(name: str, context: RewardContext) -> RewardContext:
    """The context for a part of a reward: its counters and metrics carry its name."""
    return replace(
        context,
        count=lambda counter, amount: context.count(f"{name}/{counter}", amount),
        log_metric=lambda metric, value: context.log_metric(f"{name}/{metric}", value),
    )


def part_components(name: str, reward: Reward, score: Score) -> dict[str, float]:
    """A part's value under its name, and what it is itself made of under names below that."""
    components = {} if score.value is None else {name: score.value}
    # A reward that is not made of others gives its own value as a component of its own name.
    return components | {f"{name}/{part}": v for part, v in score.components.items() if part != reward.name}


def weight_at(weight: Weight, iteration: int) -> float:
    """The weight in an iteration; a schedule's lies on straight lines between the iterations it names."""
    if not isinstance(weight, Mapping):
        return weight
    points = sorted(weight.items())
    return float(np.interp(iteration, [at for at, _ in points], [value for _, value in points]))


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _standardized(values: Sequence[float | None], moments: Moments) -> list[float | None]:
    return [None if value is None else moments.standardize(value) for value in values]


def _total(terms: Sequence[float]) -> float:
    try:
        return math.fsum(terms)
    except OverflowError:
        return math.inf  # refused like every reward that is not finite
