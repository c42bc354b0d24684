"""Log-weights of the slots of one stratum: drawing and changes cost time that grows with the logarithm of their number.

A binary trie over slot numbers. A range of slots is split in halves where the stratum has more than LEAF of them: the
shape follows from the set of slots alone, and each node's sum from its children: a store that was reopened
draws what the one that stayed open would have drawn. Strata with few slots are small however large the store is.
"""

import math
from array import array
from bisect import insort
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEAF = 64
"""Slots below a node that is not split."""

Weights = NDArray[np.float64]
"""By slot: log-weight; −inf is never drawn."""


class Node:
    """Slots from `low` to `low` + `width` − 1. A leaf has `slots`, ascending; any other node has children."""

    __slots__ = ("count", "left", "low", "right", "slots", "total", "width")

    def __init__(self, low: int, width: int) -> None:
        self.low, self.width = low, width
        self.slots: array[int] | None = array("q")
        self.left: Node | None = None
        self.right: Node | None = None
        self.count = 0
        self.total = -math.inf
        """log Σ weights."""


class LogSumTrie:
    """Weights may lie any number of orders of magnitude apart: a plain sum tree would overflow after some thousand
    iterations of age decay, or round old groups down to 0 even when only old groups are left to draw."""

    def __init__(self, capacity: int) -> None:
        self._width = max(1 << (capacity - 1).bit_length(), LEAF)
        self._root = Node(0, self._width)

    def __len__(self) -> int:
        return self._root.count

    @property
    def total(self) -> float:
        """log Σ weights; −inf where nothing can be drawn."""
        return self._root.total

    def build(self, slots: NDArray[np.int64], weights: Weights) -> None:
        """Start anew with these slots, ascending."""
        self._root = _built(0, self._width, slots, weights)

    def insert(self, slot: int, weights: Weights) -> None:
        path = self._path(slot)
        leaf = path[-1]
        slots = _slots_of(leaf)
        insort(slots, slot)
        for node in path:
            node.count += 1
        if len(slots) > LEAF:
            _take_over(leaf, _built(leaf.low, leaf.width, _numbers(slots).copy(), weights))
        _sum(path, weights)

    def remove(self, slot: int, weights: Weights) -> None:
        path = self._path(slot)
        _slots_of(path[-1]).remove(slot)
        for depth, node in enumerate(path):
            node.count -= 1
            if node.count <= LEAF and node.slots is None:
                _take_over(node, _built(node.low, node.width, _collected(node), weights))
                del path[depth + 1 :]
                break
        _sum(path, weights)

    def refresh(self, slot: int, weights: Weights) -> None:
        """Call it when the weight of a slot has changed."""
        _sum(self._path(slot), weights)

    def draw(self, rng: np.random.Generator, weights: Weights) -> int:
        """A slot, in proportion to its weight; `total` must not be −inf."""
        node, u = self._root, rng.random()
        while node.slots is None:
            left, right = node.left, node.right
            assert left is not None and right is not None
            share = math.exp(left.total - node.total)
            if right.total == -math.inf or u < share:
                node, u = left, u / share
            else:
                node, u = right, (u - share) / (1 - share)
        numbers = _numbers(node.slots)
        sums = np.cumsum(np.exp(weights[numbers] - node.total))
        # The last one of positive weight, where rounding leads beyond it.
        last = int(np.searchsorted(sums, sums[-1]))
        return int(numbers[min(int(np.searchsorted(sums, rng.random() * sums[-1], side="right")), last)])

    def _path(self, slot: int) -> list[Node]:
        """From the root to the leaf of `slot`."""
        node = self._root
        path = [node]
        while node.slots is None:
            child = node.left if slot < node.low + node.width // 2 else node.right
            assert child is not None
            node = child
            path.append(node)
        return path


def _built(low: int, width: int, slots: NDArray[np.int64], weights: Weights) -> Node:
    node = Node(low, width)
    node.count = len(slots)
    if len(slots) <= LEAF:
        node.slots = array("q", slots.tobytes())
    else:
        node.slots = None
        half = width // 2
        middle = int(np.searchsorted(slots, low + half))
        node.left = _built(low, half, slots[:middle], weights)
        node.right = _built(low + half, half, slots[middle:], weights)
    _sum([node], weights)
    return node


def _take_over(node: Node, other: Node) -> None:
    for name in ("slots", "left", "right", "count", "total"):
        setattr(node, name, getattr(other, name))


def _collected(node: Node) -> NDArray[np.int64]:
    """All slots below `node`, ascending."""
    if node.slots is not None:
        return _numbers(node.slots).copy()
    assert node.left is not None and node.right is not None
    return np.concatenate([_collected(node.left), _collected(node.right)])


def _slots_of(leaf: Node) -> "array[int]":
    assert leaf.slots is not None
    return leaf.slots


def _numbers(slots: "array[int]") -> NDArray[np.int64]:
    return np.frombuffer(slots, dtype=np.int64)


def _sum(path: Sequence[Node], weights: Weights) -> None:
    """Sum up again from the last node of `path` to the first."""
    for node in reversed(path):
        if node.slots is not None:
            node.total = _log_sum(weights[_numbers(node.slots)])
        else:
            assert node.left is not None and node.right is not None
            node.total = log_add(node.left.total, node.right.total)


def _log_sum(logs: NDArray[np.float64]) -> float:
    largest = float(logs.max(initial=-math.inf))
    return largest if largest == -math.inf else largest + math.log(np.exp(logs - largest).sum())


def log_add(a: float, b: float) -> float:
    """log(e^a + e^b)."""
    high, low = (a, b) if a >= b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
