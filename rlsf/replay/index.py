"""What drawing needs to know about every slot, in memory: about 60 bytes a group.

Slots are sorted into strata by task and by what quotas go by, each with a trie of weights: a task is excluded by
leaving out its strata. A draw is a function of what is stored, the calls' arguments and the random numbers alone.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from rlsf.replay.draw import Draw, Label, Shares, apportion, check_shares, label_of, log_weights, shares_of, within_of
from rlsf.replay.trie import LogSumTrie


class Entry(NamedTuple):
    """What drawing goes by, of the group in one slot."""

    slot: int
    iteration: int
    policy_version: int
    priority: float
    task: str
    cluster: int | None
    success: float | None


class Stratum:
    """The slots of one task with a common quota."""

    __slots__ = ("drawable", "label", "task", "trie")

    def __init__(self, task: str, label: Label, *, drawable: bool, capacity: int) -> None:
        self.task, self.label, self.drawable = task, label, drawable
        self.trie = LogSumTrie(capacity)

    @property
    def order(self) -> tuple[str, bool, Label]:
        return self.task, self.label is not None, self.label


class DrawIndex:
    """Slots 0 to len − 1 must be filled before anything is drawn."""

    def __init__(self, draw: Draw, *, capacity: int) -> None:
        self._draw = draw
        self._capacity = capacity
        self._size = 0
        self._iteration = np.empty(0, dtype=np.int64)
        self._version = np.empty(0, dtype=np.int64)
        self._stratum = np.empty(0, dtype=np.int32)
        self._log_weight = np.empty(0)
        self._effective = np.empty(0)  # −inf where the group is too old, hidden or drawn
        self._strata: list[Stratum] = []
        self._numbers: dict[tuple[str, Label], int] = {}
        self.oldest_version: int | None = None
        """None draws groups of any policy version."""

    def __len__(self) -> int:
        return self._size

    def load(self, chunks: Iterable[Sequence[Entry]]) -> None:
        """Fill an empty index."""
        for entries in chunks:
            self._fill(entries)
        self._rebuild()

    def put(self, entries: Sequence[Entry]) -> None:
        """Fill slots, or fill them anew."""
        entries = list({entry.slot: entry for entry in entries}.values())
        if len(entries) * 16 > self._size:
            self.load([entries])
            return
        for entry in entries:
            slot = entry.slot
            if slot < self._size:
                self._strata[self._stratum[slot]].trie.remove(slot, self._effective)
            self._fill([entry])
            self._strata[self._stratum[slot]].trie.insert(slot, self._effective)

    def set_priorities(self, priorities: Sequence[tuple[int, float]]) -> None:
        """Pairs of (slot, priority)."""
        slots = [slot for slot, _ in priorities]
        self._log_weight[slots] = log_weights(
            within_of(self._draw), priorities=[p for _, p in priorities], iterations=self._iteration[slots]
        )
        self._refresh(slots)

    def set_oldest_version(self, version: int, *, too_old: Sequence[int] | None = None) -> None:
        """Draw no group of an older policy version from now on. `too_old` are the slots that this takes out, where the
        caller knows them; else all are looked at."""
        self.oldest_version = version
        if too_old is None:
            self._weigh(np.arange(self._size))
            self._rebuild()
        else:
            self._refresh(too_old)

    def draw(
        self,
        n: int,
        rng: np.random.Generator,
        *,
        hidden: Sequence[int] = (),
        exclude_tasks: Collection[str] = (),
        shares: Shares | None = None,
    ) -> list[int]:
        """Up to `n` different slots, none of them `hidden` or of an excluded task. Within a quota each is drawn in
        proportion to its weight among those left.

        Slots of weight 0 are drawn, uniformly, only when no slot of positive weight could be drawn at all.

        Raises:
            ValueError: `shares` are negative or not finite, or the configured draw has no use for them.
        """
        check_shares(self._draw, shares)
        drawn: list[int] = []
        try:
            self._hide(hidden)
            strata = sorted(
                (s for s in self._strata if s.drawable and s.task not in exclude_tasks), key=lambda s: s.order
            )
            while len(drawn) < n:
                quotas = self._quotas(n - len(drawn), strata, shares, rng)
                if not quotas:
                    break
                for part, quota in quotas:
                    drawn += self._take(quota, part, rng)
            if not drawn:
                return self._draw_weightless(n, rng, hidden, exclude_tasks)
        finally:
            self._refresh([*hidden, *drawn])
        return drawn

    def _quotas(
        self, n: int, strata: Sequence[Stratum], shares: Shares | None, rng: np.random.Generator
    ) -> list[tuple[list[Stratum], int]]:
        """Strata with a common quota, and the quota; only those that are not exhausted."""
        parts: dict[Label, list[Stratum]] = {}
        for stratum in strata:
            if stratum.trie.total > -math.inf:
                parts.setdefault(stratum.label, []).append(stratum)
        if not parts:
            return []
        seats = apportion(n, shares_of(self._draw, list(parts), shares), rng)
        return list(zip(parts.values(), seats, strict=True))

    def _take(self, n: int, strata: Sequence[Stratum], rng: np.random.Generator) -> list[int]:
        """Up to `n` slots of these strata."""
        drawn: list[int] = []
        totals = np.array([stratum.trie.total for stratum in strata])
        while len(drawn) < n and totals.max() > -math.inf:
            number = 0 if len(strata) == 1 else _pick(totals, rng)
            trie = strata[number].trie
            slot = trie.draw(rng, self._effective)
            self._effective[slot] = -math.inf
            trie.refresh(slot, self._effective)
            totals[number] = trie.total
            drawn.append(slot)
        return drawn

    def _draw_weightless(
        self, n: int, rng: np.random.Generator, hidden: Sequence[int], exclude_tasks: Collection[str]
    ) -> list[int]:
        eligible = np.ones(self._size, dtype=bool)
        if self.oldest_version is not None:
            eligible = self._version[: self._size] >= self.oldest_version
        excluded = [number for number, stratum in enumerate(self._strata) if stratum.task in exclude_tasks]
        eligible &= ~np.isin(self._stratum[: self._size], excluded)
        eligible[list(hidden)] = False
        slots = np.flatnonzero(eligible)
        return [int(slot) for slot in rng.choice(slots, size=min(n, len(slots)), replace=False)]

    def _hide(self, slots: Sequence[int]) -> None:
        self._effective[list(slots)] = -math.inf
        self._resum(slots)

    def _refresh(self, slots: Sequence[int]) -> None:
        """Call it when weights, or what hides them, may have changed."""
        self._weigh(np.asarray(slots, dtype=np.int64))
        self._resum(slots)

    def _resum(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._strata[self._stratum[slot]].trie.refresh(slot, self._effective)

    def _weigh(self, slots: np.ndarray) -> None:
        weights = self._log_weight[slots]
        if self.oldest_version is not None:
            weights = np.where(self._version[slots] >= self.oldest_version, weights, -np.inf)
        self._effective[slots] = weights

    def _fill(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        slots = np.array([entry.slot for entry in entries], dtype=np.int64)
        self._reserve(int(slots.max()) + 1)
        iterations = np.array([entry.iteration for entry in entries], dtype=np.int64)
        self._iteration[slots] = iterations
        self._version[slots] = [entry.policy_version for entry in entries]
        self._stratum[slots] = [self._stratum_of(entry) for entry in entries]
        self._log_weight[slots] = log_weights(
            within_of(self._draw), priorities=[entry.priority for entry in entries], iterations=iterations
        )
        self._weigh(slots)

    def _stratum_of(self, entry: Entry) -> int:
        label = label_of(self._draw, task=entry.task, cluster=entry.cluster, success=entry.success)
        key = entry.task, label
        if key not in self._numbers:
            drawable = self._draw.kind != "success" or label is not None
            self._numbers[key] = len(self._strata)
            self._strata.append(Stratum(*key, drawable=drawable, capacity=self._capacity))
        return self._numbers[key]

    def _rebuild(self) -> None:
        order = np.argsort(self._stratum[: self._size], kind="stable").astype(np.int64)
        bounds = np.searchsorted(self._stratum[order], np.arange(len(self._strata) + 1))
        for number, stratum in enumerate(self._strata):
            stratum.trie.build(order[bounds[number] : bounds[number + 1]], self._effective)

    def _reserve(self, size: int) -> None:
        self._size = max(self._size, size)
        if size > len(self._version):
            room = min(1 << (size - 1).bit_length(), self._capacity)
            for name in ("_iteration", "_version", "_stratum", "_log_weight", "_effective"):
                old = getattr(self, name)
                new = np.zeros(room, dtype=old.dtype)
                new[: len(old)] = old
                setattr(self, name, new)


def _pick(log_weights: np.ndarray, rng: np.random.Generator) -> int:
    """An index, in proportion to its weight."""
    sums = np.cumsum(np.exp(log_weights - log_weights.max()))
    last = int(np.searchsorted(sums, sums[-1]))
    return min(int(np.searchsorted(sums, rng.random() * sums[-1], side="right")), last)
