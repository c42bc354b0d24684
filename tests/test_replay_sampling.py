"""Draw probabilities and the reservoir, against formulas; and what a draw costs."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare

from rlsf.config.schema import PrioritizedDraw, UniformDraw
from rlsf.replay.keep import slot_for
from rlsf.replay.sampling import DrawIndex, LogSumTree

LIKELY = 1e-3
"""Fixed seeds: a p-value below this means a wrong distribution, not bad luck."""


def index_of(draw, rows) -> DrawIndex:
    """`rows`: (iteration, priority), the slot being the position."""
    index = DrawIndex(draw)
    index.put((slot, iteration, iteration, priority) for slot, (iteration, priority) in enumerate(rows))
    return index


def draw_often(index: DrawIndex, times: int, n: int = 1, hidden: tuple[int, ...] = ()) -> Counter:
    rng = np.random.default_rng(0)
    return Counter(tuple(index.draw(n, rng, hidden=hidden)) for _ in range(times))


@pytest.mark.parametrize(("alpha", "decay"), [(0.6, 0.9), (1.0, 1.0), (0.0, 0.5), (2.0, 0.99)])
def test_prioritised_draws_follow_the_formula(alpha, decay):
    rows = [(1, 0.5), (4, 0.5), (4, 0.5), (7, 0.1), (10, 3.0), (10, 1e-3), (2, 40.0)]
    weights = np.array([priority**alpha * decay ** (10 - iteration) for iteration, priority in rows])
    expected = weights / weights.sum()
    counts = draw_often(index_of(PrioritizedDraw(alpha=alpha, age_decay=decay), rows), 8000)
    observed = [counts[(slot,)] for slot in range(len(rows))]
    assert chisquare(observed, 8000 * expected).pvalue > LIKELY


def test_draws_without_replacement_are_successive_draws():
    priorities = [1.0, 2.0, 3.0, 4.0]
    counts = draw_often(index_of(PrioritizedDraw(alpha=1, age_decay=1), [(1, p) for p in priorities]), 8000, n=2)
    pairs = list(itertools.permutations(range(4), 2))
    expected = [priorities[a] / 10 * priorities[b] / (10 - priorities[a]) for a, b in pairs]
    assert chisquare([counts[pair] for pair in pairs], 8000 * np.array(expected)).pvalue > LIKELY


def test_uniform_draws_ignore_priority_and_age():
    counts = draw_often(index_of(UniformDraw(), [(i, float(i)) for i in range(11)]), 8000)
    assert chisquare([counts[(slot,)] for slot in range(11)]).pvalue > LIKELY


def test_age_decay_stays_exact_over_many_thousand_iterations():
    rows = [(1, 1.0), (2, 1.0), (5_000, 1.0), (100_000, 1.0)]
    index = index_of(PrioritizedDraw(age_decay=0.9), rows)
    assert draw_often(index, 200) == {(3,): 200}
    counts = draw_often(index, 4000, hidden=(2, 3))  # only the two oldest are left: 0.9 to 1
    assert chisquare([counts[(0,)], counts[(1,)]], [4000 * 0.9 / 1.9, 4000 * 1 / 1.9]).pvalue > LIKELY


def test_priority_zero_is_drawn_only_when_nothing_else_could_be():
    index = index_of(PrioritizedDraw(), [(1, 0.0), (1, 2.0), (1, 0.0), (1, 5e-324)])
    assert {frozenset(drawn) for drawn in draw_often(index, 50, n=4)} == {frozenset({1, 3})}
    counts = draw_often(index, 4000, hidden=(1, 3))
    assert chisquare([counts[(0,)], counts[(2,)]]).pvalue > LIKELY
    assert draw_often(index, 1, n=9, hidden=(0, 1, 2, 3)) == {(): 1}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 69), st.floats(-2000, 2000) | st.just(-math.inf)), min_size=1, max_size=150),
    st.integers(1, 9),
)
def test_the_tree_is_a_function_of_its_leaves(changes, chunk):
    grown, leaves = LogSumTree(), np.full(70, -np.inf)
    for start in range(0, len(changes), chunk):
        part = dict(changes[start : start + chunk])
        grown.assign(list(part), list(part.values()))
        leaves[list(part)] = list(part.values())
    rebuilt = LogSumTree()
    rebuilt.assign(range(70), leaves.tolist())
    assert grown.total == rebuilt.total
    if grown.total > -math.inf:
        assert grown.total == pytest.approx(np.logaddexp.reduce(leaves), rel=1e-12, abs=1e-12)
        for u in (0.0, 0.1, 0.5, 0.999, math.nextafter(1, 0)):
            assert grown.descend(u) == rebuilt.descend(u)
            assert leaves[grown.descend(u)] > -math.inf


@pytest.mark.parametrize("capacity", [1, 10])
def test_every_group_ever_seen_is_equally_likely_to_remain_in_a_reservoir(capacity):
    seen, seeds = 30, 1000
    remains = np.zeros(seen)
    for seed in range(seeds):
        slots = {}
        for seq in range(1, seen + 1):
            slot = slot_for(seq, keep="reservoir", capacity=capacity, seed=seed)
            if slot is not None:
                slots[slot] = seq
        assert sorted(slots) == list(range(capacity))
        for seq in slots.values():
            remains[seq - 1] += 1
    share = capacity / seen
    # Counts of a sample of fixed size: this statistic is chi-squared with seen - 1 degrees of freedom.
    statistic = ((remains - seeds * share) ** 2).sum() / (seeds * share * (1 - share)) * (seen - 1) / seen
    assert LIKELY < chi2.sf(statistic, seen - 1) < 1 - LIKELY


class Counting(np.ndarray):
    """An array that counts the elements that are read through it or computed with it."""

    touched = 0

    def __getitem__(self, key):
        result = super().__getitem__(key)
        Counting.touched += np.size(result)
        return np.asarray(result) if isinstance(result, np.ndarray) else result

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        Counting.touched += self.size
        return getattr(ufunc, method)(*[np.asarray(x) if isinstance(x, Counting) else x for x in inputs], **kwargs)


def elements_touched_by_a_draw(size: int) -> int:
    index = index_of(PrioritizedDraw(), [(1 + slot % 50, 1.0 + slot % 7) for slot in range(size)])
    for owner, name in (
        (index, "_iteration"),
        (index, "_version"),
        (index, "_log_weight"),
        (index._tree, "_node"),
    ):
        setattr(owner, name, getattr(owner, name).view(Counting))
    index.set_oldest_version(2, too_old=[0, 1, 2])
    Counting.touched = 0
    assert len(index.draw(16, np.random.default_rng(0), hidden=range(5, 13))) == 16
    return Counting.touched


def test_a_draw_touches_a_number_of_elements_that_grows_like_the_logarithm_of_the_size():
    small, large = elements_touched_by_a_draw(1_000), elements_touched_by_a_draw(100_000)
    # Three passes from leaf to root for each of 24 slots (hide, descend, restore), 17 levels instead of 10.
    assert small < large < 2 * small
    assert large < 24 * 17 * 8
