"""What is remembered, and what comes back."""

from typing import Annotated, Literal

from pydantic import Field

from rollouts.config import Section


class UniformDraw(Section):
    """Every group alike."""

    kind: Literal["uniform"] = "uniform"


class PrioritizedDraw(Section):
    """p ∝ priority^alpha · decay^age (arXiv 1511.05952, eq. 1, with the age decay of FreshPER)."""

    kind: Literal["prioritized"] = "prioritized"
    alpha: float = Field(0.6, ge=0)
    """0 is uniform."""
    age_decay: float = Field(0.9, gt=0, le=1)
    """Per iteration of age."""


class RecencyDraw(Section):
    """p ∝ 2^(−age / half_life)."""

    kind: Literal["recency"] = "recency"
    half_life: float = Field(5.0, ge=0.01, le=1e9)
    """Iterations after which a group is drawn half as often."""


WithinDraw = Annotated[UniformDraw | PrioritizedDraw | RecencyDraw, Field(discriminator="kind")]


class PerTaskDraw(Section):
    """A quota for each task that has groups to draw, by largest remainder; who gets the remainder is drawn by lot, in
    proportion to the fractions. What a task cannot fill goes to the others."""

    kind: Literal["per_task"] = "per_task"
    shares: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Of the draw, by task, up to a common factor; none are equal shares. A task that is not named here, or has share
    0, only gets what the others cannot fill."""
    within: WithinDraw = UniformDraw()
    """How the groups of one task are drawn."""


class PerClusterDraw(Section):
    """As `per_task`, with an equal share for each cluster of groups; those without a cluster count as one."""

    kind: Literal["per_cluster"] = "per_cluster"
    within: WithinDraw = UniformDraw()
    """How the groups of one cluster are drawn."""


class SuccessDraw(Section):
    """Quotas by success rate: experiences of medium difficulty teach most (after ExGRPO, arXiv 2510.02245, whose
    buckets are weighted with a normal density around the target too).

    A group's success rate is the mean of its rewards, clipped to [0, 1]. Groups without any reward are drawn only where
    nothing else is there.
    """

    kind: Literal["success"] = "success"
    buckets: int = Field(4, ge=1, le=1000)
    """Of equal width on [0, 1]."""
    target: float = Field(0.5, ge=0, le=1)
    """A bucket's quota is ∝ exp(−(centre − target)² / (2 width²))."""
    width: float = Field(0.25, ge=1e-3, le=1e3)
    within: WithinDraw = UniformDraw()
    """How the groups of one bucket are drawn."""


DrawConfig = Annotated[
    UniformDraw | PrioritizedDraw | RecencyDraw | PerTaskDraw | PerClusterDraw | SuccessDraw,
    Field(discriminator="kind"),
]


class ReplayConfig(Section):
    """The persistent store of experiences. Its unit is the group: a prompt with its n rollouts."""

    capacity: int = Field(10_000, ge=1, le=10**12)
    """Groups kept."""
    keep: Literal["fifo", "reservoir", "balanced", "top_reward", "diverse"] = "fifo"
    """Which group goes when the store is full. `fifo`: the oldest. `reservoir`: a random one, so that every group ever
    seen is equally likely to remain. `balanced`: a random one of the largest task, so that tasks share the room and of
    each a uniform sample remains (class-balancing reservoir sampling, Chrysakis & Moens 2020). `top_reward`: the one of
    the lowest mean reward. `diverse`: as `balanced`, by cluster instead of task."""
    draw: DrawConfig = UniformDraw()
    mode: Literal["samples", "prompts"] = "samples"
    """What is replayed: the stored rollouts, or the prompts of the drawn groups, answered anew by the policy of now."""
    source: Literal["all", "earlier"] = "all"
    """Which groups may be drawn: all, or only those of other tasks than the one being trained."""
    ratio: float = Field(0.0, ge=0, le=1000)
    """Replayed groups per fresh group in each update; 0 trains on fresh groups alone."""
    max_staleness: int | None = Field(None, ge=1)
    """Replay nothing older than this many policy versions. An evaluation that serves other adapters than the policy
    (`continual.adapters`) counts them up too."""
    begin_with: str | None = None
    """File or folder of an earlier run's groups (`rlsf replay export`) to begin with. They count as of iteration 0 and
    policy version 0, and as of earlier tasks."""
