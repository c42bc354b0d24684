"""The formulas of drawing: weights within a stratum, and how strata share a draw."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rlsf.config.replay import PerClusterDraw, PerTaskDraw, PrioritizedDraw, RecencyDraw, SuccessDraw, UniformDraw

Within = UniformDraw | PrioritizedDraw | RecencyDraw
Draw = Within | PerTaskDraw | PerClusterDraw | SuccessDraw

Label = str | int | None
"""What strata with a common quota are called: a task, a cluster, a bucket; None: no cluster, no reward, no quotas."""

Shares = Mapping[str | int, float]


def within_of(draw: Draw) -> Within:
    """How groups are drawn that share a quota."""
    return draw if isinstance(draw, Within) else draw.within


def log_weights(within: Within, *, priorities: Sequence[float], iterations: NDArray[np.int64]) -> NDArray[np.float64]:
    """log(priority^alpha · decay^(−iteration)), and its like; −inf is never drawn.

    decay^age = decay^now · decay^(−iteration), and the first factor is common to all groups: leaving it out makes
    weights independent of the moment, so that they need no update as groups age. In logarithms nothing overflows.
    """
    if within.kind == "uniform":
        return np.zeros(len(iterations))
    if within.kind == "recency":
        return np.multiply(iterations, math.log(2) / within.half_life, dtype=np.float64)
    by_age = np.multiply(iterations, -math.log(within.age_decay), dtype=np.float64)
    if within.alpha == 0:  # 0^0 = 1: uniform up to age
        return by_age
    # One by one: a vectorised logarithm might round differently in batches of other sizes, and draws would differ.
    logs = (math.log(priority) if priority > 0 else -math.inf for priority in priorities)
    return within.alpha * np.fromiter(logs, float, len(iterations)) + by_age


def label_of(draw: Draw, *, task: str, cluster: int | None, success: float | None) -> Label:
    """Whose quota a group counts towards."""
    match draw:
        case PerTaskDraw():
            return task
        case PerClusterDraw():
            return cluster
        case SuccessDraw():
            return None if success is None else bucket_of(success, draw.buckets)
    return None


def bucket_of(success: float, buckets: int) -> int:
    """Success rates are clipped to [0, 1]; 1 belongs to the last bucket."""
    return min(int(min(max(success, 0.0), 1.0) * buckets), buckets - 1)


def check_shares(draw: Draw, shares: Shares | None) -> None:
    """Raises ValueError where `shares` cannot be what they are given for; the message names the stratum."""
    if shares is None:
        return
    if not isinstance(draw, PerTaskDraw | PerClusterDraw):
        raise ValueError(f"shares are for the draws per_task and per_cluster, not for {draw.kind}")
    for label, share in shares.items():
        if not (math.isfinite(share) and share >= 0):
            raise ValueError(f"shares: {share} of {label!r} is not a finite number of at least 0")


def shares_of(draw: Draw, labels: Sequence[Label], shares: Shares | None) -> list[float]:
    """The share of each of `labels`, up to a common factor and not all 0. `shares` overrides those of the config."""
    if isinstance(draw, SuccessDraw):
        centres = [(int(label or 0) + 0.5) / draw.buckets for label in labels]
        squares = [(centre - draw.target) ** 2 for centre in centres]
        nearest = min(squares)  # a common factor; without it all could round to 0
        return [math.exp(-(square - nearest) / (2 * draw.width**2)) for square in squares]
    given: Shares = shares if shares is not None else getattr(draw, "shares", {})
    found = [0.0 if label is None else float(given.get(label, 0.0)) for label in labels]
    largest = max(found)
    return [share / largest for share in found] if largest > 0 else [1.0] * len(labels)


def apportion(n: int, shares: Sequence[float], rng: np.random.Generator) -> list[int]:
    """Seats that add up to `n`. Each quota n · share / Σ shares is rounded down or up, up with the probability of its
    fraction, so that the expectation is the quota (systematic sampling in random order, Madow 1949)."""
    weights = np.asarray(shares, dtype=float)
    quotas = n * (weights / weights.sum())
    seats = np.floor(quotas).astype(int)
    left = n - int(seats.sum())
    if left > 0:
        order = rng.permutation(len(shares))
        sums = np.cumsum((quotas - seats)[order])
        sums[-1] = left  # but for rounding it is
        seats[order] += np.diff(np.floor(sums + rng.random()), prepend=0).astype(int)
    return seats.tolist()
