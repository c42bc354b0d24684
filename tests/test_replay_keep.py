"""What is kept: the random ranks against formulas, the policies case by case."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from rlsf.config.replay import ReplayConfig
from rlsf.replay import ReplayStore
from rlsf.replay.keep import Keeper, Standing, mean_reward, random_rank
from tests.replay_groups import make_group

LIKELY = 1e-3
"""Fixed seeds: a p-value below this means a wrong distribution, not bad luck."""


def ids(store: ReplayStore) -> list[str]:
    return [group.id for group in store.groups()]


def test_random_ranks_are_uniform_and_differ_by_seed():
    ranks = [random_rank(seq, seed=3) for seq in range(1, 100_001)]
    assert min(ranks) >= 0 and max(ranks) < 1 and len(set(ranks)) == len(ranks)
    assert kstest(ranks, "uniform").pvalue > LIKELY
    assert abs(np.corrcoef(ranks[:-1], ranks[1:])[0, 1]) < 4 / math.sqrt(len(ranks))
    assert random_rank(1, seed=3) == ranks[0] != random_rank(1, seed=4)


def test_a_reservoir_is_a_uniform_sample_of_100_000_groups():
    """The store keeps the highest ranks (`tests/test_replay_model.py` holds it to that)."""
    seen, capacity, bins = 100_000, 10_000, 100
    ranks = np.array([random_rank(seq, seed=11) for seq in range(1, seen + 1)])
    kept = np.argsort(ranks)[-capacity:]
    counts = np.bincount(kept * bins // seen, minlength=bins)
    share = capacity / seen
    # Counts of a sample without replacement: this statistic is chi-squared with bins - 1 degrees of freedom.
    statistic = ((counts - capacity / bins) ** 2).sum() / (capacity / bins * (1 - share))
    assert LIKELY < chi2.sf(statistic, bins - 1) < 1 - LIKELY


@pytest.mark.parametrize("capacity", [1, 10])
def test_every_group_ever_seen_is_equally_likely_to_remain_in_a_reservoir(capacity):
    seen, seeds = 30, 1000
    remains = np.zeros(seen)
    for seed in range(seeds):
        ranks = [random_rank(seq, seed=seed) for seq in range(1, seen + 1)]
        remains[np.argsort(ranks)[-capacity:]] += 1
    share = capacity / seen
    statistic = ((remains - seeds * share) ** 2).sum() / (seeds * share * (1 - share)) * (seen - 1) / seen
    assert LIKELY < chi2.sf(statistic, seen - 1) < 1 - LIKELY


def balanced_sample(stream: str, capacity: int, seed: int) -> list[tuple[str, int]]:
    """(task, seq) of what remains of a stream of tasks, by the rules of `balanced` over a list."""
    kept: list[tuple[str, float, int]] = []
    keeper = Keeper("balanced", {}, {})
    for seq, task in enumerate(stream, start=1):
        newcomer = Standing(task, random_rank(seq, seed=seed))
        if not keeper.admits(newcomer):
            continue
        kept.append((*newcomer, seq))
        if len(kept) > capacity:
            shrinking = keeper.shrinking_class(newcomer)
            gone = min(item for item in kept if item[0] == shrinking)
            kept.remove(gone)
            keeper.let_go(Standing(*gone[:2]))
        keeper.sizes = dict(Counter(item[0] for item in kept))
    return [(task, seq) for task, _, seq in kept]


def test_balanced_shares_the_room_and_keeps_a_uniform_sample_of_each_task():
    stream = "a" * 40 + "b" * 12 + "ab" * 10 + "c" * 2
    places: Counter[int] = Counter()
    for seed in range(600):
        kept = balanced_sample(stream, 12, seed)
        assert Counter(task for task, _ in kept) == {"a": 5, "b": 5, "c": 2}
        places.update(seq for task, seq in kept if task == "a")
    of_a = [seq for seq, task in enumerate(stream, start=1) if task == "a"]
    share = 5 / len(of_a)
    counts = np.array([places[seq] for seq in of_a])
    statistic = ((counts - 600 * share) ** 2).sum() / (600 * share * (1 - share)) * (len(of_a) - 1) / len(of_a)
    assert LIKELY < chi2.sf(statistic, len(of_a) - 1) < 1 - LIKELY


def test_equally_large_classes():
    keeper = Keeper("balanced", {"a": 3, "b": 3, "c": 2}, {})
    assert keeper.shrinking_class(Standing("c", 0.5)) == "c"  # 3 with the newcomer
    assert keeper.shrinking_class(Standing("d", 0.5)) == "a"
    assert keeper.shrinking_class(Standing("b", 0.5)) == "b"
    assert Keeper("balanced", {"a": 1}, {}).shrinking_class(Standing("b", 0.5)) == "b"  # a room for one: nobody enters


def test_top_reward_lets_the_lowest_go_the_oldest_first_and_no_reward_before_all(tmp_path):
    with ReplayStore.open(tmp_path, ReplayConfig(capacity=3, keep="top_reward"), seed=0) as store:
        rewards = [(-5.0,), (None, None), (1.0, 0.0), (0.5,), (None, 0.5), (0.5, None, 0.5), (-9.0,)]
        for number, values in enumerate(rewards):
            store.add([make_group(f"g{number}", rewards=values)], iteration=1)
            if number == 3:
                assert ids(store) == ["g0", "g2", "g3"]  # g1 went
        assert ids(store) == ["g3", "g4", "g5"]  # all have 0.5; g2 was the oldest of four


def test_mean_rewards():
    assert mean_reward([None, None]) is None
    assert mean_reward([1.0, None, 0.0]) == 0.5
    assert mean_reward([1.7e308, 1.7e308]) == 1.7e308
    assert math.copysign(1, mean_reward([-0.0]) or 0) == 1


def test_diverse_keeps_clusters_alike_and_starts_anew_when_they_change(tmp_path):
    with ReplayStore.open(tmp_path, ReplayConfig(capacity=6, keep="diverse"), seed=0) as store:
        store.add([make_group("alone")], iteration=1)
        for number in range(30):
            store.add([make_group(f"g{number}")], iteration=1, clusters={f"g{number}": 7 if number % 10 else 8})
        kept = Counter(store.clusters().values())
        assert kept == {7: 3, 8: 2} or kept == {7: 2, 8: 3}
        assert "alone" in ids(store)
        assert store.stats().clusters[None] == 1
        assert store._keeper.thresholds.keys() == {"7", "8"}
        before = store.digest()
        assert store.set_clusters(dict.fromkeys(ids(store), 1) | {"gone": 1}, iteration=2) == 6
        assert store._keeper.thresholds == {} and store._keeper.sizes == {"1": 6}
        assert set(store.clusters().values()) == {1} and store.digest() != before
        store.rollback(1)
        assert store.digest() == before and store._keeper.thresholds.keys() == {"7", "8"}


@pytest.mark.parametrize("bad", [1.0, True, "1", 2**63, None])
def test_a_cluster_is_an_integer(tmp_path, bad):
    with ReplayStore.open(tmp_path, ReplayConfig(), seed=0) as store:
        with pytest.raises(ValueError, match=r"group 'a': cluster .* is no integer"):
            store.add([make_group("a")], iteration=1, clusters={"a": bad})
        with pytest.raises(ValueError, match="cluster of group 'b', which is not in the batch"):
            store.add([make_group("a")], iteration=1, clusters={"b": 1})
        store.add([make_group("a")], iteration=1, clusters={"a": np.int64(3)})
        assert store.clusters() == {"a": 3}


def test_embeddings_come_back_in_order_and_go_with_their_groups(tmp_path):
    rng = np.random.default_rng(0)
    vectors = {f"g{number}": rng.normal(size=5) for number in range(6)}
    with ReplayStore.open(tmp_path, ReplayConfig(capacity=4), seed=0) as store:
        assert store.embeddings()[1].shape == (0, 0)
        store.add([make_group("none")], iteration=1)
        store.add([make_group(name) for name in vectors], iteration=1, embeddings=vectors)
        names, found = store.embeddings()
        assert names == ["g2", "g3", "g4", "g5"] and found.dtype == np.float32
        assert (found == np.array([vectors[name] for name in names], dtype=np.float32)).all()
        for bad in (np.zeros(4), np.zeros((1, 5)), np.array([1.0, 2, 3, 4, math.nan])):
            with pytest.raises(ValueError, match="group 'x': its embedding has"):
                store.add([make_group("x")], iteration=1, embeddings={"x": bad})
