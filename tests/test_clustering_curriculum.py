"""More draws for clusters that fail, and none that starves."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsf.clustering.curriculum import FLOOR, Curriculum, shares

RATES = st.dictionaries(st.integers(-1, 9), st.none() | st.floats(0, 1), min_size=1)


def test_shares_go_with_failures() -> None:
    assert shares({0: 0.5, 1: 0.0}, 1.0) == pytest.approx({0: 0.05 + 0.9 / 3, 1: 0.05 + 0.9 * 2 / 3})
    assert shares({0: 0.5, 1: 0.0}, 2.0) == pytest.approx({0: 0.05 + 0.9 / 5, 1: 0.05 + 0.9 * 4 / 5})
    assert shares({0: 1.0, 1: 0.0}, 3.0) == pytest.approx({0: 0.05, 1: 0.95})
    assert shares({0: 0.3, 1: 0.9, 2: 0.2, 3: 0.0}, 0.0) == pytest.approx(dict.fromkeys(range(4), 0.25))
    assert shares({0: 1.0, 1: 1.0}, 1.0) == pytest.approx({0: 0.5, 1: 0.5})
    assert shares({}, 1.0) == {}


def test_what_was_never_seen_counts_as_the_mean() -> None:
    assert shares({0: 0.2, 1: 0.6, 2: None}, 1.0) == pytest.approx(shares({0: 0.2, 1: 0.6, 2: 0.4}, 1.0))
    assert shares({0: None, 1: None}, 2.0) == pytest.approx({0: 0.5, 1: 0.5})


@settings(deadline=None)
@given(RATES, st.floats(0, 50))
def test_shares_are_a_distribution_that_nobody_starves_in(rates: dict[int, float | None], strength: float) -> None:
    found = shares(rates, strength)
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) >= FLOOR / len(rates) - 1e-12
    known = sorted((rate, found[cluster]) for cluster, rate in rates.items() if rate is not None)
    assert all(one >= other - 1e-12 for (_, one), (_, other) in pairwise(known))


def test_the_average_moves() -> None:
    curriculum = Curriculum(decay=0.75)
    curriculum.observe([0, 0, 1], [1.0, 0.0, 0.25])
    assert curriculum.success == {0: 0.5, 1: 0.25}
    curriculum.observe([0], [1.0])
    assert curriculum.success == {0: 0.625, 1: 0.25}
    assert curriculum.shares([0, 1, 2], 1.0) == pytest.approx(shares({0: 0.625, 1: 0.25, 2: None}, 1.0))


def test_rates_out_of_bounds_are_errors() -> None:
    with pytest.raises(ValueError, match=r"cluster 3: a success rate of 1\.5"):
        shares({3: 1.5}, 1.0)
    with pytest.raises(ValueError, match="cluster 3"):
        Curriculum().observe([3], [float("nan")])
    with pytest.raises(ValueError, match="zip"):
        Curriculum().observe([3], [])


def test_the_state_goes_through_json() -> None:
    curriculum = Curriculum(decay=0.6, success={0: 0.1, 7: 1 / 3})
    assert Curriculum.from_json(json.loads(json.dumps(curriculum.to_json()))) == curriculum
    with pytest.raises(ValueError, match="decay"):
        Curriculum.from_json({"decay": "?"})
