"""The store against a plain model in memory, over random sequences of calls, for every way to keep and to draw."""

import copy
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsf.config.replay import (
    PerClusterDraw,
    PerTaskDraw,
    PrioritizedDraw,
    RecencyDraw,
    ReplayConfig,
    SuccessDraw,
    UniformDraw,
)
from rlsf.errors import RunDirError
from rlsf.experience import Group
from rlsf.replay import ReplayReader, ReplayStore
from rlsf.replay.keep import random_rank
from tests.replay_groups import make_group

SEED = 7
KEEPS = ["fifo", "reservoir", "balanced", "top_reward", "diverse"]
DRAWS = [
    UniformDraw(),
    PrioritizedDraw(),
    PrioritizedDraw(alpha=0, age_decay=0.5),
    RecencyDraw(half_life=2),
    PerTaskDraw(shares={"task0": 2, "task1": 1}, within=PrioritizedDraw()),
    PerClusterDraw(within=RecencyDraw()),
    SuccessDraw(within=PrioritizedDraw()),
]


@dataclass
class Kept:
    seq: int
    group: Group
    cluster: int | None
    keep_class: Any
    rank: float


@dataclass
class Model:
    """What the store should do, written plainly: a list of what is kept, and copies of everything."""

    config: ReplayConfig
    kept: list[Kept] = field(default_factory=list)
    let_go: dict[Any, float] = field(default_factory=dict)
    seen: int = 0
    drawn: int = 0

    def add(self, groups: list[Group], clusters: dict[str, int]) -> None:
        for group in groups:
            self.seen += 1
            self._add(group, clusters.get(group.id))

    def _add(self, group: Group, cluster: int | None) -> None:
        keep = self.config.keep
        known = [reward for reward in group.rewards if reward is not None]
        ranks = {"fifo": self.seen, "top_reward": sum(known) / len(known) if known else -math.inf}
        rank = ranks.get(keep, random_rank(self.seen, seed=SEED))
        keep_class = {"balanced": group.task, "diverse": cluster}.get(keep)
        if rank < self.let_go.get(keep_class, -math.inf):
            return
        self.kept.append(Kept(self.seen, group, cluster, keep_class, rank))
        if len(self.kept) <= self.config.capacity:
            return
        sizes = Counter(item.keep_class for item in self.kept)
        largest = [name for name, size in sizes.items() if size == max(sizes.values())]
        written = {"" if name is None else str(name): name for name in largest}
        going = keep_class if keep_class in largest else written[min(written)]
        gone = min((item for item in self.kept if item.keep_class == going), key=lambda item: (item.rank, item.seq))
        self.kept.remove(gone)
        if keep in ("balanced", "diverse"):
            self.let_go[going] = max(self.let_go.get(going, 0), gone.rank)

    def set_priorities(self, priorities: dict[str, float]) -> int:
        changed = 0
        for item in self.kept:
            if item.group.id in priorities:
                changed += 1
                new = [replace(e, priority=priorities[item.group.id]) for e in item.group.experiences]
                item.group = replace(item.group, experiences=tuple(new))
        return changed

    def set_clusters(self, clusters: dict[str, int]) -> int:
        changed = [item for item in self.kept if item.group.id in clusters]
        for item in changed:
            item.cluster = clusters[item.group.id]
            if self.config.keep == "diverse":
                item.keep_class = item.cluster
        self.let_go = {} if self.config.keep == "diverse" else self.let_go
        return len(changed)

    def check_draw(self, drawn: list[Group], n: int, version: int, excluded: int | None, tasks: list[str]) -> None:
        oldest = -1 if self.config.max_staleness is None else version - self.config.max_staleness
        eligible = {
            item.group.id: item
            for item in self.kept
            if item.group.policy_version >= oldest and item.group.iteration != excluded and item.group.task not in tasks
        }
        positive = {group_id: item for group_id, item in eligible.items() if self._label_and_weight(item)[1]}
        names = [group.id for group in drawn]
        assert len(set(names)) == len(names) == min(n, len(positive or eligible))
        assert all((positive or eligible)[group.id].group == group for group in drawn)
        if positive:
            self._check_quotas(Counter(self._label_and_weight(positive[name])[0] for name in names), n, positive)
        self.drawn += len(drawn)

    def _label_and_weight(self, item: Kept) -> tuple[Any, bool]:
        """What its quota goes by, and whether it may be drawn before those of weight 0."""
        draw = self.config.draw
        within = getattr(draw, "within", draw)
        heavy = item.group.priority > 0 or within.kind != "prioritized" or within.alpha == 0
        if draw.kind == "per_task":
            return item.group.task, heavy
        if draw.kind == "per_cluster":
            return item.cluster, heavy
        if draw.kind == "success":
            known = [min(max(r, 0), 1) for r in item.group.rewards if r is not None]
            return min(int(sum(known) / len(known) * 4), 3) if known else None, heavy and bool(known)
        return None, heavy

    def _check_quotas(self, counts: Counter, n: int, positive: dict[str, Kept]) -> None:
        available = Counter(self._label_and_weight(item)[0] for item in positive.values())
        shares = dict.fromkeys(available, 1.0)
        if self.config.draw.kind == "per_task":
            given = {label: self.config.draw.shares.get(label, 0.0) for label in available}
            shares = given if any(given.values()) else shares
        if self.config.draw.kind == "success":
            shares = {bucket: math.exp(-(((bucket + 0.5) / 4 - 0.5) ** 2) / 0.125) for bucket in available}
        quotas = {label: n * share / sum(shares.values()) for label, share in shares.items()}
        for label, quota in quotas.items():
            assert counts[label] >= min(math.floor(quota - 1e-9), available[label])
            if all(math.ceil(quotas[other] + 1e-9) <= available[other] for other in quotas):
                assert counts[label] <= math.ceil(quota + 1e-9)
            if shares[label] == 0 and counts[label]:
                assert all(counts[other] == available[other] for other in quotas if shares[other] > 0)

    def check(self, store: ReplayReader) -> None:
        assert len(store) == len(self.kept)
        assert {g.id: g for g in store.groups()} == {item.group.id: item.group for item in self.kept}
        assert store.clusters() == {item.group.id: item.cluster for item in self.kept if item.cluster is not None}
        assert store.seen == self.seen
        assert store.stats().drawn == self.drawn


PRIORITIES = st.sampled_from([0.0, 0.5, 1.0, 1.0, 7.5])  # ties and zeros are common
REWARDS = st.sampled_from([None, 0.0, 0.25, 0.5, 1.0, 1.0])
CLUSTERS = st.sampled_from([None, 0, 1, 10])
NUMBERS = st.integers(0, 20)
OPERATIONS = st.one_of(
    st.tuples(st.just("add"), st.lists(st.tuples(PRIORITIES, REWARDS, CLUSTERS), min_size=1, max_size=5)),
    st.tuples(
        st.just("draw"), st.integers(0, 6), st.integers(0, 6), st.booleans(), st.sampled_from([[], [], ["task1"]])
    ),
    st.tuples(st.just("prioritise"), st.lists(st.tuples(NUMBERS, PRIORITIES), min_size=1, max_size=4)),
    st.tuples(st.just("cluster"), st.lists(st.tuples(NUMBERS, st.integers(0, 2)), max_size=6)),
    st.tuples(st.just("next")),
    st.tuples(st.just("reopen")),
)
CONFIGS = st.builds(
    ReplayConfig,
    capacity=st.sampled_from([1, 3, 8]),
    keep=st.sampled_from(KEEPS),
    draw=st.sampled_from(DRAWS),
    max_staleness=st.sampled_from([None, 1, 3]),
)


class Driver:
    """Plays operations on a store, and on a model where one is given."""

    def __init__(self, directory, config: ReplayConfig) -> None:
        self.directory, self.config = directory, config
        self.store = ReplayStore.open(directory, config, seed=SEED)
        self.iteration, self.made = 1, 0

    def reopen(self) -> None:
        self.store.close()
        self.store = ReplayStore.open(self.directory, self.config, seed=SEED)

    def play(self, operation, model: Model | None = None) -> list[str]:
        kind, *arguments = operation
        if kind == "add":
            self._add(arguments[0], model)
        elif kind == "draw":
            n, version, exclude, tasks = arguments
            excluded = self.iteration if exclude else None
            drawn = self.store.draw(
                n,
                iteration=self.iteration,
                policy_version=version,
                exclude_iteration=excluded,
                exclude_tasks=tasks,
            )
            if model is not None:
                model.check_draw(drawn, n, version, excluded, tasks)
            return [group.id for group in drawn]
        elif kind == "prioritise":
            priorities = {f"g{number}": priority for number, priority in arguments[0]}
            changed = self.store.update_priorities(priorities, iteration=self.iteration)
            if model is not None:
                assert changed == model.set_priorities(priorities)
        elif kind == "cluster":
            clusters = {f"g{number}": cluster for number, cluster in arguments[0]}
            changed = self.store.set_clusters(clusters, iteration=self.iteration)
            if model is not None:
                assert changed == model.set_clusters(clusters)
        elif kind == "next":
            self.store.add([], iteration=self.iteration)  # a run adds in every iteration, if only nothing
            self.iteration += 1
        else:
            self.reopen()
        return []

    def _add(self, rows, model: Model | None) -> None:
        groups, clusters, embeddings = [], {}, {}
        for i, (priority, reward, cluster) in enumerate(rows):
            name = f"g{self.made + i}"
            groups.append(
                make_group(
                    name, iteration=self.iteration, priority=priority, task=f"task{i % 2}", rewards=(reward, reward)
                )
            )
            if cluster is not None:
                clusters[name] = cluster
                embeddings[name] = np.full(3, float(cluster))
        self.made += len(groups)
        self.store.add(groups, iteration=self.iteration, clusters=clusters, embeddings=embeddings)
        if model is not None:
            model.add(groups, clusters)


@settings(deadline=None, max_examples=100)
@given(config=CONFIGS, operations=st.lists(OPERATIONS, min_size=6, max_size=40), data=st.data())
def test_the_store_does_what_the_model_does_and_every_rollback_is_exact(tmp_path_factory, config, operations, data):
    driver, model = Driver(tmp_path_factory.mktemp("replay"), config), Model(config)
    ends = [(driver.store.digest(), copy.deepcopy(model))]  # at the end of each iteration
    for operation in operations:
        driver.play(operation, model)
        model.check(driver.store)
        if operation[0] == "next":
            ends.append((driver.store.digest(), copy.deepcopy(model)))
    pruned = data.draw(st.integers(0, len(ends) - 1), label="pruned")
    before = driver.store.digest()
    driver.store.prune_journal(pruned)
    driver.store.compact()
    assert driver.store.digest() == before
    targets = data.draw(st.sets(st.integers(pruned, len(ends) - 1), min_size=1), label="targets")
    for target in sorted(targets | {pruned}, reverse=True):
        digest, snapshot = ends[target]
        driver.store.rollback(target)
        assert driver.store.digest() == digest
        snapshot.check(driver.store)
    if pruned:
        with pytest.raises(RunDirError, match=f"pruned up to iteration {pruned}"):
            driver.store.rollback(pruned - 1)
    assert ReplayReader.open_read_only(driver.directory).digest() == ends[pruned][0]
    driver.store.close()


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.kind)
@pytest.mark.parametrize("keep", KEEPS)
@settings(deadline=None, max_examples=6)
@given(data=st.data())
def test_after_a_rollback_it_goes_on_like_a_store_that_was_left_alone(tmp_path_factory, keep, draw, data):
    config = ReplayConfig(
        capacity=data.draw(st.sampled_from([1, 3, 8])),
        keep=keep,
        draw=draw,
        max_staleness=data.draw(st.sampled_from([None, 3])),
    )
    first, lost, rest = (data.draw(st.lists(OPERATIONS, max_size=12), label=name) for name in ("1st", "lost", "rest"))
    alone = Driver(tmp_path_factory.mktemp("alone"), config)
    resumed = Driver(tmp_path_factory.mktemp("resumed"), config)
    for operation in [*first, ("next",)]:
        assert alone.play(operation) == resumed.play(operation)
    iteration, made = resumed.iteration, resumed.made
    for operation in lost:
        resumed.play(operation)
    if data.draw(st.booleans(), label="reopen"):
        resumed.reopen()
    resumed.store.rollback(iteration - 1)
    resumed.iteration, resumed.made = iteration, made
    for operation in rest:
        assert alone.play(operation) == resumed.play(operation)
    assert alone.store.digest() == resumed.store.digest()
    alone.store.close()
    resumed.store.close()


@pytest.mark.parametrize(("keep", "draw"), list(zip([*KEEPS, *KEEPS], DRAWS, strict=False)))
def test_a_large_store_that_was_reopened_draws_what_the_one_that_stayed_open_draws(tmp_path, keep, draw):
    """Large: strata of many leaves. A draw of all groups would also find one that is lost."""
    config = ReplayConfig(capacity=250, keep=keep, draw=draw, max_staleness=9)
    stores = [ReplayStore.open(tmp_path / name, config, seed=SEED) for name in ("open", "reopened")]
    rng = np.random.default_rng(0)
    for iteration in range(1, 8):
        groups = [
            make_group(
                f"{iteration}-{i}",
                iteration=iteration,
                task=f"task{i % 3}",
                priority=float(rng.integers(3)),
                rewards=(float(rng.random()),),
            )
            for i in range(60)
        ]
        clusters = {group.id: int(rng.integers(4)) for group in groups}
        drawn: list[list[str]] = []
        for store in stores:
            store.add(groups, iteration=iteration, clusters=clusters)
            store.set_clusters({f"{iteration - 1}-{i}": i % 5 for i in range(0, 60, 7)}, iteration=iteration)
            some = store.draw(40, iteration=iteration, policy_version=iteration, exclude_iteration=iteration)
            store.update_priorities({group.id: 0.5 for group in some[::2]}, iteration=iteration)
            all_others = store.draw(300, iteration=iteration, policy_version=iteration, exclude_tasks=["task1"])
            drawn.append([group.id for group in [*some, *all_others]])
        assert drawn[0] == drawn[1]
        stores[1].close()
        stores[1] = ReplayStore.open(tmp_path / "reopened", config, seed=SEED)
    assert len(drawn[0]) > 100
    for store in stores:
        store.close()
