"""How well a signal agrees with the truth, and what else it goes with.

`truth` and `values` hold one row per group and one entry per rollout: whether it is right, and what the signal gave it.
A value of None is no opinion and is left out everywhere. `prompts` names each group's prompt: rollouts of one prompt
are not independent, so intervals resample prompts, and calibration is checked on prompts it was not fitted on.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from rlsf.evaluation.statistics import Estimate, wilson

Truth = Sequence[Sequence[bool]]
Values = Sequence[Sequence[float | None]]

BINS = 10
"""Of a calibration error."""
FOLDS = 5
"""Of prompts, for a calibration."""
RESAMPLES = 2000
"""Of a bootstrap."""
_AT_ONCE = 2**22
"""Numbers of a bootstrap held at the same moment: bounds memory; the draws are the same."""


def auroc(truth: Truth, values: Values) -> float | None:
    """Probability that a right rollout scores above a wrong one, over all rollouts; ties count half. None where one
    kind is missing."""
    known = _known(truth, values)
    return _only(_wins_over_all(known)(np.ones((1, known.prompts))))


def among_answered(values: Values, answers: Sequence[Sequence[str | None]]) -> list[list[float | None]]:
    """The values without those of rollouts that state no answer. Such a rollout is wrong for certain, and many signals
    give it the least: what they know besides shows among the others."""
    return [
        [value if answer else None for value, answer in zip(row, given, strict=True)]
        for row, given in zip(values, answers, strict=True)
    ]


def auroc_within_groups(truth: Truth, values: Values) -> float | None:
    """The same over pairs from one group: all that an update that compares within groups can use."""
    wins, pairs = _wins_by_group(truth, values)
    return float(wins.sum() / pairs.sum()) if pairs.sum() else None


def auroc_estimate(truth: Truth, values: Values, prompts: Sequence[str], *, seed: int) -> Estimate | None:
    """`auroc` with a 95% interval (see `_interval`)."""
    known = _known(truth, values, prompts)
    varies = len(np.unique(known.values)) > 1
    return _interval(_wins_over_all(known), known.prompts, seed, width=len(known.values), varies=varies)


def auroc_within_groups_estimate(truth: Truth, values: Values, prompts: Sequence[str], *, seed: int) -> Estimate | None:
    """`auroc_within_groups` with a 95% interval over the prompts that have a pair."""
    wins, pairs = _wins_by_group(truth, values)
    compared = np.flatnonzero(pairs)
    _, prompt = np.unique([prompts[index] for index in compared], return_inverse=True)
    count = int(prompt.max(initial=-1)) + 1
    by_prompt = np.stack([np.bincount(prompt, part[compared], count) for part in (wins, pairs)], axis=1)

    def value(weights: np.ndarray) -> np.ndarray:
        won, possible = (weights @ by_prompt).T
        return _ratio(won, possible)

    varies = any(len({value for value in values[index] if value is not None}) > 1 for index in compared)
    return _interval(value, count, seed, width=count, varies=varies)


def spearman(truth: Truth, values: Values) -> float | None:
    """Rank correlation with the truth, ties sharing their mean rank; None where either does not vary."""
    known = _known(truth, values)
    return pearson(stats.rankdata(known.values), stats.rankdata(known.right))


def pearson(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float | None:
    """Linear correlation; None where either does not vary."""
    x, y = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if len(x) == 0 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def calibration_error(truth: Truth, values: Values) -> float | None:
    """Expected calibration error: Σ |bin| / N · |share right − mean value| over BINS bins of equal width on [0, 1]
    (Guo et al. 2017, arXiv 1706.04599, eq. 3). A bin holds its lower edge, the last one 1 as well.

    None where there is no value, or one outside [0, 1]: such a signal is no probability as it stands.
    """
    known = _known(truth, values)
    if len(known.values) == 0 or known.values.min() < 0 or known.values.max() > 1:
        return None
    return _calibration_error(known.right, known.values)


def calibrated_error(truth: Truth, values: Values, prompts: Sequence[str], *, seed: int) -> float | None:
    """`calibration_error` of what isotonic regression makes of the values: a function from value to share right that
    never falls, which fits a signal of any scale.

    The prompts are dealt into FOLDS folds at random; each fold is calibrated by a regression on the others. A signal
    that knows nothing becomes the share right overall, which is well calibrated: read this beside the AUROC. None
    with fewer than two prompts.
    """
    from sklearn.isotonic import IsotonicRegression

    known = _known(truth, values, prompts)
    if known.prompts < 2:
        return None
    fold = np.random.default_rng(seed).permutation(known.prompts)[known.prompt] % min(FOLDS, known.prompts)
    calibrated = np.empty_like(known.values)
    for held_out in range(fold.max() + 1):
        inside, others = fold == held_out, fold != held_out
        regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        regression.fit(known.values[others], known.right[others].astype(float))
        calibrated[inside] = regression.predict(known.values[inside])
    return _calibration_error(known.right, calibrated)


class _Known(NamedTuple):
    """The rollouts with an opinion, as arrays of shape (N,)."""

    right: np.ndarray
    values: np.ndarray
    prompt: np.ndarray
    """Number of each rollout's prompt, from 0."""
    prompts: int
    """How many there are."""


def _known(truth: Truth, values: Values, prompts: Sequence[str] | None = None) -> _Known:
    names = range(len(truth)) if prompts is None else prompts
    rows = [
        (right, value, name)
        for rights, group, name in zip(truth, values, names, strict=True)
        for right, value in zip(rights, group, strict=True)
        if value is not None
    ]
    found, prompt = np.unique([name for _, _, name in rows], return_inverse=True)
    right = np.array([right for right, _, _ in rows], dtype=bool)
    return _Known(right, np.array([value for _, value, _ in rows], dtype=float), prompt, len(found))


def _wins_over_all(known: _Known) -> Callable[[np.ndarray], np.ndarray]:
    """The AUROC as a function of how often each prompt counts: (B, prompts) to (B,), NaN where one kind is missing."""
    order = np.argsort(known.values, kind="stable")
    right, prompt = known.right[order], known.prompt[order]
    levels = np.flatnonzero(np.diff(known.values[order], prepend=-np.inf))  # where a run of ties begins

    def value(weights: np.ndarray) -> np.ndarray:
        if len(order) == 0:
            return np.full(len(weights), np.nan)
        rollouts = weights[:, prompt]
        good = np.add.reduceat(rollouts * right, levels, axis=1)
        bad = np.add.reduceat(rollouts * ~right, levels, axis=1)
        beaten = bad.cumsum(axis=1) - bad / 2
        return _ratio((good * beaten).sum(axis=1), good.sum(axis=1) * bad.sum(axis=1))

    return value


def _wins_by_group(truth: Truth, values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Per group: pairs of a right and a wrong rollout in which the right one scores higher (a tie is half), and all
    such pairs."""
    wins, pairs = np.zeros(len(truth)), np.zeros(len(truth))
    for index, (rights, group) in enumerate(zip(truth, values, strict=True)):
        scored = [(value, right) for value, right in zip(group, rights, strict=True) if value is not None]
        good = np.array([value for value, right in scored if right])
        bad = np.array([value for value, right in scored if not right])
        difference = good[:, None] - bad[None, :]
        wins[index] = (difference > 0).sum() + 0.5 * (difference == 0).sum()
        pairs[index] = difference.size
    return wins, pairs


def _interval(
    value: Callable[[np.ndarray], np.ndarray], prompts: int, seed: int, *, width: int, varies: bool
) -> Estimate | None:
    """The value with every prompt counted once, and a percentile bootstrap 95% interval over prompts.

    Resamples in which it is not defined are passed over. Where all others agree (a single prompt, or every pair won)
    the bootstrap has no spread although the figure is not certain: there Wilson's interval on so many prompts stands.

    Args:
        width: numbers that `value` handles per resample.
        varies: false for a constant signal, whose figure is 1/2 whatever is drawn.
    """
    point = _only(value(np.ones((1, prompts))))
    if point is None:
        return None
    if not varies:
        return Estimate(point, point, point, prompts)
    generator, at_once = np.random.default_rng(seed), max(1, _AT_ONCE // width)
    parts = [min(at_once, RESAMPLES - done) for done in range(0, RESAMPLES, at_once)]
    found = np.concatenate([value(generator.multinomial(prompts, [1 / prompts] * prompts, part)) for part in parts])
    low, high = np.nanquantile(found, [0.025, 0.975])
    if high - low < 1e-12:
        return wilson([point] * prompts)
    return Estimate(point, float(low), float(high), prompts)


def _only(values: np.ndarray) -> float | None:
    return None if np.isnan(values[0]) else float(values[0])


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _calibration_error(right: np.ndarray, values: np.ndarray) -> float:
    bins = np.minimum((values * BINS).astype(int), BINS - 1)
    return sum(
        float(np.mean(bins == index) * abs(right[bins == index].mean() - values[bins == index].mean()))
        for index in np.unique(bins)
    )
