"""What is remembered of contexts: a sample of the prompts seen in each, and which of them new prompts lie next to."""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from rlsf.clustering.projection import fit_projection
from rlsf.seeds import derive_seed

NOVEL = -1
"""In place of a context's number: next to none."""
REACH = 0.95
"""Quantile of the distances from a remembered prompt to its nearest fellow: what is further away from all of a
context's prompts is not next to it. Of new prompts of the same lab task 6 to 9% are, of other tasks' 97 to 100%, with
16 to 128 remembered."""


@dataclass
class Context:
    """A task as far as its prompts show it."""

    name: str
    points: np.ndarray
    """(M, H) float32, M ≤ window: a uniform sample of what was seen."""
    seen: int = 0
    """Prompts ever remembered, those included that made way."""

    def remember(self, points: np.ndarray, window: int, seed: int) -> None:
        """Vitter's algorithm R: every point ever given is equally likely to be kept.

        Args:
            points: (N, H), of the width of those that are kept; any where none is.
        """
        rng = np.random.default_rng(derive_seed(seed, "context", self.name, self.seen))
        for point in np.asarray(points, dtype=np.float32):
            self.seen += 1
            if len(self.points) < window:
                self.points = np.concatenate([self.points.reshape(-1, len(point)), point[None]])
            elif (slot := int(rng.integers(self.seen))) < len(self.points):
                self.points[slot] = point

    def to_json(self) -> dict[str, Any]:
        """Little-endian float32 in base64: exact, and a third of the digits' size."""
        data = b64encode(self.points.astype("<f4").tobytes()).decode("ascii")
        return {"name": self.name, "seen": self.seen, "width": self.points.shape[1], "points": data}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Context":
        points = np.frombuffer(b64decode(data["points"]), dtype="<f4").reshape(-1, data["width"])
        return cls(data["name"], points.astype(np.float32), data["seen"])


def nearest_contexts(contexts: Sequence[Context], points: np.ndarray, dimensions: int) -> np.ndarray:
    """For each of (N, H) points the number of the context whose remembered prompts it lies next to, or NOVEL: (N,).

    All are compared in the principal components of what is remembered and the points together.
    """
    sizes = [len(context.points) for context in contexts]
    pooled = np.concatenate([*(context.points for context in contexts), points])
    projected = fit_projection(pooled, dimensions)(pooled)
    *remembered, new = np.split(projected, np.cumsum(sizes))
    distances = np.stack([cKDTree(own).query(new)[0] for own in remembered])  # (contexts, N)
    reaches = np.array([_reach(own) for own in remembered])[:, None]
    distances = np.where(distances <= reaches * (1 + 1e-9) + 1e-9, distances, np.inf)
    return np.where(np.isfinite(distances).any(axis=0), distances.argmin(axis=0), NOVEL)


def _reach(points: np.ndarray) -> float:
    """0 for a single point: nobody knows how far its fellows are."""
    if len(points) < 2:
        return 0.0
    return float(np.quantile(cKDTree(points).query(points, [2])[0], REACH))
