"""Stores to damage, and what must hold of a damaged one."""

import shutil
from pathlib import Path

import numpy as np

from rlsf.config.replay import PrioritizedDraw, ReplayConfig
from rlsf.errors import RunDirError
from rlsf.experience import Group
from rlsf.replay import ReplayReader, ReplayStore
from rlsf.replay.salvage import Fallback
from rlsf.replay.verify import verify
from tests.replay_groups import make_group

CONFIG = ReplayConfig(capacity=40, keep="balanced", draw=PrioritizedDraw(), max_staleness=50)
ITERATIONS = 6


def make_store(directory: Path, *, logged: bool) -> dict[str, Group]:
    """A store with evicted groups, a journal, clusters and embeddings; where `logged`, as a kill leaves it, the newest
    changes in the log alone. Returns every group that was ever added, with whatever priority."""
    made: dict[str, Group] = {}
    rng = np.random.default_rng(0)
    working = directory.with_name(directory.name + ".working") if logged else directory
    with ReplayStore.open(working, CONFIG, seed=1) as store:
        for iteration in range(1, ITERATIONS + 1):
            groups = [
                make_group(
                    f"g{iteration}-{i}",
                    iteration=iteration,
                    task="abc"[i % 3],
                    logprobs=tuple(rng.normal(size=200).tolist()),
                )
                for i in range(12)
            ]
            made |= {group.id: group for group in groups}
            vectors = {group.id: rng.normal(size=8) for group in groups}
            store.add(
                groups, iteration=iteration, clusters={g.id: i % 4 for i, g in enumerate(groups)}, embeddings=vectors
            )
            drawn = store.draw(5, iteration=iteration, policy_version=iteration)
            store.update_priorities({group.id: float(rng.random()) for group in drawn}, iteration=iteration)
            if iteration == 3:
                store.prune_journal(2)
                store._db.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if logged:
            shutil.copytree(working, directory, ignore=shutil.ignore_patterns("*-shm"))
    if logged:
        shutil.rmtree(working)
    return made


def content(directory: Path) -> tuple[str, list[str], dict[str, int]]:
    """What a whole store says of itself."""
    with ReplayReader.open_read_only(directory) as reader:
        return reader.digest(), [group.id for group in reader.groups()], reader.clusters()


def check_damaged(directory: Path, expected, made: dict[str, Group]) -> tuple[bool, int]:
    """Never a traceback, never silence. Returns whether the damage was harmless, and how many groups were saved."""
    saved = directory / "saved"
    found = verify(directory, iteration=ITERATIONS)
    assert not saved.exists()
    if found.is_whole:
        assert content(directory) == expected
        return True, len(expected[1])
    check_reading(directory, made)
    salvaged = verify(directory, iteration=ITERATIONS, output=saved, fallback=Fallback(40, "balanced", 1)).salvaged
    if salvaged is None:
        return False, 0
    with ReplayStore.open(saved, CONFIG, seed=1) as store:
        groups = list(store.groups())
        assert len(groups) == salvaged == len(store)
        assert all(group.experiences[0].rollout == made[group.id].experiences[0].rollout for group in groups)
        assert verify(saved).is_whole
        store.rollback(ITERATIONS)
        assert len(store.draw(3, iteration=ITERATIONS, policy_version=ITERATIONS)) == min(3, len(groups))
        store.add([make_group("new", iteration=9)], iteration=9)
    return False, salvaged


def check_reading(directory: Path, made: dict[str, Group]) -> None:
    """Whoever reads on without `verify` gets what was written, or an error that says what to do."""
    try:
        with ReplayReader.open_read_only(directory) as reader:
            for group in reader.groups():
                assert group.experiences[0].rollout == made[group.id].experiences[0].rollout
    except RunDirError as error:
        assert any(words in str(error) for words in ("rlsf replay verify", "schema version", "is not a replay store"))
