"""Which group stays when the store is full."""

from typing import Literal

import numpy as np

Keep = Literal["fifo", "reservoir"]

RESERVOIR_STREAM = 1
"""Separates these random numbers from those of `draw`, which share the store's seed."""


def slot_for(seq: int, *, keep: Keep, capacity: int, seed: int) -> int | None:
    """The slot that the `seq`-th group ever seen (counted from 1) takes; None where it is not kept.

    Slots 0 to capacity − 1 fill up in order. From then on each newcomer takes the slot of the group that it drives out,
    so occupied slots are always 0 to len − 1. The answer depends on the arguments alone: nothing to save but the count.

    `fifo` drives out the oldest. `reservoir` is algorithm R (Vitter 1985, doi 10.1145/3147.3165): after t groups each
    of them is in the store with probability capacity / t.
    """
    if seq <= capacity:
        return seq - 1
    if keep == "fifo":
        return (seq - 1) % capacity
    slot = int(np.random.default_rng([seed, RESERVOIR_STREAM, seq]).integers(seq))
    return slot if slot < capacity else None
