"""Newcomers: what is checked before they are added, and their rows."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlsf.experience import Group
from rlsf.replay.codec import check_group, encode
from rlsf.replay.index import Entry
from rlsf.replay.keep import Keep, Standing, mean_reward, standing
from rlsf.replay.tables import blob_checksum


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A group that is to be added."""

    seq: int
    group: Group
    payload: bytes
    standing: Standing
    success: float | None
    """Mean reward."""
    cluster: int | None
    embedding: np.ndarray | None

    def entry(self, slot: int) -> Entry:
        group = self.group
        return Entry(
            slot, group.iteration, group.policy_version, group.priority, group.task, self.cluster, self.success
        )


def make_newcomers(
    groups: Sequence[Group],
    clusters: Mapping[str, int],
    embeddings: Mapping[str, np.ndarray],
    *,
    first: int,
    keep: Keep,
    seed: int,
) -> list[Newcomer]:
    """The groups of a batch, numbered from `first`, and where each stands.

    Raises:
        ValueError: a group breaks its contract, is twice in the batch, or holds something that is no JSON; a cluster is
            no integer, or a cluster or an embedding is of a group that is not in the batch; the message names it.
    """
    check_clusters(clusters)
    ids: set[str] = set()
    newcomers: list[Newcomer] = []
    for seq, group in enumerate(groups, start=first):
        check_group(group)
        if group.id in ids:
            raise ValueError(f"group {group.id!r} is twice in the batch")
        ids.add(group.id)
        cluster = None if group.id not in clusters else int(clusters[group.id])
        newcomers.append(
            Newcomer(
                seq=seq,
                group=group,
                payload=encode(group),
                standing=standing(keep, seq=seq, group=group, cluster=cluster, seed=seed),
                success=mean_reward(group.rewards),
                cluster=cluster,
                embedding=embeddings.get(group.id),
            )
        )
    for name, given in (("cluster", clusters), ("embedding", embeddings)):
        unknown = sorted(given.keys() - ids)
        if unknown:
            raise ValueError(f"there is a {name} of group {unknown[0]!r}, which is not in the batch")
    return newcomers


def check_clusters(clusters: Mapping[str, int]) -> None:
    """Raises ValueError, naming the group, where a cluster is no integer that SQLite can hold."""
    for group_id, cluster in clusters.items():
        if not isinstance(cluster, int | np.integer) or isinstance(cluster, bool) or not -(2**63) <= cluster < 2**63:
            raise ValueError(f"group {group_id!r}: cluster {cluster!r} is no integer of 64 bits")


def check_embeddings(connection: sqlite3.Connection, newcomers: Sequence[Newcomer]) -> None:
    """Raises ValueError, naming the group, unless all are finite vectors of the length that the store has already."""
    stored = connection.execute("SELECT length(data) / 4 FROM embeddings LIMIT 1").fetchone()
    length = None if stored is None else stored[0]
    for newcomer in newcomers:
        vector = newcomer.embedding
        if vector is None:
            continue
        length = len(vector) if length is None and vector.ndim == 1 else length
        if vector.shape != (length,) or not length:
            raise ValueError(
                f"group {newcomer.group.id!r}: its embedding has shape {vector.shape}, and a vector of "
                f"{length or 'some'} numbers is expected"
            )
        if not np.isfinite(vector.astype(np.float32)).all():
            raise ValueError(f"group {newcomer.group.id!r}: its embedding has numbers that are not finite in float32")


def insert(connection: sqlite3.Connection, newcomer: Newcomer, slot: int | None, *, draws: int = 0) -> None:
    """All rows of a group."""
    group, seq = newcomer.group, newcomer.seq
    connection.execute(
        "INSERT INTO groups (seq, id, task, iteration, policy_version, slot, priority, draws, cluster, class, rank, "
        "success) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            seq,
            group.id,
            group.task,
            group.iteration,
            group.policy_version,
            slot,
            group.priority + 0.0,
            draws,
            newcomer.cluster,
            newcomer.standing.keep_class,
            newcomer.standing.rank,
            newcomer.success,
        ),
    )
    _insert_blob(connection, "payloads", seq, group.id, newcomer.payload)
    if newcomer.embedding is not None:
        _insert_blob(connection, "embeddings", seq, group.id, newcomer.embedding.astype("<f4").tobytes())
    connection.executemany(
        "INSERT INTO rollouts (seq, position, id, reward) VALUES (?, ?, ?, ?)",
        [
            (seq, position, experience.rollout.id, experience.score.value)
            for position, experience in enumerate(group.experiences)
        ],
    )


def _insert_blob(connection: sqlite3.Connection, table: str, seq: int, group_id: str, data: bytes) -> None:
    connection.execute(
        f"INSERT INTO {table} (seq, data, checksum) VALUES (?, ?, ?)", (seq, data, blob_checksum(group_id, data))
    )
