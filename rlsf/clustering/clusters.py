"""Clusters of points whose numbers stay the same from fit to fit.

Adjusted Rand index against the true task, prompts of seven tasks embedded by the policy, in 16 dimensions (noise counts
as a cluster of its own):

                               k-means with k = 7    DBSCAN, eps by the knee    HDBSCAN, clusters of 5 and more
    lab model, lab tasks       0.77                  0.58 (10 clusters)         0.61 (5)
    SmolLM2-135M, lab tasks    1.00                  0.83 (11)                  0.95 (8)
    SmolLM2-135M, longer ones  1.00                  0.90 (11)                  1.00 (7)

Where each task comes in five wordings, k-means with the right k finds the tasks, the others every wording of every
task. `python -m benchmarks.clustering embeddings` measures it.
"""

import io
from dataclasses import dataclass, replace
from zipfile import BadZipFile

import numpy as np
from scipy.optimize import linear_sum_assignment

from rlsf.clustering.grouping import NOISE, Anchors, find_anchors
from rlsf.clustering.projection import Projection, check_points, fit_projection
from rlsf.config.clustering import ClusterConfig

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Clusters:
    """What `fit_clusters` found."""

    projection: Projection
    anchors: Anchors
    is_open: bool
    """Whether a point may belong to no cluster."""
    next_label: int
    """Of a cluster that is found later: numbers are never used again."""

    @property
    def labels(self) -> tuple[int, ...]:
        """Numbers of the clusters, in ascending order."""
        return tuple(int(label) for label in np.unique(self.anchors.labels) if label != NOISE)

    def assign(self, points: np.ndarray) -> np.ndarray:
        """The cluster of each of (N, H) points: (N,) int64, −1 for noise.

        k-means: the nearest centroid's. DBSCAN: the nearest core point's, within eps. HDBSCAN: that of the nearest
        point of the fit, within the widest gap of its cluster.

        Raises:
            ValueError: a point is not finite, or of another width than those of the fit.
        """
        return self.anchors.nearest(self.project(points), within_reach=self.is_open)

    def project(self, points: np.ndarray) -> np.ndarray:
        """(N, H) to (N, D): into the space in which clusters were found. Raises ValueError as `assign` does."""
        points = check_points(points)
        width = len(self.projection.mean)
        if points.shape[1] != width:
            raise ValueError(
                f"points have {points.shape[1]} dimensions, and the clusters were found in {width}: embed with the "
                "model of the fit, or fit anew"
            )
        return self.projection(points)

    def to_bytes(self) -> bytes:
        """An .npz archive: `from_bytes` gives back the same, bit for bit."""
        file = io.BytesIO()
        np.savez(
            file,
            format=_FORMAT,
            mean=self.projection.mean,
            rotation=self.projection.rotation,
            anchors=self.anchors.points,
            labels=self.anchors.labels,
            reach=self.anchors.reach,
            is_open=self.is_open,
            next_label=self.next_label,
        )
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Clusters":
        """Raises ValueError where the data is not what `to_bytes` wrote."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as saved:
                if int(saved["format"]) != _FORMAT:
                    raise ValueError(f"format {int(saved['format'])} is not {_FORMAT}")
                return cls(
                    Projection(saved["mean"], saved["rotation"]),
                    Anchors(saved["anchors"], saved["labels"], saved["reach"]),
                    bool(saved["is_open"]),
                    int(saved["next_label"]),
                )
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ValueError(f"no saved clusters of this version: {error}; fit them anew") from error


def fit_clusters(points: np.ndarray, config: ClusterConfig, seed: int, previous: Clusters | None = None) -> Clusters:
    """Clusters of (N, H) points; of more than `config.limit`, a random sample drawn from `seed` decides.

    The first fit numbers them from 0, the largest first. Later ones keep the number of the previous cluster with which
    a cluster shares most points (see `match_labels`); others get new numbers, the largest first. Without points there
    are no clusters; fewer points than a cluster needs are noise, and k-means finds no more clusters than there are
    distinct points.

    Args:
        previous: in a space of the same width.

    Raises:
        ValueError: a point is not finite, or of another width than those of `previous`.
    """
    points = check_points(points)
    if len(points) > config.limit:
        points = points[np.sort(np.random.default_rng(seed).permutation(len(points))[: config.limit])]
    projection = fit_projection(points, config.dimensions)
    projected = projection(points)
    anchors = find_anchors(projected, config, seed)
    is_open = config.kind != "kmeans"
    found = anchors.nearest(projected, within_reach=is_open)
    before = np.full(len(points), NOISE)
    next_label = 0
    if previous is not None:
        before = previous.anchors.nearest(previous.project(points), within_reach=True)
        next_label = previous.next_label
    numbers = match_labels(found, before, next_label)
    labels = np.array([numbers.get(int(label), NOISE) for label in anchors.labels], dtype=np.int64)
    next_label = max([next_label, *(number + 1 for number in numbers.values())])
    return Clusters(projection, replace(anchors, labels=labels), is_open, next_label)


def match_labels(found: np.ndarray, before: np.ndarray, next_label: int) -> dict[int, int]:
    """New numbers of the clusters in `found`.

    One-to-one, so that as many points as possible keep their number (Hungarian algorithm: Kuhn 1955). A pair that
    shares less than half of the smaller one's points is not the same cluster.

    Args:
        found: (N,) labels of a fit.
        before: (N,) labels of the same points by the previous one; NOISE where it had none.
        next_label: the first number that was never used.
    """
    new, sizes = np.unique(found[found != NOISE], return_counts=True)
    old, old_sizes = np.unique(before[before != NOISE], return_counts=True)
    shared = np.array([[np.sum((found == n) & (before == o)) for o in old] for n in new]).reshape(len(new), len(old))
    rows, columns = linear_sum_assignment(shared, maximize=True)
    numbers = {
        int(new[row]): int(old[column])
        for row, column in zip(rows, columns, strict=True)
        if 2 * shared[row, column] >= min(sizes[row], old_sizes[column])
    }
    for row in np.argsort(-sizes, kind="stable"):
        if int(new[row]) not in numbers:
            numbers[int(new[row])] = next_label
            next_label += 1
    return numbers
