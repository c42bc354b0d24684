"""Standardised principal components: the space in which points are compared."""

from dataclasses import dataclass

import numpy as np

LEAST_DEVIATION = 1e-4
"""Dimensions that vary less than this share of the others' root mean square count as constant: what differs there is
rounding, and standardising would blow it up."""


@dataclass(frozen=True, slots=True)
class Projection:
    """Standardises each of H dimensions, then rotates onto D ≤ H principal components.

    Hidden states have a few dimensions that are hundreds of times as large as the others and say nothing; see
    `rlsf.clustering.embeddings` for what standardising gives.
    """

    mean: np.ndarray
    """(H,) float64."""
    rotation: np.ndarray
    """(H, D) float64, divided by each dimension's deviation."""

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(N, H) to (N, D), float64."""
        return (np.asarray(points, dtype=np.float64) - self.mean) @ self.rotation


def fit_projection(points: np.ndarray, dimensions: int) -> Projection:
    """The principal components with the largest variance of (N, H) points, at most `dimensions` of them: fewer where
    the points span fewer. Without points, or where all are the same, there is one, and everything is zero in it."""
    points = np.asarray(points, dtype=np.float64)
    count, width = points.shape
    mean = points.mean(axis=0) if count else np.zeros(width)
    deviation = points.std(axis=0) if count else np.zeros(width)
    varies = deviation > LEAST_DEVIATION * np.sqrt(np.mean(deviation**2)) if width else np.zeros(0, dtype=bool)
    scale = np.where(varies, 1 / np.where(varies, deviation, 1.0), 0.0)
    standardised = (points - mean) * scale
    variances, axes = np.linalg.eigh(standardised.T @ standardised / max(count, 1))
    kept = np.argsort(-variances, kind="stable")[:dimensions]
    kept = kept[variances[kept] > 1e-9 * max(float(varies.sum()), 1.0)]
    rotation = axes[:, kept] if len(kept) else np.zeros((width, 1))
    # An eigenvector's sign is arbitrary: the largest entry is made positive.
    if len(kept):
        largest = np.abs(rotation).argmax(axis=0)
        rotation = rotation * np.where(rotation[largest, np.arange(len(kept))] < 0, -1.0, 1.0)
    return Projection(mean, scale[:, None] * rotation)


def check_points(points: np.ndarray) -> np.ndarray:
    """(N, H) as float64.

    Raises:
        ValueError: it has another shape, or a value is not finite.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2:
        raise ValueError(f"points must be (N, H), not {points.shape}")
    broken = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(broken):
        raise ValueError(
            f"{len(broken)} of {len(points)} embeddings are not finite, the first is number {broken[0]}: the model "
            "that embeds is broken, or its precision too low for it"
        )
    return points
