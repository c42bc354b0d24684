"""Points to clusters: which points form which, and what a new point must lie next to in order to belong to one."""

from dataclasses import dataclass
from typing import assert_never

import numpy as np
from scipy.spatial import cKDTree

from rlsf.config.clustering import ClusterConfig, DbscanConfig, HdbscanConfig, KMeansConfig

NOISE = -1
"""Label of a point that belongs to no cluster."""


@dataclass(frozen=True, slots=True)
class Anchors:
    """A new point gets the label of the anchor nearest to it, if it lies within that anchor's reach."""

    points: np.ndarray
    """(M, D) float64: the centroids of k-means, the core points of DBSCAN, all points of HDBSCAN."""
    labels: np.ndarray
    """(M,) int64 from 0, or NOISE."""
    reach: np.ndarray
    """(M,) float64. k-means: from a centroid to its furthest member, though every point belongs to the nearest one.
    DBSCAN: eps. HDBSCAN: the widest gap between a member of the cluster and its nearest fellow."""

    def nearest(self, points: np.ndarray, *, within_reach: bool) -> np.ndarray:
        """(N, D) to (N,) labels, NOISE beyond reach if that counts, and where there is no anchor."""
        if not len(self.points) or not len(points):
            return np.full(len(points), NOISE, dtype=np.int64)
        distances, nearest = cKDTree(self.points).query(points)
        labels = self.labels[nearest]
        reach = self.reach[nearest]
        is_far = distances > reach + 1e-9 * (1 + reach)  # a copy of a member may differ from it by rounding
        return np.where(is_far & within_reach, NOISE, labels)


def find_anchors(points: np.ndarray, config: ClusterConfig, seed: int) -> Anchors:
    """The clusters of (N, D) points. Fewer points than a cluster needs are all noise; N may be 0."""
    if not len(points):
        return Anchors(points, np.zeros(0, dtype=np.int64), np.zeros(0))
    match config:
        case KMeansConfig():
            return _kmeans(points, config, seed)
        case DbscanConfig():
            return _dbscan(points, config)
        case HdbscanConfig():
            return _hdbscan(points, config)
    assert_never(config)


def _kmeans(points: np.ndarray, config: KMeansConfig, seed: int) -> Anchors:
    from sklearn.cluster import KMeans

    k = min(config.k, len(np.unique(points, axis=0)))
    fitted = KMeans(k, n_init=10, random_state=seed % 2**32).fit(points)
    distances = np.linalg.norm(points - fitted.cluster_centers_[fitted.labels_], axis=1)
    reach = np.zeros(k)
    np.maximum.at(reach, fitted.labels_, distances)
    return Anchors(fitted.cluster_centers_.astype(np.float64), np.arange(k), reach)


def _dbscan(points: np.ndarray, config: DbscanConfig) -> Anchors:
    from sklearn.cluster import DBSCAN

    eps = config.eps if config.eps is not None else knee_eps(points, config.min_samples)
    fitted = DBSCAN(eps=eps, min_samples=config.min_samples).fit(points)
    core = fitted.core_sample_indices_
    return Anchors(points[core], fitted.labels_[core].astype(np.int64), np.full(len(core), eps))


def knee_eps(points: np.ndarray, min_samples: int) -> float:
    """Where the curve of the sorted distances to the min_samples-th neighbour, the point itself included, bends up
    most: furthest below the straight line between its ends (Satopää et al. 2011, "Finding a Kneedle in a Haystack").

    Always above 0; 1 where all distances are 0.
    """
    neighbours = min(min_samples, len(points))
    distances = np.sort(cKDTree(points).query(points, [neighbours])[0][:, 0])
    line = np.linspace(distances[0], distances[-1], len(distances))
    knee = float(distances[np.argmax(line - distances)])
    positive = distances[distances > 0]
    return knee or float(positive.min(initial=np.inf) if len(positive) else 1.0)


def _hdbscan(points: np.ndarray, config: HdbscanConfig) -> Anchors:
    from sklearn.cluster import HDBSCAN

    noise = np.full(len(points), NOISE, dtype=np.int64)
    if len(points) < max(config.min_cluster_size, config.min_samples or 0):
        return Anchors(points, noise, np.zeros(len(points)))
    if not np.ptp(points, axis=0).any():  # it finds nothing where there is nothing to split
        return Anchors(points, noise + 1, np.zeros(len(points)))
    fitted = HDBSCAN(min_cluster_size=config.min_cluster_size, min_samples=config.min_samples, copy=True).fit(points)
    labels = fitted.labels_.astype(np.int64)
    reach = np.zeros(len(points))
    for label in np.unique(labels[labels != NOISE]):
        members = points[labels == label]
        reach[labels == label] = cKDTree(members).query(members, [2])[0].max()
    return Anchors(points, labels, reach)
