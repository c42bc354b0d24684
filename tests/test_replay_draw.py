"""What is drawn, and how often: against formulas; the trie below it; and what a draw costs."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from rlsf.config.replay import PerClusterDraw, PerTaskDraw, PrioritizedDraw, RecencyDraw, SuccessDraw, UniformDraw
from rlsf.replay.draw import apportion, bucket_of
from rlsf.replay.index import DrawIndex, Entry
from rlsf.replay.trie import LEAF, LogSumTrie

LIKELY = 1e-3
"""Fixed seeds: a p-value below this means a wrong distribution, not bad luck."""


def entry(slot, *, iteration=1, priority=1.0, task="a", cluster=None, success=0.5) -> Entry:
    return Entry(slot, iteration, iteration, priority, task, cluster, success)


def index_of(draw, entries) -> DrawIndex:
    index = DrawIndex(draw, capacity=max(len(entries), 1))
    index.load([entries])
    return index


def aged(draw, rows) -> DrawIndex:
    """`rows`: (iteration, priority), the slot being the position."""
    return index_of(draw, [entry(slot, iteration=i, priority=p) for slot, (i, p) in enumerate(rows)])


def draw_often(index: DrawIndex, times: int, n: int = 1, **arguments) -> Counter:
    rng = np.random.default_rng(0)
    return Counter(tuple(index.draw(n, rng, **arguments)) for _ in range(times))


@pytest.mark.parametrize(("alpha", "decay"), [(0.6, 0.9), (1.0, 1.0), (0.0, 0.5), (2.0, 0.99)])
def test_prioritised_draws_follow_the_formula(alpha, decay):
    rows = [(1, 0.5), (4, 0.5), (4, 0.5), (7, 0.1), (10, 3.0), (10, 1e-3), (2, 40.0)]
    weights = np.array([priority**alpha * decay ** (10 - iteration) for iteration, priority in rows])
    counts = draw_often(aged(PrioritizedDraw(alpha=alpha, age_decay=decay), rows), 8000)
    assert chisquare([counts[(slot,)] for slot in range(len(rows))], 8000 * weights / weights.sum()).pvalue > LIKELY


def test_recency_halves_with_every_half_life():
    rows = [(1, 0.0), (4, 1.0), (7, 1.0), (10, 5.0)]
    counts = draw_often(aged(RecencyDraw(half_life=3), rows), 8000)
    assert chisquare([counts[(slot,)] for slot in range(4)], 8000 * np.array([1, 2, 4, 8]) / 15).pvalue > LIKELY


def test_draws_without_replacement_are_successive_draws():
    priorities = [1.0, 2.0, 3.0, 4.0]
    counts = draw_often(aged(PrioritizedDraw(alpha=1, age_decay=1), [(1, p) for p in priorities]), 8000, n=2)
    pairs = list(itertools.permutations(range(4), 2))
    expected = [priorities[a] / 10 * priorities[b] / (10 - priorities[a]) for a, b in pairs]
    assert chisquare([counts[pair] for pair in pairs], 8000 * np.array(expected)).pvalue > LIKELY


@pytest.mark.parametrize("draw", [UniformDraw(), PrioritizedDraw(alpha=1, age_decay=1)])
def test_tasks_play_no_part_where_no_quota_is_asked_for(draw):
    rows = [entry(slot, task="abc"[slot % 3], priority=1.0 + slot) for slot in range(7)]
    weights = np.array([1.0 if draw.kind == "uniform" else row.priority for row in rows])
    counts = draw_often(index_of(draw, rows), 8000)
    assert chisquare([counts[(slot,)] for slot in range(7)], 8000 * weights / weights.sum()).pvalue > LIKELY


def test_age_decay_stays_exact_over_many_thousand_iterations():
    index = aged(PrioritizedDraw(age_decay=0.9), [(1, 1.0), (2, 1.0), (5_000, 1.0), (100_000, 1.0)])
    assert draw_often(index, 200) == {(3,): 200}
    counts = draw_often(index, 4000, hidden=(2, 3))  # only the two oldest are left: 0.9 to 1
    assert chisquare([counts[(0,)], counts[(1,)]], [4000 * 0.9 / 1.9, 4000 * 1 / 1.9]).pvalue > LIKELY


def test_priority_zero_is_drawn_only_when_nothing_else_could_be():
    index = aged(PrioritizedDraw(), [(1, 0.0), (1, 2.0), (1, 0.0), (1, 5e-324)])
    assert {frozenset(drawn) for drawn in draw_often(index, 50, n=4)} == {frozenset({1, 3})}
    counts = draw_often(index, 4000, hidden=(1, 3))
    assert chisquare([counts[(0,)], counts[(2,)]]).pvalue > LIKELY
    assert draw_often(index, 1, n=9, hidden=(0, 1, 2, 3)) == {(): 1}


# -- quotas ------------------------------------------------------------------------------------------------------------


def by(index: DrawIndex, drawn, what: str) -> Counter:
    return Counter(getattr(index._strata[index._stratum[slot]], what) for slot in drawn)


TASKS = [entry(slot, task="a" if slot < 20 else "b" if slot < 24 else "c", cluster=slot % 3) for slot in range(25)]


def test_tasks_have_equal_quotas_and_what_one_cannot_fill_goes_to_the_others():
    index = index_of(PerTaskDraw(), TASKS)  # 20 of a, 4 of b, 1 of c
    for drawn in draw_often(index, 30, n=3):
        assert by(index, drawn, "task") == {"a": 1, "b": 1, "c": 1}
    for drawn in draw_often(index, 30, n=12):
        assert by(index, drawn, "task") == {"a": 7, "b": 4, "c": 1}
    assert len(draw_often(index, 1, n=99).popitem()[0]) == 25
    remainder = sum((by(index, drawn, "task") for drawn in draw_often(index, 3000).elements()), Counter())
    assert chisquare([remainder[task] for task in "abc"]).pvalue > LIKELY  # one group: every task in turn, by lot


def test_shares_of_tasks():
    index = index_of(PerTaskDraw(shares={"a": 3, "b": 1}), TASKS)
    assert by(index, index.draw(8, np.random.default_rng(0)), "task") == {"a": 6, "b": 2}
    assert by(index, index.draw(24, np.random.default_rng(0)), "task") == {"a": 20, "b": 4}
    assert len(index.draw(25, np.random.default_rng(0))) == 25  # c, without a share, where nothing else is left
    rng = np.random.default_rng(0)
    assert by(index, index.draw(3, rng, shares={"b": 0.5, "a": 0}), "task") == {"b": 3}
    assert by(index, index.draw(3, rng, shares={"a": 0, "b": 0}), "task") == {"a": 1, "b": 1, "c": 1}
    counts = sum((by(index, index.draw(1, rng), "task") for _ in range(3000)), Counter())
    assert chisquare([counts["a"], counts["b"]], [2250, 750]).pvalue > LIKELY and not counts["c"]


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_bad_shares_are_refused(bad):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"shares: .* of 'b' is not a finite number"):
        index_of(PerTaskDraw(), TASKS).draw(2, rng, shares={"a": 1, "b": bad})
    with pytest.raises(ValueError, match="shares are for the draws per_task and per_cluster, not for uniform"):
        index_of(UniformDraw(), TASKS).draw(2, rng, shares={"a": 1})
    with pytest.raises(ValueError):
        PerTaskDraw(shares={"a": bad})


def test_clusters_have_equal_quotas_across_tasks_and_no_cluster_is_one_too():
    rows = [entry(slot, task="ab"[slot % 2], cluster=None if slot % 10 == 9 else slot % 3) for slot in range(60)]
    index = index_of(PerClusterDraw(), rows)
    assert by(index, index.draw(8, np.random.default_rng(0)), "label") == {None: 2, 0: 2, 1: 2, 2: 2}
    counts = Counter(s for drawn in draw_often(index, 4000).elements() for s in drawn if rows[s].cluster == 1)
    members = [row.slot for row in rows if row.cluster == 1]
    assert chisquare([counts[slot] for slot in members]).pvalue > LIKELY  # uniform, whatever the task


def test_success_prefers_medium_difficulty():
    rows = [entry(slot, success=success) for slot, success in enumerate([-3.0, 0.1, 0.3, 0.6, 0.74, 1.0, None])]
    index = index_of(SuccessDraw(), rows)
    counts = draw_often(index, 8000)
    quotas = np.exp(-((np.array([0.125, 0.375, 0.625, 0.875]) - 0.5) ** 2) / (2 * 0.25**2))
    quotas /= quotas.sum()
    expected = 8000 * quotas[[0, 0, 1, 2, 2, 3]] / np.array([2, 2, 1, 2, 2, 1])
    assert chisquare([counts[(slot,)] for slot in range(6)], expected).pvalue > LIKELY
    assert sorted(index.draw(9, np.random.default_rng(0))) == [0, 1, 2, 3, 4, 5]
    assert index.draw(9, np.random.default_rng(0), hidden=range(6)) == [6]  # no reward: only where nothing else is


def test_success_far_from_a_narrow_target_takes_the_nearest_bucket():
    index = index_of(SuccessDraw(target=1.0, width=0.001), [entry(0, success=0.0), entry(1, success=0.3)])
    assert draw_often(index, 20) == {(1,): 20}


def test_buckets():
    assert [bucket_of(x, 4) for x in (-9.0, 0.0, 0.2499, 0.25, 0.5, 0.999, 1.0, 2.0)] == [0, 0, 0, 1, 2, 3, 3, 3]


def test_within_a_quota_priorities_count():
    rows = [entry(slot, task="ab"[slot % 2], priority=1.0 + slot // 2) for slot in range(8)]
    index = index_of(PerTaskDraw(within=PrioritizedDraw(alpha=1, age_decay=1)), rows)
    counts = draw_often(index, 8000)
    expected = np.array([row.priority for row in rows]) / 20
    assert chisquare([counts[(slot,)] for slot in range(8)], 8000 * expected).pvalue > LIKELY


@pytest.mark.parametrize("draw", [UniformDraw(), PerTaskDraw(), SuccessDraw(), PrioritizedDraw()])
def test_excluded_tasks_are_left_out_also_where_all_weights_are_zero(draw):
    rows = [row._replace(priority=0.0, success=None) for row in TASKS] if draw.kind != "uniform" else TASKS
    index = index_of(draw, rows)
    for drawn in draw_often(index, 20, n=30, exclude_tasks=["a", "unknown"]):
        assert by(index, drawn, "task") == {"b": 4, "c": 1}
    assert index.draw(5, np.random.default_rng(0), exclude_tasks={"a", "b", "c"}) == []


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 50), st.lists(st.floats(0, 1) | st.just(1.0), min_size=1, max_size=8), st.integers(0, 99))
def test_seats_add_up_and_are_quotas_rounded(n, shares, seed):
    if not any(shares):
        shares = [1.0] * len(shares)
    shares = [share / max(shares) for share in shares]
    seats = apportion(n, shares, np.random.default_rng(seed))
    assert sum(seats) == n
    for seat, share in zip(seats, shares, strict=True):
        quota = n * share / sum(shares)
        assert math.floor(quota - 1e-9) <= seat <= math.ceil(quota + 1e-9)


# -- the trie ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["insert", "remove", "weigh"]), st.integers(0, 299), st.floats(-2000, 2000)),
        max_size=400,
    ),
    st.integers(0, 300),
)
def test_the_trie_is_a_function_of_its_slots_and_weights(changes, filled):
    weights = np.zeros(300)
    present = set(range(filled))
    changed = LogSumTrie(300)
    changed.build(np.arange(filled), weights)
    for kind, slot, weight in changes:
        if kind != "remove":
            weights[slot] = -math.inf if weight < -1900 else weight
        if slot in present and kind == "remove":
            present.remove(slot)
            changed.remove(slot, weights)
        elif slot in present:
            changed.refresh(slot, weights)
        elif kind == "insert":
            present.add(slot)
            changed.insert(slot, weights)
    rebuilt = LogSumTrie(300)
    rebuilt.build(np.array(sorted(present), dtype=np.int64), weights)
    assert changed.total == rebuilt.total and len(changed) == len(rebuilt) == len(present)
    if changed.total > -math.inf:
        assert changed.total == pytest.approx(np.logaddexp.reduce(weights[sorted(present)]), rel=1e-12, abs=1e-12)
        for seed in range(5):
            drawn = changed.draw(np.random.default_rng(seed), weights)
            assert drawn == rebuilt.draw(np.random.default_rng(seed), weights)
            assert drawn in present and weights[drawn] > -math.inf


def nodes_below(node) -> int:
    return 1 if node.slots is not None else 1 + nodes_below(node.left) + nodes_below(node.right)


def test_a_thousand_strata_take_no_more_room_than_one():
    rows = [entry(slot, cluster=slot % 1000) for slot in range(40_000)]
    few = index_of(UniformDraw(), rows)
    many = index_of(PerClusterDraw(), rows)
    assert sum(nodes_below(stratum.trie._root) for stratum in few._strata) <= 2 * 40_000 / LEAF * 2
    assert sum(nodes_below(stratum.trie._root) for stratum in many._strata) == 1000


def test_a_draw_looks_at_a_number_of_nodes_that_grows_like_the_logarithm_of_the_size(monkeypatch):
    looked: Counter[int] = Counter()
    path = LogSumTrie._path

    def counting(trie, slot):
        found = path(trie, slot)
        looked[size] += len(found)
        return found

    monkeypatch.setattr(LogSumTrie, "_path", counting)
    for size in (1_000, 100_000):
        index = aged(PrioritizedDraw(), [(1 + slot % 50, 1.0 + slot % 7) for slot in range(size)])
        index.set_oldest_version(2, too_old=[0, 50, 100])
        looked[size] = 0
        assert len(index.draw(16, np.random.default_rng(0), hidden=range(5, 13))) == 16
    assert looked[1_000] < looked[100_000] < 3 * looked[1_000] and looked[100_000] <= 48 * 13
