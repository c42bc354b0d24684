"""The persistent store of experiences: what to keep, what to draw, and exact rollback after a kill."""

from rlsf.replay.reader import ReplayReader, ReplayStats
from rlsf.replay.store import ReplayStore

__all__ = ["ReplayReader", "ReplayStats", "ReplayStore"]
