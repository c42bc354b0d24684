"""Notices that a run goes astray, and says what to do. Decides on numbers alone; `rlsf.guarding` measures and acts."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from scipy import stats

from rlsf.config.guard import Action, CanaryConfig, GuardConfig, WatchConfig

_FORMAT = 4
"""Of the state below: one in another format is not gone on with."""

_OF_THIS_ADAPTER = ("validation/", "guard/")
"""How the names of metrics begin that describe the adapter of their own iteration. What rollouts and updates show in
an iteration is how the adapter of the one before fares."""

Halves = tuple[tuple[float, ...], tuple[float, ...]]
"""A measurement of the canary: by prompt, the shares of right answers among one half of the samples and among the
other. The best of many looks lucky on what it was chosen by; on the other half it is as good as it is."""


@dataclass
class GuardState:
    """What the guard remembers; part of every checkpoint. All but `rollbacks` starts anew with each task, and where a
    resumed run has other settings."""

    format: int = _FORMAT
    task: str = ""
    config: str = ""
    """Digest of the settings that it follows: with others it begins anew."""
    votes: dict[str, str] = field(default_factory=dict)
    """By canary prompt: the answer that the policy voted for when the task began."""
    shares: list[Halves] = field(default_factory=list)
    """The last canary measurements, oldest first."""
    best: tuple[float, ...] = ()
    """By prompt, shares of right answers over the best window so far, which ended with `best_iteration`."""
    highest: tuple[float, float] = (0.0, 0.0)
    """The same of each half alone."""
    peaks: Halves = ((), ())
    """By prompt, what each half says of the window in which the other was the highest: a fall is measured from here."""
    looks: int = 1
    """Measurements that the task has room for."""
    best_iteration: int | None = None
    """Whose adapter is the one to go back to."""
    recent: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """By watch, the last values of its metric, oldest first, with the iteration whose adapter each describes."""
    start: dict[str, float] = field(default_factory=dict)
    """What relative bounds are relative to."""
    in_trouble: list[str] = field(default_factory=list)
    """What was reported and has not recovered since."""
    rollbacks: int = 0
    """Over the whole run."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "GuardState":
        """A state in another format begins anew. Raises ValueError where a value is of another type."""
        if data.get("format") != _FORMAT:
            return cls(rollbacks=data.get("rollbacks", 0))
        return TypeAdapter(cls).validate_python(data)

    def may_go_back_to(self) -> set[int]:
        """Iterations whose adapters the guard may still go back to, of those up to now."""
        described = {adapter for values in self.recent.values() for adapter, _ in values}
        return described if self.best_iteration is None else described | {self.best_iteration}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, and why."""

    actions: tuple[Action, ...]
    reason: str
    to_iteration: int | None = None
    """Whose adapter to go back to, where an action is to roll back."""


class Guard:
    """Follows the figures of one run."""

    def __init__(self, config: GuardConfig, state: GuardState) -> None:
        self._config = config
        self.state = state
        self.has_just_begun = False
        """Whether nothing was observed since `begin`."""

    def follows(self, task: str) -> bool:
        """Whether what it remembers is about this task, under the settings of now."""
        return self.state.task == task and self.state.config == _digest(self._config)

    def begin(self, task: str, iteration: int, *, iterations: int = 1) -> None:
        """A task of so many `iterations` begins after `iteration`: how earlier ones looked says nothing about it."""
        self.has_just_begun = True
        every = self._config.canary.every if self._config.canary is not None else 1
        self.state = GuardState(
            task=task,
            config=_digest(self._config),
            rollbacks=self.state.rollbacks,
            best_iteration=iteration,
            looks=math.ceil(iterations / every),
        )

    @property
    def has_canary(self) -> bool:
        """Whether a canary decides which adapter is the best: there is one, and it has something to say."""
        return self._config.canary is not None and len(self.state.best) > 0

    def take_baseline(self, shares: Halves) -> None:
        """What the canary says before anything was learned: it stands for a whole window."""
        assert self._config.canary is not None
        self.state.shares = [shares] * self._config.canary.window
        self.state.best = tuple(np.mean(shares, axis=0).tolist())
        self.state.highest = (float(np.mean(shares[0])), float(np.mean(shares[1])))
        self.state.peaks = shares

    def observe(self, iteration: int, metrics: Mapping[str, float], canary: Halves | None = None) -> list[Verdict]:
        """Take in an iteration, and update `state.best_iteration`.

        Without a canary, the one to go back to is the first adapter that the last windows describe in which nothing
        that rolls back was in trouble.

        Args:
            canary: None where it was not measured.

        Returns:
            What is newly in trouble: nothing twice until it has recovered, and at most one verdict that rolls back.
        """
        self.has_just_begun = False
        verdicts: list[Verdict | None] = []
        if self.has_canary and self._config.canary is not None and canary is not None:
            verdicts.append(self._follow(self._config.canary, iteration, canary))  # first: it may find a better adapter
        verdicts += [self._watch(watch, iteration, metrics) for watch in self._config.watch]
        if not self.has_canary and self._is_sound():
            self.state.best_iteration = max(self._first_described(), self.state.best_iteration or 0)
        return self._with_one_way_back([verdict for verdict in verdicts if verdict is not None])

    def _watch(self, watch: WatchConfig, iteration: int, metrics: Mapping[str, float]) -> Verdict | None:
        key = _key(watch)
        if watch.metric not in metrics:
            return None
        adapter = iteration if watch.metric.startswith(_OF_THIS_ADAPTER) else iteration - 1
        recent = [*self.state.recent.get(key, []), (adapter, metrics[watch.metric])][-watch.window :]
        self.state.recent[key] = recent
        if len(recent) < watch.window:
            return None
        value = float(np.mean([value for _, value in recent]))
        if watch.relative and key not in self.state.start:
            self.state.start[key] = value
            return None
        bound = relative_bound(self.state.start[key], _threshold(watch)) if watch.relative else _threshold(watch)
        is_trouble = value > bound if watch.above is not None else value < bound
        if not self._is_news(key, is_trouble):
            return None
        side = "above" if watch.above is not None else "below"
        what = f"{_threshold(watch):g} times its start, {bound:.4g}" if watch.relative else f"{bound:.4g}"
        reason = f"{watch.metric} is {value:.4g} (mean of {watch.window}), {side} {what}"
        return Verdict(watch.then, reason, self.state.best_iteration)

    def _follow(self, canary: CanaryConfig, iteration: int, shares: Halves) -> Verdict | None:
        self.state.shares = [*self.state.shares, shares][-canary.window :]
        if len(self.state.shares) < canary.window:
            return None
        window = np.mean(self.state.shares, axis=0)
        self._choose(iteration, shares, window, canary.better_by)
        self._raise_peaks(window)
        peak, now = np.mean(self.state.peaks, axis=0), window.mean(axis=0)
        drop = peak - now
        is_trouble = drop.mean() > canary.max_drop * peak.mean() and self._is_beyond_chance(drop, canary)
        if not self._is_news("canary", is_trouble):
            return None
        what = "references" if canary.truth == "references" else "the votes it began with"
        reason = (
            f"{now.mean():.3f} of the canary's answers agree with {what} (mean of {canary.window}), down from "
            f"{peak.mean():.3f} at their best"
        )
        return Verdict(canary.then, reason, self.state.best_iteration)

    def _choose(self, iteration: int, last: Halves, window: np.ndarray, better_by: float) -> None:
        """Remember the adapter where it is the best so far. One that is not clearly better than an earlier one does not
        take over, like the larger model of the one-standard-error rule (Breiman et al. 1984, section 3.4.3).

        Args:
            window: (2, prompts), mean of the last measurements.
        """
        now = window.mean(axis=0)
        gain = now - np.asarray(self.state.best)
        margin = better_by * gain.std(ddof=1) / math.sqrt(len(gain)) if len(gain) > 1 else 0.0
        is_last_as_good = np.mean(last) >= now.mean() - 1e-12  # it is the last of the window whose adapter is kept
        if gain.mean() > margin and is_last_as_good:
            self.state.best, self.state.best_iteration = tuple(now.tolist()), iteration

    def _raise_peaks(self, window: np.ndarray) -> None:
        """Where a half of the (2, prompts) window is higher than ever, what the other half says of it is its peak."""
        highest, peaks = list(self.state.highest), list(self.state.peaks)
        for half, other in ((0, 1), (1, 0)):
            if window[half].mean() > highest[half]:
                highest[half], peaks[other] = float(window[half].mean()), tuple(window[other].tolist())
        self.state.highest, self.state.peaks = (highest[0], highest[1]), (peaks[0], peaks[1])

    def _is_beyond_chance(self, drop: np.ndarray, canary: CanaryConfig) -> bool:
        """Whether the mean of (prompts,) paired differences is above 0 by a one-sided t test, or a sign test where all
        are the same, whose level allows for the task's looks: Bonferroni's over the windows that do not overlap."""
        level = canary.false_alarms * min(1.0, canary.window / self.state.looks)
        if np.ptp(drop) < 1e-12:
            return bool(drop.mean() > 1e-12 and 0.5 ** len(drop) < level)
        return bool(stats.ttest_1samp(drop, 0.0, alternative="greater").pvalue < level)

    def _is_news(self, key: str, is_trouble: bool) -> bool:
        known = key in self.state.in_trouble
        if is_trouble and not known:
            self.state.in_trouble.append(key)
        elif known and not is_trouble:
            self.state.in_trouble.remove(key)
        return is_trouble and not known

    def _rolling_back(self) -> dict[str, WatchConfig]:
        """The watches that roll back, by key. One whose metric was never there has no say, but for validation: that is
        measured now and then, and nobody knows how an adapter fares there before it is."""
        return {
            key: watch
            for watch in self._config.watch
            if "roll_back" in watch.then
            and ((key := _key(watch)) in self.state.recent or watch.metric.startswith("validation/"))
        }

    def _is_sound(self) -> bool:
        """Whether the watches that roll back have seen whole windows and nothing wrong in them."""
        watches = self._rolling_back()
        whole = all(len(self.state.recent.get(key, ())) == watch.window for key, watch in watches.items())
        return bool(watches) and whole and not watches.keys() & set(self.state.in_trouble)

    def _first_described(self) -> int:
        """The oldest adapter that the windows of the watches that roll back look at."""
        return min(adapter for key in self._rolling_back() for adapter, _ in self.state.recent[key])

    def _with_one_way_back(self, verdicts: list[Verdict]) -> list[Verdict]:
        """Only the first verdict that rolls back does, and lowers the rate if it should; past `max_rollbacks` it ends
        the run as well."""
        result: list[Verdict] = []
        rolled_back = False
        for verdict in verdicts:
            if "roll_back" in verdict.actions and rolled_back:
                others = tuple(action for action in verdict.actions if action not in ("roll_back", "lower_rate"))
                verdict = replace(verdict, actions=others or ("warn",))
            elif "roll_back" in verdict.actions:
                rolled_back = True
                if self.state.rollbacks >= self._config.max_rollbacks and "stop" not in verdict.actions:
                    verdict = replace(verdict, actions=(*verdict.actions, "stop"))
            result.append(verdict if "roll_back" in verdict.actions else replace(verdict, to_iteration=None))
        if rolled_back:
            self.state.rollbacks += 1
            self.state.shares, self.state.in_trouble = [], []
            self.state.recent = {key: [] for key in self.state.recent}  # each has to see a whole window again
        return result


def _key(watch: WatchConfig) -> str:
    return watch.model_dump_json()


def _digest(config: GuardConfig) -> str:
    return hashlib.sha256(f"{_FORMAT} {config.model_dump_json()}".encode()).hexdigest()[:16]


def _threshold(watch: WatchConfig) -> float:
    bound = watch.above if watch.above is not None else watch.below
    assert bound is not None, "the config has one of the two"
    return bound


def relative_bound(start: float, factor: float) -> float:
    """What `factor` times the start is, and of a negative start as much further below or above: half of −1 is −1.5,
    since it is lower, and twice −1 is 0."""
    return start + (factor - 1) * abs(start)
