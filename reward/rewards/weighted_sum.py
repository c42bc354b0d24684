"""Several rewards in one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from reward.base import BaseReward, Groups, check_scores, restrict
from reward.types import Need, Reward, RewardContext, RewardError, Score

Scores = list[list[Score]]
Values = list[list[float | None]]


@dataclass(frozen=True, slots=True)
class Component:
    """One term of the sum."""

    reward: Reward
    weight: float = 1.0
    normalize: Literal["none", "group", "running"] = "none"
    """`group`: minus the mean, over the sample deviation (n − 1), of the group; `running`: the same over
    everything scored so far, this batch included. Values that do not differ become 0."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared deviations, merged batch by batch (Chan, Golub & LeVeque 1979)."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def merged(self, values: Sequence[float]) -> "Moments":
        if not values:
            return self
        batch = np.asarray(values, dtype=np.float64)
        count = self.count + batch.size
        delta = float(batch.mean()) - self.mean
        m2 = self.m2 + float(((batch - batch.mean()) ** 2).sum()) + delta**2 * self.count * batch.size / count
        return Moments(count, self.mean + delta * batch.size / count, m2)

    def standardize(self, value: float) -> float:
        """0 where the values differ by no more than rounding."""
        deviation = math.sqrt(self.m2 / (self.count - 1)) if self.count > 1 else 0.0
        if deviation <= 1e-9 * max(1.0, abs(self.mean)):
            return 0.0
        return (value - self.mean) / deviation


class WeightedSumReward(BaseReward):
    """Σ weight · component over the components with an opinion on the rollout; no opinion where none has one.

    `Score.components` holds each component's own value, before normalisation and weight, `Score.evidence` its
    evidence and normalised value, both by name. Every component sees only what it declares itself: a
    label-free one stays so beside a verifier.
    """

    name = "weighted_sum"

    def __init__(self, components: Mapping[str, Component]) -> None:
        self._components = dict(components)
        self.needs: frozenset[Need] = frozenset().union(*(c.reward.needs for c in self._components.values()))
        self._running = {name: Moments() for name, c in self._components.items() if c.normalize == "running"}

    def _score(self, groups: Groups, context: RewardContext) -> Scores:
        scores = {name: self._component_scores(name, groups, context) for name in self._components}
        normalized = {name: self._normalized(name, parts) for name, parts in scores.items()}
        return [
            [
                self._combined(
                    {name: parts[g][r] for name, parts in scores.items()},
                    {name: values[g][r] for name, values in normalized.items()},
                )
                for r in range(len(group))
            ]
            for g, group in enumerate(groups)
        ]

    def _component_scores(self, name: str, groups: Groups, context: RewardContext) -> Scores:
        reward = self._components[name].reward
        try:
            scores = reward.score(groups, restrict(context, reward))
            check_scores(reward.name, groups, scores)
        except RewardError as error:
            raise RewardError(f"component {name!r}: {error}") from error
        return scores

    def _normalized(self, name: str, scores: Scores) -> Values:
        values: Values = [[score.value for score in group] for group in scores]
        match self._components[name].normalize:
            case "group":
                return [_standardized(group, Moments().merged(_known(group))) for group in values]
            case "running":
                moments = self._running[name].merged(_known([value for group in values for value in group]))
                self._running[name] = moments
                return [_standardized(group, moments) for group in values]
            case _:
                return values

    def _combined(self, scores: dict[str, Score], normalized: dict[str, float | None]) -> Score:
        components: dict[str, float] = {}
        evidence: dict[str, Any] = {}
        for name, score in scores.items():
            if score.value is not None:
                components[name] = score.value
            if isinstance(self._components[name].reward, WeightedSumReward):
                components |= {f"{name}/{part}": value for part, value in score.components.items()}
            evidence[name] = dict(score.evidence)
            if self._components[name].normalize != "none":
                evidence[name]["normalized"] = normalized[name]
        terms = [self._components[name].weight * value for name, value in normalized.items() if value is not None]
        return Score(_total(terms) if terms else None, components, evidence)

    def state(self) -> dict[str, Any]:
        """Running moments by component, and the states of the components."""
        return {
            "running": {name: [m.count, m.mean, m.m2] for name, m in self._running.items()},
            "components": {name: reward.state() for name, reward in self._stateful()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._running = {name: Moments(*state["running"][name]) for name in self._running}
        for name, reward in self._stateful():
            reward.restore(state["components"][name])

    def _stateful(self) -> list[tuple[str, BaseReward]]:
        return [(name, c.reward) for name, c in self._components.items() if isinstance(c.reward, BaseReward)]


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _standardized(values: Sequence[float | None], moments: Moments) -> list[float | None]:
    return [None if value is None else moments.standardize(value) for value in values]


def _total(terms: Sequence[float]) -> float:
    try:
        return math.fsum(terms)
    except OverflowError:
        return math.inf  # refused like every reward that is not finite
