"""Drawing without replacement, at a cost that grows with the logarithm of the store's size."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from rlsf.config.schema import PrioritizedDraw, UniformDraw

BELOW_ONE = math.nextafter(1.0, 0.0)

DrawConfig = UniformDraw | PrioritizedDraw


def log_weight(draw: DrawConfig, *, priority: float, iteration: int) -> float:
    """log(priority^alpha · decay^(−iteration)); −inf is never drawn.

    decay^age = decay^now · decay^(−iteration), and the first factor is common to all groups: leaving it out makes
    weights independent of the moment, so that they need no update as groups age. In logarithms nothing overflows.
    """
    if draw.kind == "uniform":
        return 0.0
    by_age = -iteration * math.log(draw.age_decay)
    if draw.alpha == 0:  # 0^0 = 1: uniform up to age
        return by_age
    return draw.alpha * math.log(priority) + by_age if priority > 0 else -math.inf


class LogSumTree:
    """A binary tree over log-weights in which every inner node holds log(e^left + e^right).

    Weights may lie any number of orders of magnitude apart: a plain sum tree would overflow after some thousand
    iterations of age decay, or round old groups down to 0 even when only old groups are left to draw. Each node is
    computed from its two children, never by adding differences, so the tree is a function of its leaves alone: a store
    that was reopened draws what the one that stayed open would have drawn.
    """

    def __init__(self) -> None:
        self._leaves = 1  # a power of two
        self._node = np.full(2, -np.inf)  # node 1 is the root, 2i and 2i + 1 the children of i

    @property
    def total(self) -> float:
        """log Σ weights; −inf where nothing can be drawn."""
        return float(self._node[1])

    def assign(self, slots: Sequence[int], log_weights: Sequence[float]) -> None:
        """Set the log-weights of some leaves; the tree grows as needed."""
        if not slots:
            return
        if max(slots) >= self._leaves:
            self._grow(max(slots) + 1)
        self._node[self._leaves + np.asarray(slots)] = log_weights
        if len(slots) * self._leaves.bit_length() >= self._leaves:
            self._sum_all()
        else:
            for slot in slots:
                self._sum_above(slot)

    def descend(self, u: float) -> int:
        """The leaf at the fraction `u` in [0, 1) of the total weight, which must not be 0; never one of weight 0."""
        i = 1
        while i < self._leaves:
            left, right = float(self._node[2 * i]), float(self._node[2 * i + 1])
            share = math.exp(left - float(self._node[i]))
            if right == -math.inf or u < share:
                i, u = 2 * i, u / share
            else:
                i, u = 2 * i + 1, min((u - share) / (1 - share), BELOW_ONE)
        return i - self._leaves

    def _grow(self, size: int) -> None:
        leaves = self._node[self._leaves :]
        self._leaves = 1 << (size - 1).bit_length()
        self._node = np.full(2 * self._leaves, -np.inf)
        self._node[self._leaves : self._leaves + len(leaves)] = leaves
        self._sum_all()

    def _sum_all(self) -> None:
        start = self._leaves // 2
        while start:
            children = self._node[2 * start : 4 * start]
            self._node[start : 2 * start] = np.logaddexp(children[::2], children[1::2])
            start //= 2

    def _sum_above(self, slot: int) -> None:
        i = (self._leaves + slot) // 2
        while i:
            self._node[i] = np.logaddexp(self._node[2 * i], self._node[2 * i + 1])
            i //= 2


class DrawIndex:
    """What drawing needs to know about every slot, in memory: at most 80 bytes a group."""

    def __init__(self, draw: DrawConfig) -> None:
        self._draw = draw
        self._size = 0
        self._iteration = np.empty(0, dtype=np.int64)
        self._version = np.empty(0, dtype=np.int64)
        self._log_weight = np.empty(0)
        self._tree = LogSumTree()
        self.oldest_version: int | None = None
        """None draws groups of any policy version."""

    def __len__(self) -> int:
        return self._size

    def put(self, rows: Iterable[tuple[int, int, int, float]]) -> None:
        """Fill slots, or fill them anew: rows of (slot, iteration, policy version, priority)."""
        slots: list[int] = []
        for slot, iteration, version, priority in rows:
            self._reserve(slot + 1)
            self._iteration[slot] = iteration
            self._version[slot] = version
            self._log_weight[slot] = log_weight(self._draw, priority=priority, iteration=iteration)
            slots.append(slot)
        self._refresh(slots)

    def set_priorities(self, priorities: Sequence[tuple[int, float]]) -> None:
        """Pairs of (slot, priority)."""
        for slot, priority in priorities:
            iteration = int(self._iteration[slot])
            self._log_weight[slot] = log_weight(self._draw, priority=priority, iteration=iteration)
        self._refresh([slot for slot, _ in priorities])

    def set_oldest_version(self, version: int, *, too_old: Sequence[int] | None = None) -> None:
        """Draw no group of an older policy version from now on. `too_old` are the slots that this takes out, where the
        caller knows them; else all are looked at."""
        self.oldest_version = version
        self._refresh(range(self._size) if too_old is None else too_old)

    def draw(self, n: int, rng: np.random.Generator, *, hidden: Sequence[int]) -> list[int]:
        """Up to `n` different slots, none of them `hidden`, each drawn in proportion to its weight among those left.

        Slots of weight 0 are drawn, uniformly, only when no slot of positive weight could be drawn at all.
        """
        drawn: list[int] = []
        try:
            self._tree.assign(hidden, [-math.inf] * len(hidden))
            while len(drawn) < n and self._tree.total > -math.inf:
                slot = self._tree.descend(rng.random())
                self._tree.assign([slot], [-math.inf])
                drawn.append(slot)
            if not drawn:
                return self._draw_weightless(n, rng, hidden)
        finally:
            self._refresh([*hidden, *drawn])
        return drawn

    def _draw_weightless(self, n: int, rng: np.random.Generator, hidden: Sequence[int]) -> list[int]:
        eligible = np.ones(self._size, dtype=bool)
        if self.oldest_version is not None:
            eligible = self._version[: self._size] >= self.oldest_version
        eligible[list(hidden)] = False
        slots = np.flatnonzero(eligible)
        return [int(slot) for slot in rng.choice(slots, size=min(n, len(slots)), replace=False)]

    def _refresh(self, slots: Sequence[int]) -> None:
        weights = self._log_weight[list(slots)]
        if self.oldest_version is not None:
            weights = np.where(self._version[list(slots)] >= self.oldest_version, weights, -np.inf)
        self._tree.assign(slots, weights.tolist())

    def _reserve(self, size: int) -> None:
        self._size = max(self._size, size)
        if size > len(self._version):
            room = 1 << (size - 1).bit_length()
            for name in ("_iteration", "_version", "_log_weight"):
                old = getattr(self, name)
                new = np.zeros(room, dtype=old.dtype)
                new[: len(old)] = old
                setattr(self, name, new)
