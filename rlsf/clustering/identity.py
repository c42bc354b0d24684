"""Which task is on, told from the prompts alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rlsf.clustering.memory import NOVEL, Context, nearest_contexts
from rlsf.clustering.projection import check_points, fit_projection
from rlsf.clustering.two_sample import energy_test
from rlsf.config.clustering import ClustersIdentity, DriftIdentity, IdentityConfig
from rlsf.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a detector makes of one iteration's prompts."""

    context: str
    """context-1, context-2, and so on, in the order in which they were first met."""
    is_new: bool
    """Met for the first time."""
    changed: bool
    """It is another one than in the iteration before; the very first one is no change."""
    statistic: float
    """`clusters`: share of the prompts that lie next to the context that was on. `drift`: how unlike it they are, from
    0 (alike) to 1; see `energy_test`."""
    p_value: float | None
    """`drift`: how often a batch of the same context looks as unlike. None where there was nothing to compare with, and
    for `clusters`."""


class Detector(Protocol):
    """Says which context each iteration belongs to. The same points and seed give the same verdicts, also where the
    state went through JSON in between."""

    def observe(self, points: np.ndarray) -> Verdict:
        """
        Args:
            points: (N, H) embeddings of one iteration's prompts, N ≥ 1.

        Raises:
            ValueError: there are none, one is not finite, or of another width than before.
        """
        ...

    def to_json(self) -> dict[str, Any]: ...


@dataclass
class IdentityState:
    """What a detector remembers."""

    observed: int = 0
    """Iterations."""
    current: int = 0
    """Number of the context that is on."""
    streak: int = 0
    """Batches in a row, up to the last one, that looked like another context."""
    contexts: list[Context] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "observed": self.observed,
            "current": self.current,
            "streak": self.streak,
            "contexts": [context.to_json() for context in self.contexts],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "IdentityState":
        """Of `to_json`; an empty one begins anew."""
        if not data:
            return cls()
        contexts = [Context.from_json(context) for context in data["contexts"]]
        return cls(data["observed"], data["current"], data["streak"], contexts)


def make_detector(config: IdentityConfig, seed: int, state: dict[str, Any] | None = None) -> Detector | None:
    """None where the stream itself says which task is on.

    Args:
        state: of `Detector.to_json`, to go on from.
    """
    match config:
        case ClustersIdentity():
            return ContextDetector(config, _looks_elsewhere, seed, IdentityState.from_json(state or {}))
        case DriftIdentity():
            return ContextDetector(config, _energy_gate(config, seed), seed, IdentityState.from_json(state or {}))
    return None


Gate = Callable[[IdentityState, np.ndarray, np.ndarray], tuple[bool, float, float | None]]
"""From the state, (N, H) points and the (N,) contexts they lie next to: whether the batch looks odd, the statistic and
the p-value."""


class ContextDetector:
    """A gate says whether a batch looks odd. After `consecutive` odd ones in a row the context is the one that most of
    the last batch's prompts lie next to, or a new one, if most lie next to none; while the current one still has most,
    as at the beginning of a blurred boundary, it stays.

    A context remembers only prompts that lie next to it, so that a mixed batch does not blur it.

    Lab model, batches of 16 and 32 prompts (`python -m benchmarks.clustering identity`, all in docs/clustering.md): at
    most 0.06 false alarms per 100 iterations on one task; on streams of four tasks that come and come back, a change is
    noticed in the second batch (with `consecutive` 1 in the first, at up to 0.6 false alarms per 100), and who comes
    back is recognised. With boundaries blurred over four iterations `drift` is right in 99% of all iterations,
    `clusters` in 90 to 93%.
    """

    def __init__(self, config: ClustersIdentity | DriftIdentity, gate: Gate, seed: int, state: IdentityState) -> None:
        self._config = config
        self._gate = gate
        self._seed = seed
        self.state = state

    def observe(self, points: np.ndarray) -> Verdict:
        points = self._check(points)
        state = self.state
        state.observed += 1
        if not state.contexts:
            return Verdict(self._open(points), is_new=True, changed=False, statistic=0.0, p_value=None)
        near = nearest_contexts(state.contexts, points, self._config.dimensions)
        is_odd, statistic, p_value = self._gate(state, points, near)
        state.streak = state.streak + 1 if is_odd else 0
        goal = state.current if state.streak < self._config.consecutive else _most(near, state.current)
        changed = goal != state.current
        if goal == NOVEL:
            self._open(points[near == NOVEL])
        elif changed or not is_odd:  # what is odd about a batch that changes nothing is not remembered
            state.current = goal
            state.contexts[goal].remember(points[near == goal], self._config.window, self._seed)
        state.streak = 0 if changed else state.streak
        return Verdict(state.contexts[state.current].name, goal == NOVEL, changed, statistic, p_value)

    def to_json(self) -> dict[str, Any]:
        return self.state.to_json()

    def _open(self, points: np.ndarray) -> str:
        context = Context(f"context-{len(self.state.contexts) + 1}", np.zeros((0, points.shape[1]), dtype=np.float32))
        context.remember(points, self._config.window, self._seed)
        self.state.contexts.append(context)
        self.state.current = len(self.state.contexts) - 1
        return context.name

    def _check(self, points: np.ndarray) -> np.ndarray:
        points = check_points(points).astype(np.float32)
        if not len(points):
            raise ValueError("an iteration without prompts belongs to no context")
        for context in self.state.contexts[:1]:
            if context.points.shape[1] != points.shape[1]:
                raise ValueError(
                    f"points have {points.shape[1]} dimensions, and those so far had {context.points.shape[1]}: embed "
                    "with the same model throughout a run"
                )
        return points


def _most(near: np.ndarray, current: int) -> int:
    """The context, or NOVEL, that most of (N,) points lie next to; where several have as many, the current one if it is
    among them, then a known one."""
    numbers, counts = np.unique(near, return_counts=True)
    winners = numbers[counts == counts.max()]
    return current if current in winners else int(winners.max())


def _looks_elsewhere(state: IdentityState, points: np.ndarray, near: np.ndarray) -> tuple[bool, float, float | None]:
    """The gate of `clusters`."""
    return _most(near, state.current) != state.current, float(np.mean(near == state.current)), None


def _energy_gate(config: DriftIdentity, seed: int) -> Gate:
    """That of `drift`: the energy test against what the current context remembers."""

    def gate(state: IdentityState, points: np.ndarray, near: np.ndarray) -> tuple[bool, float, float | None]:
        known = state.contexts[state.current].points
        projection = fit_projection(np.concatenate([known, points]), config.dimensions)
        statistic, p_value = energy_test(
            projection(known),
            projection(points),
            permutations=config.permutations,
            seed=derive_seed(seed, "identity", state.observed),
        )
        return p_value <= config.level, statistic, p_value

    return gate
