"""More prompts from clusters that fail."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

FLOOR = 0.1
"""Share of the draws that is spread evenly, so that no cluster starves."""


def shares(success_by_cluster: Mapping[int, float | None], strength: float) -> dict[int, float]:
    """Share of the draws by cluster, which add up to 1: nine tenths ∝ (1 − success)^strength, one tenth even.

    Where every cluster always succeeds, and at strength 0, all get the same.

    Args:
        success_by_cluster: success rate in [0, 1]; None where the cluster was never seen, which gets the others' mean.
        strength: at least 0.

    Raises:
        ValueError: a rate is out of [0, 1].
    """
    for cluster, rate in success_by_cluster.items():
        if rate is not None and not 0 <= rate <= 1:
            raise ValueError(f"cluster {cluster}: a success rate of {rate} is not in [0, 1]")
    if not success_by_cluster:
        return {}
    known = [rate for rate in success_by_cluster.values() if rate is not None]
    mean = sum(known) / len(known) if known else 0.5
    weights = {
        cluster: (1 - (mean if rate is None else rate)) ** strength for cluster, rate in success_by_cluster.items()
    }
    total = sum(weights.values())
    even = 1 / len(weights)
    return {
        cluster: FLOOR * even + (1 - FLOOR) * (weight / total if total > 0 else even)
        for cluster, weight in weights.items()
    }


@dataclass
class Curriculum:
    """A moving average of each cluster's success rate."""

    decay: float = 0.8
    """Weight of the past; the first observation of a cluster stands alone."""
    success: dict[int, float] = field(default_factory=dict)

    def observe(self, clusters: Iterable[int], successes: Iterable[float]) -> None:
        """Take in an iteration: the cluster of each prompt, and its success rate in [0, 1].

        Raises:
            ValueError: there are more of the one than of the other, or a rate is out of [0, 1].
        """
        by_cluster: dict[int, list[float]] = {}
        for cluster, rate in zip(clusters, successes, strict=True):
            if not 0 <= rate <= 1:
                raise ValueError(f"cluster {cluster}: a success rate of {rate} is not in [0, 1]")
            by_cluster.setdefault(int(cluster), []).append(float(rate))
        for cluster, rates in by_cluster.items():
            mean = sum(rates) / len(rates)
            self.success[cluster] = self.decay * self.success.get(cluster, mean) + (1 - self.decay) * mean

    def shares(self, clusters: Iterable[int], strength: float) -> dict[int, float]:
        """Of the draws, by each of the clusters that there are now; see `shares`."""
        return shares({int(cluster): self.success.get(int(cluster)) for cluster in clusters}, strength)

    def to_json(self) -> dict[str, Any]:
        """Numbers of clusters become strings."""
        data = asdict(self)
        return {**data, "success": {str(cluster): rate for cluster, rate in self.success.items()}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Curriculum":
        """Raises ValueError where the data is not what `to_json` gave."""
        return TypeAdapter(cls).validate_python(data)
