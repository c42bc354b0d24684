"""Are two samples of the same distribution? The energy test with a permutation p-value."""

import numpy as np
from scipy.spatial.distance import cdist


def energy_test(first: np.ndarray, second: np.ndarray, *, permutations: int, seed: int) -> tuple[float, float]:
    """Székely & Rizzo 2013 ("Energy statistics"): E = 2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖, over all pairs, and how often
    a random split of the pooled points has one as large.

    Args:
        first: (N, D), N ≥ 1.
        second: (M, D), M ≥ 1.

    Returns:
        The coefficient of inhomogeneity H = E / (2 E‖X − Y‖), from 0 (the same points) to 1; 0 where all points are the
        same. And its p-value, (1 + splits as extreme) / (1 + permutations).
    """
    pooled = np.concatenate([first, second])
    distances = cdist(pooled, pooled)
    is_first = np.arange(len(pooled)) < len(first)
    rng = np.random.default_rng(seed)
    splits = rng.permuted(np.broadcast_to(is_first, (permutations, len(pooled))), axis=1)
    energies, crossing = _energies(distances, np.concatenate([is_first[None], splits]))
    as_extreme = int(np.sum(energies[1:] >= energies[0] - 1e-12 * max(1.0, float(distances.max()))))
    inhomogeneity = float(energies[0] / crossing[0]) if crossing[0] > 0 else 0.0
    return max(inhomogeneity, 0.0), (1 + as_extreme) / (1 + permutations)


def _energies(distances: np.ndarray, splits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E and 2 E‖X − Y‖ of each of (S, N) splits of N points, by their (N, N) distances."""
    inside = splits.astype(np.float64)
    outside = 1 - inside
    sizes, others = inside.sum(axis=1), outside.sum(axis=1)
    towards = inside @ distances
    within = (towards * inside).sum(axis=1)
    between = (towards * outside).sum(axis=1)
    beyond = distances.sum() - within - 2 * between
    crossing = 2 * between / (sizes * others)
    return crossing - within / sizes**2 - beyond / others**2, crossing
