"""Intervals and estimators against published or hand-computed values."""

import numpy as np
import pytest

from rlsf.evaluation.statistics import paired_bootstrap, pass_at_k, wilson


def test_wilson_matches_published_values():
    # Newcombe 1998, table I: 81 of 263, Wilson without continuity correction: 0.2553 to 0.3662.
    estimate = wilson([1.0] * 81 + [0.0] * 182)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)
    assert estimate.value == pytest.approx(81 / 263)
    assert estimate.n == 263


@pytest.mark.parametrize(("right", "low", "high"), [(0, 0.0, 0.1610), (1, 0.0089, 0.2361)])
def test_wilson_stays_in_the_unit_interval(right, low, high):
    # Newcombe 1998 gives 0 of 20: 0 to 0.1611 and 1 of 20: 0.0089 to 0.2361.
    estimate = wilson([1.0] * right + [0.0] * (20 - right))
    assert estimate.low == pytest.approx(low, abs=2e-4)
    assert estimate.high == pytest.approx(high, abs=2e-4)


def test_wilson_counts_repeated_samples_of_a_prompt_once():
    """Four identical samples per prompt know no more than one."""
    outcomes = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    once = wilson(outcomes)
    four_times = wilson([np.mean([outcome] * 4) for outcome in outcomes])
    assert four_times == once


def test_wilson_covers_the_truth_for_clustered_samples():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        difficulty = rng.beta(0.4, 1.2, size=150)
        estimate = wilson(rng.binomial(4, difficulty) / 4, 4)
        hits += estimate.low <= 0.25 <= estimate.high
    assert hits / 400 == pytest.approx(0.95, abs=0.03)


def test_no_prompts_is_an_error():
    with pytest.raises(ValueError, match="at least one prompt"):
        wilson([])


def test_paired_bootstrap_sees_a_small_change_that_unpaired_intervals_miss():
    rng = np.random.default_rng(1)
    before = rng.random(200)
    after = np.clip(before + 0.02, 0, 1)
    change = paired_bootstrap(before, after, seed=0)
    assert change.low > 0.015
    assert change.value == pytest.approx(np.mean(after - before))


def test_paired_bootstrap_covers_zero_when_nothing_changed():
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        before, after = rng.binomial(4, 0.3, 100) / 4, rng.binomial(4, 0.3, 100) / 4
        change = paired_bootstrap(before, after, seed=seed, resamples=1000)
        covered += change.low <= 0 <= change.high
    assert covered / 200 == pytest.approx(0.95, abs=0.04)


def test_paired_bootstrap_is_reproducible_and_refuses_different_lengths():
    assert paired_bootstrap([0, 1], [1, 1], seed=3) == paired_bootstrap([0, 1], [1, 1], seed=3)
    with pytest.raises(ValueError, match="same prompts twice, got 2 and 3"):
        paired_bootstrap([0, 1], [0, 1, 1], seed=0)


@pytest.mark.parametrize(
    ("n", "correct", "k", "expected"), [(8, 2, 1, 0.25), (4, 1, 2, 0.5), (5, 2, 3, 0.9), (8, 0, 8, 0.0), (8, 1, 8, 1.0)]
)
def test_pass_at_k(n, correct, k, expected):
    assert pass_at_k(n, correct, k) == pytest.approx(expected)
