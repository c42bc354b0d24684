"""The clusters that a run keeps of what it has asked or answered, and the draws that they steer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rlsf.clustering.clusters import Clusters, fit_clusters
from rlsf.clustering.curriculum import Curriculum
from rlsf.clustering.embeddings import Embeddings
from rlsf.config.clustering import RunClustersConfig
from rlsf.experience import Group
from rlsf.seeds import derive_seed
from rollouts.types import Prompt

_CLUSTERS, _CURRICULUM = "clusters.npz", "curriculum.json"
CANDIDATES = 4
"""Prompts looked at for each that a curriculum takes."""


class Population:
    """Clusters, fitted anew every so many iterations on what the replay store holds, and how well each one goes."""

    def __init__(self, config: RunClustersConfig, embeddings: Embeddings, seed: int) -> None:
        self._config = config
        self._embeddings = embeddings
        self._seed = seed
        self._clusters: Clusters | None = None
        self._curriculum = Curriculum(config.curriculum.decay if config.curriculum else 0.0)

    def embed(self, groups: Sequence[Group]) -> dict[str, np.ndarray]:
        """By group id, a vector (H,): of its prompt, or the mean of those of its answers."""
        if self._config.embedding.of == "prompt":
            points = self._embeddings.prompts([group.prompt for group in groups])
        else:
            points = np.stack(
                [self._embeddings.answers([e.rollout for e in group.experiences]).mean(axis=0) for group in groups]
            )
        return {group.id: point for group, point in zip(groups, points, strict=True)}

    def assign(self, embeddings: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Cluster by group id; empty until there has been a fit."""
        if self._clusters is None or not embeddings:
            return {}
        labels = self._clusters.assign(np.stack(list(embeddings.values())))
        return {name: int(label) for name, label in zip(embeddings, labels, strict=True)}

    def observe(self, groups: Sequence[Group], clusters: Mapping[str, int]) -> None:
        """Take in how well each cluster went: mean reward of its groups, within [0, 1]."""
        known = [(clusters[group.id], success_of(group)) for group in groups if group.id in clusters]
        seen = [(cluster, success) for cluster, success in known if success is not None]
        self._curriculum.observe([cluster for cluster, _ in seen], [success for _, success in seen])

    def is_fit_due(self, iteration: int) -> bool:
        """Every `clusters.every` iterations, and as soon as there is anything to fit."""
        return self._clusters is None or iteration % self._config.clusters.every == 0

    def fit(self, ids: Sequence[str], points: np.ndarray, iteration: int) -> dict[str, int]:
        """Clusters of (N, H) points, by id; numbers stay with the clusters that were there before."""
        seed = derive_seed(self._seed, "fit", iteration)
        self._clusters = fit_clusters(points, self._config.clusters, seed, self._clusters)
        return {name: int(label) for name, label in zip(ids, self._clusters.assign(points), strict=True)}

    def replay_shares(self) -> dict[int, float] | None:
        """Shares of the clusters in what is replayed; None where no curriculum sets any."""
        return self._shares("replay")

    def choose(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[Prompt] | None:
        """`n` different ones of `prompts`, more of clusters that fail; None where no curriculum asks for that, or there
        has been no fit yet. Clusters of prompts alone can be told before a prompt is answered."""
        shares = self._shares("prompts")
        if shares is None or self._clusters is None or self._config.embedding.of != "prompt":
            return None
        rng = np.random.default_rng(seed)
        drawn = [prompts[i] for i in rng.permutation(len(prompts))[: CANDIDATES * n]]
        labels = self._clusters.assign(self._embeddings.prompts(drawn))
        sizes = {int(label): int((labels == label).sum()) for label in set(labels.tolist())}
        weights = np.array([shares.get(int(label), 0.0) / sizes[int(label)] for label in labels]) + 1e-12
        # Gumbel-top-k: draws without replacement in proportion to the weights (Efraimidis & Spirakis 2006)
        keys = np.log(weights) + rng.gumbel(size=len(weights))
        return [drawn[i] for i in sorted(np.argsort(-keys)[:n])]

    def _shares(self, use: str) -> dict[int, float] | None:
        curriculum = self._config.curriculum
        if curriculum is None or use not in curriculum.of or self._clusters is None:
            return None
        return self._curriculum.shares(self._clusters.labels, curriculum.strength)

    def metrics(self) -> dict[str, float]:
        """How many clusters there are, and how well the best and the worst of them go."""
        if self._clusters is None:
            return {}
        metrics = {"clusters/number": float(len(self._clusters.labels))}
        rates = [self._curriculum.success[k] for k in self._clusters.labels if k in self._curriculum.success]
        return metrics | ({"clusters/best": max(rates), "clusters/worst": min(rates)} if rates else {})

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if self._clusters is not None:
            (folder / _CLUSTERS).write_bytes(self._clusters.to_bytes())
        (folder / _CURRICULUM).write_text(json.dumps(self._curriculum.to_json()))

    def load(self, folder: Path) -> None:
        """Go on exactly where `save` left off."""
        self._curriculum = Curriculum.from_json(json.loads((folder / _CURRICULUM).read_text()))
        path = folder / _CLUSTERS
        self._clusters = Clusters.from_bytes(path.read_bytes()) if path.exists() else None


def success_of(group: Group) -> float | None:
    """Mean reward of a group, within [0, 1]; None where it has none."""
    values = [value for value in group.rewards if value is not None]
    return float(np.clip(np.mean(values), 0.0, 1.0)) if values else None
