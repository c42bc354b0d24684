"""Which group goes when the store is full: the one of lowest rank in the largest class, the newcomer taking part."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from rlsf.experience import Group
from rlsf.seeds import derive_seed

Keep = Literal["fifo", "reservoir", "balanced", "top_reward", "diverse"]

RESERVOIR_STREAM = 1
"""Separates these random numbers from those of `draw`, which share the store's seed."""


class Standing(NamedTuple):
    """Of one group, among those that want to stay."""

    keep_class: str
    rank: float
    """Of equal ranks the older group is the lower."""


def standing(keep: Keep, *, seq: int, group: Group, cluster: int | None, seed: int) -> Standing:
    """Of the `seq`-th group ever seen, counted from 1. A function of the arguments alone."""
    if keep == "fifo":
        return Standing("", float(seq))
    if keep == "top_reward":
        success = mean_reward(group.rewards)
        return Standing("", -math.inf if success is None else success)
    return Standing(class_of(keep, group.task, cluster), random_rank(seq, seed=seed))


def class_of(keep: Keep, task: str, cluster: int | None) -> str:
    """The class that a group competes in; groups without a cluster are one class of `diverse`."""
    if keep == "balanced":
        return task
    return "" if keep != "diverse" or cluster is None else str(cluster)


def random_rank(seq: int, *, seed: int) -> float:
    """Uniform on [0, 1), a function of the arguments alone.

    The n groups of the highest random ranks are a uniform sample of all that were ever seen (reservoir sampling by
    random sort; the same distribution as that of Vitter's algorithm R, doi 10.1145/3147.3165).
    """
    return (derive_seed(seed, RESERVOIR_STREAM, seq) >> 10) * 2.0**-53


def mean_reward(rewards: Sequence[float | None]) -> float | None:
    """Of the rollouts that have one; None where none has."""
    known = [reward for reward in rewards if reward is not None]
    return math.fsum(reward / len(known) for reward in known) + 0.0 if known else None  # SQLite knows no -0.0


class Keeper:
    """The sizes of the classes, and what each of them has let go.

    `balanced` and `diverse` are class-balancing reservoir sampling (Chrysakis & Moens 2020, PMLR 119) with random keys:
    of each class exactly the groups of a rank above its threshold are kept, which makes them a uniform sample of the
    class, and the largest class is the one that shrinks.
    """

    def __init__(self, keep: Keep, sizes: dict[str, int], thresholds: dict[str, float]) -> None:
        self.keep = keep
        self.sizes = sizes
        self.thresholds = thresholds

    def copy(self) -> "Keeper":
        return Keeper(self.keep, dict(self.sizes), dict(self.thresholds))

    @property
    def size(self) -> int:
        return sum(self.sizes.values())

    def admits(self, newcomer: Standing) -> bool:
        """False where its class has let go a group of a higher rank."""
        return newcomer.rank >= self.thresholds.get(newcomer.keep_class, -math.inf)

    def shrinking_class(self, newcomer: Standing) -> str:
        """The largest class, the newcomer counted; of equally large ones its own, else the alphabetically first."""

        def order(keep_class: str) -> tuple[int, bool, str]:
            own = keep_class == newcomer.keep_class
            return -self.sizes.get(keep_class, 0) - own, not own, keep_class

        return min({*self.sizes, newcomer.keep_class}, key=order)

    def enter(self, keep_class: str) -> None:
        self.sizes[keep_class] = self.sizes.get(keep_class, 0) + 1

    def leave(self, keep_class: str) -> None:
        self.sizes[keep_class] -= 1
        if not self.sizes[keep_class]:
            del self.sizes[keep_class]

    def let_go(self, gone: Standing) -> None:
        """Remember the rank of a group that was evicted or not taken."""
        if self.keep in ("balanced", "diverse"):
            known = self.thresholds.get(gone.keep_class, 0.0)
            self.thresholds[gone.keep_class] = max(known, gone.rank)
