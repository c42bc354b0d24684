"""Where tasks come from when nobody says: embeddings of prompts and answers, clusters of them, and which task is on."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rollouts.config import Section


class EmbeddingConfig(Section):
    """What stands for a prompt or an answer when they are compared by what they are about."""

    of: Literal["prompt", "answer"] = "prompt"
    by: Literal["policy", "sentence_transformer"] = "policy"
    """`policy` is the frozen base model under the adapters, so that the space does not move while the policy learns;
    `sentence_transformer` needs `pip install "rlsf[embeddings]"`."""
    model: str | None = None
    """Of `sentence_transformer`: a local folder, or a hub id such as sentence-transformers/all-MiniLM-L6-v2."""

    @model_validator(mode="after")
    def _check(self) -> "EmbeddingConfig":
        if self.by == "sentence_transformer" and self.model is None:
            raise ValueError("model: by sentence_transformer needs one; give a local folder or a hub id")
        if self.by == "policy" and self.model is not None:
            raise ValueError("model: by policy takes the run's own model; leave it out")
        return self


class ClusterSection(Section):
    """What every way of clustering has in common."""

    dimensions: int = Field(16, ge=1)
    """Principal components that clusters are looked for in: HDBSCAN of 5000 points takes a second in 16 of them, and 20
    in 384."""
    every: int = Field(10, ge=1)
    """Iterations between fits; in between, new points join the clusters that are there."""
    limit: int = Field(5000, ge=2)
    """At most this many points in a fit, drawn at random where there are more."""


class KMeansConfig(ClusterSection):
    """k round clusters: every point belongs to one."""

    kind: Literal["kmeans"] = "kmeans"
    k: int = Field(8, ge=1)
    """Clusters; fewer where there are fewer distinct points."""


class DbscanConfig(ClusterSection):
    """Points connected by dense neighbourhoods (Ester et al. 1996); the number of clusters is found, and what lies in
    none is noise."""

    kind: Literal["dbscan"] = "dbscan"
    eps: float | None = Field(None, gt=0)
    """Radius of a neighbourhood, in the standardised space. None takes it from the curve of the distances to the
    min_samples-th neighbour, at its knee."""
    min_samples: int = Field(5, ge=1)
    """Points within eps, the point itself included, that make a core point."""


class HdbscanConfig(ClusterSection):
    """The same at every density at once (Campello et al. 2013): clusters may differ in density."""

    kind: Literal["hdbscan"] = "hdbscan"
    min_cluster_size: int = Field(5, ge=2)
    """Smaller groups are noise."""
    min_samples: int | None = Field(None, ge=1)
    """The higher, the more points are noise; None takes min_cluster_size."""


ClusterConfig = Annotated[KMeansConfig | DbscanConfig | HdbscanConfig, Field(discriminator="kind")]


class ClusteringConfig(Section):
    """What `rlsf clusters` looks for."""

    embedding: EmbeddingConfig = EmbeddingConfig()
    clusters: ClusterConfig = HdbscanConfig()


class CurriculumConfig(Section):
    """Draws more from clusters that fail."""

    of: tuple[Literal["prompts", "replay"], ...] = ("prompts", "replay")
    """What is drawn so: new `prompts` of the task (in place of its epochs; needs embeddings of prompts), and what is
    replayed, where `replay.draw` is `per_cluster`."""
    strength: float = Field(1.0, ge=0)
    """Share ∝ (1 − success)^strength; 0 draws from all clusters alike."""
    decay: float = Field(0.8, ge=0, lt=1)
    """Weight of the past in the moving average of a cluster's success rate."""


class RunClustersConfig(ClusteringConfig):
    """Clusters that a run keeps of what is in its replay store: for `replay.keep: diverse`, `replay.draw: per_cluster`,
    a curriculum, and `rlsf clusters`."""

    clusters: ClusterConfig = KMeansConfig()
    curriculum: CurriculumConfig | None = None


class KnownIdentity(Section):
    """The stream says which task is trained."""

    kind: Literal["known"] = "known"


class _HiddenIdentity(Section):
    dimensions: int = Field(16, ge=1)
    """Principal components in which prompts are compared."""
    window: int = Field(128, ge=8)
    """Prompts remembered per context: a random sample of all that were seen in it."""
    consecutive: int = Field(2, ge=1)
    """So many batches in a row must look like another context: one odd batch is no change."""


class ClustersIdentity(_HiddenIdentity):
    """A batch belongs to the context that most of its prompts lie next to; to a new one, if most lie next to none."""

    kind: Literal["clusters"] = "clusters"


class DriftIdentity(_HiddenIdentity):
    """A two-sample test between the batch and the current context notices a change; only then is asked where to."""

    kind: Literal["drift"] = "drift"
    level: float = Field(0.01, gt=0, lt=1)
    """Of each test: the share of batches that look odd though nothing has changed."""
    permutations: int = Field(999, ge=19)
    """The smallest p-value is 1 / (permutations + 1)."""

    @model_validator(mode="after")
    def _check(self) -> "DriftIdentity":
        if self.level * (self.permutations + 1) < 1:
            raise ValueError(
                f"permutations: {self.permutations} give no p-value below {1 / (self.permutations + 1):.2g}, so that "
                f"level {self.level:g} is never reached; raise the one or the other"
            )
        return self


IdentityConfig = Annotated[KnownIdentity | ClustersIdentity | DriftIdentity, Field(discriminator="kind")]
