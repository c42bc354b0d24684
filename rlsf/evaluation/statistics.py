"""Estimators and intervals for accuracies measured on a sample of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts with its 95% interval."""

    value: float
    low: float
    high: float
    n: int
    """Prompts, the independent unit."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(shares: Sequence[float], samples: int = 1) -> Estimate:
    """Mean of per-prompt accuracies in [0, 1] with Wilson's 95% interval (Wilson 1927).

    Several samples of one prompt are not independent, so the interval is taken at the effective sample size
    p(1 − p) / Var(mean) (Korn & Graubard 1998), which never counts a sample twice: at most n · samples. With one sample
    per prompt that is Wilson's own interval on n prompts.

    Args:
        shares: per prompt, the share of its samples that were right.
        samples: per prompt.

    Raises:
        ValueError: no prompts.
    """
    if len(shares) == 0:
        raise ValueError("an accuracy needs at least one prompt")
    values = np.asarray(shares, dtype=float)
    n, p = len(values), float(values.mean())
    n_effective = float(n)
    variance = values.var() / n  # population deviation: equals p(1 − p)/n when every share is 0 or 1
    if variance > 0:
        n_effective = min(p * (1 - p) / variance, float(n * samples))
    z = float(stats.norm.ppf(0.975))
    centre = (p + z**2 / (2 * n_effective)) / (1 + z**2 / n_effective)
    half = z / (1 + z**2 / n_effective) * np.sqrt(p * (1 - p) / n_effective + z**2 / (4 * n_effective**2))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), n)


def paired_bootstrap(
    before: Sequence[float], after: Sequence[float], *, seed: int, resamples: int = 10_000
) -> Estimate:
    """Mean of after − before over the same prompts, with a percentile bootstrap 95% interval over prompts.

    Raises:
        ValueError: the two differ in length, or are empty.
    """
    if len(before) != len(after) or len(before) == 0:
        raise ValueError(f"a paired comparison needs the same prompts twice, got {len(before)} and {len(after)}")
    differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    generator, n = np.random.default_rng(seed), len(differences)
    at_once = max(1, 2**22 // n)  # bounds memory; the draws are the same
    parts = [min(at_once, resamples - done) for done in range(0, resamples, at_once)]
    means = np.concatenate([differences[generator.integers(n, size=(part, n))].mean(axis=1) for part in parts])
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(differences.mean()), float(low), float(high), n)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that at least one of k samples is right, unbiased from n samples of which `correct` are
    (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    Raises:
        ValueError: k is not between 1 and n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@k needs 1 <= k <= n, got k={k}, n={n}")
    return 1.0 - comb(n - correct, k) / comb(n, k)
