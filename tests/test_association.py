"""How well a signal agrees with the truth: against scikit-learn, scipy, cases worked by hand, and known coverage."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from rlsf.evaluation.association import (
    auroc,
    auroc_estimate,
    auroc_within_groups,
    auroc_within_groups_estimate,
    calibrated_error,
    calibration_error,
    pearson,
    spearman,
)
from rlsf.evaluation.statistics import Estimate, wilson

BY_PROMPT = [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
"""A signal that knows which prompts are easy, but not which answers are right."""
TRUTH = [[True, True, True, False], [False, False, False, True]]

GROUPS = st.lists(
    st.lists(st.tuples(st.booleans(), st.one_of(st.none(), st.integers(-3, 3).map(float))), max_size=6), max_size=6
)


def parts(groups: list[list[tuple[bool, float | None]]]) -> tuple[list[list[bool]], list[list[float | None]]]:
    return [[right for right, _ in group] for group in groups], [[value for _, value in group] for group in groups]


def sample(
    rng: np.random.Generator, prompts: int, n: int, *, gain: float, decimals: int = 8
) -> tuple[list[list[bool]], list[list[float | None]]]:
    """Prompts of differing difficulty, which the values know too, and values of right answers `gain` higher."""
    difficulty = rng.normal(size=(prompts, 1))
    right = rng.normal(size=(prompts, n)) > difficulty
    values = gain * right - 0.5 * difficulty + rng.normal(size=(prompts, n))
    return right.tolist(), np.round(values, decimals).tolist()


def names(groups: int) -> list[str]:
    return [f"p{index}" for index in range(groups)]


def test_a_signal_that_only_knows_which_prompts_are_easy_has_nothing_to_teach() -> None:
    assert auroc(TRUTH, BY_PROMPT) == pytest.approx(0.75)
    assert auroc_within_groups(TRUTH, BY_PROMPT) == pytest.approx(0.5)


def test_no_opinion_is_left_out() -> None:
    values = [[1.0, 1.0, 1.0, 0.5], [0.0, 0.0, None, 0.1]]
    assert auroc_within_groups(TRUTH, values) == 1.0
    # Right: 1 1 1 .1, wrong: .5 0 0; of 12 pairs .1 loses one.
    assert auroc(TRUTH, values) == pytest.approx(11 / 12)
    assert auroc(TRUTH, [[None] * 4] * 2) is None
    assert auroc_within_groups(TRUTH, [[None] * 4] * 2) is None


def test_one_class_alone_has_no_auroc() -> None:
    assert auroc([[True, True]], [[0.0, 1.0]]) is None
    assert auroc_estimate([[True, True]], [[0.0, 1.0]], ["p"], seed=0) is None
    assert auroc_within_groups([[True, True], [False]], [[0.0, 1.0], [0.5]]) is None
    assert auroc_within_groups_estimate([[True, True], [False]], [[0.0, 1.0], [0.5]], ["p", "q"], seed=0) is None


@pytest.mark.parametrize("measure", [auroc, auroc_within_groups, spearman, calibration_error])
def test_nothing_to_measure_is_none(measure: Any) -> None:
    assert measure([], []) is None
    assert measure([[]], [[]]) is None


@pytest.mark.parametrize("measure", [auroc_estimate, auroc_within_groups_estimate, calibrated_error])
def test_nothing_to_estimate_is_none(measure: Any) -> None:
    assert measure([], [], [], seed=0) is None
    assert measure([[True, False]], [[None, None]], ["p"], seed=0) is None


@given(GROUPS)
def test_auroc_is_that_of_scikit_learn(groups: list[list[tuple[bool, float | None]]]) -> None:
    rows = [row for group in groups for row in group if row[1] is not None]
    expected = roc_auc_score(*zip(*rows, strict=True)) if len({right for right, _ in rows}) == 2 else None
    assert auroc(*parts(groups)) == (None if expected is None else pytest.approx(expected))


@given(GROUPS)
def test_auroc_within_groups_counts_pairs(groups: list[list[tuple[bool, float | None]]]) -> None:
    pairs = [
        (better[1] > worse[1]) + 0.5 * (better[1] == worse[1])
        for group in groups
        for better, worse in product(group, group)
        if better[0] and not worse[0] and better[1] is not None and worse[1] is not None
    ]
    assert auroc_within_groups(*parts(groups)) == (pytest.approx(np.mean(pairs)) if pairs else None)


@given(GROUPS)
def test_an_increasing_transformation_changes_no_rank_figure(groups: list[list[tuple[bool, float | None]]]) -> None:
    truth, values = parts(groups)
    cubed = [[None if value is None else value**3 for value in group] for group in values]
    for measure in (auroc, auroc_within_groups, spearman):
        assert measure(truth, cubed) == measure(truth, values)


@given(GROUPS)
def test_the_opposite_signal_has_the_opposite_auroc(groups: list[list[tuple[bool, float | None]]]) -> None:
    truth, values = parts(groups)
    negated = [[None if value is None else -value for value in group] for group in values]
    for measure in (auroc, auroc_within_groups):
        before, after = measure(truth, values), measure(truth, negated)
        assert after == (None if before is None else pytest.approx(1 - before))


def test_spearman_is_that_of_scipy() -> None:
    truth, values = sample(np.random.default_rng(0), 40, 8, gain=0.7, decimals=1)  # with ties
    expected = stats.spearmanr(np.ravel(values), np.ravel(truth)).statistic
    assert spearman(truth, values) == pytest.approx(expected)


def test_a_constant_has_no_correlation() -> None:
    assert spearman([[True, False]], [[0.1, 0.1]]) is None
    assert spearman([[True, True]], [[0.1, 0.2]]) is None
    assert pearson([0.1] * 3, [1, 2, 3]) is None  # whose deviation is not quite 0 in floating point
    assert pearson([1.0, 2.0, 4.0], [5.0, 7.0, 11.0]) == pytest.approx(1)


def test_the_estimate_is_the_figure_itself_with_an_interval_around_it() -> None:
    truth, values = sample(np.random.default_rng(1), 60, 8, gain=0.7, decimals=1)
    for estimate, figure in ((auroc_estimate, auroc), (auroc_within_groups_estimate, auroc_within_groups)):
        found = estimate(truth, values, names(60), seed=0)
        assert found is not None
        assert found.value == pytest.approx(figure(truth, values))
        assert found.low < found.value < found.high
        assert found == estimate(truth, values, names(60), seed=0)


def test_the_interval_is_the_bootstrap_over_prompts_written_out() -> None:
    truth, values = sample(np.random.default_rng(2), 25, 4, gain=0.7, decimals=1)
    found = auroc_estimate(truth, values, names(25), seed=0)
    rng = np.random.default_rng(5)
    figures = []
    for _ in range(4000):
        draw = rng.integers(25, size=25)
        right, drawn = np.array(truth)[draw].ravel(), np.array(values)[draw].ravel()
        difference = drawn[right][:, None] - drawn[~right]
        figures.append((np.sign(difference).mean() + 1) / 2)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(figures, [0.025, 0.975])), abs=0.012)


def test_repeating_every_rollout_makes_no_interval_narrower() -> None:
    truth, values = sample(np.random.default_rng(3), 30, 4, gain=0.7)
    once = auroc_estimate(truth, values, names(30), seed=0)
    often = auroc_estimate([row * 5 for row in truth], [row * 5 for row in values], names(30), seed=0)
    assert once is not None and often is not None
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_groups_of_one_prompt_are_drawn_together() -> None:
    truth, values = sample(np.random.default_rng(4), 20, 4, gain=0.7)
    for estimate in (auroc_estimate, auroc_within_groups_estimate):
        once = estimate(truth, values, names(20), seed=0)
        twice = estimate([*truth, *truth], [*values, *values], names(20) * 2, seed=0)
        apart = estimate([*truth, *truth], [*values, *values], names(40), seed=0)
        assert once is not None and twice is not None and apart is not None
        assert (twice.low, twice.high, twice.n) == pytest.approx((once.low, once.high, once.n))
        assert apart.high - apart.low < 0.9 * (once.high - once.low)


@pytest.mark.parametrize("estimate", [auroc_estimate, auroc_within_groups_estimate])
def test_intervals_cover_the_truth(estimate: Any) -> None:
    """The truth is the figure on many prompts."""
    figure = auroc if estimate is auroc_estimate else auroc_within_groups
    expected = figure(*sample(np.random.default_rng(99), 20_000, 4, gain=0.7))
    hits = 0
    for seed in range(80):
        found = estimate(*sample(np.random.default_rng(seed), 40, 4, gain=0.7), names(40), seed=seed)
        hits += found.low <= expected <= found.high
    assert hits / 80 == pytest.approx(0.95, abs=0.05)


def test_one_prompt_says_little_even_where_every_pair_is_won() -> None:
    perfect = auroc_within_groups_estimate([[True, False]] * 3, [[1.0, 0.0]] * 3, names(3), seed=0)
    assert perfect == wilson([1.0] * 3)
    alone = auroc_estimate([[True, False, False]], [[0.5, 0.0, 1.0]], ["p"], seed=0)
    assert alone == wilson([0.5])


def test_a_constant_signal_is_certain_to_know_nothing() -> None:
    truth = [[True, False, False, True]] * 10
    for estimate in (auroc_estimate, auroc_within_groups_estimate):
        assert estimate(truth, [[0.3] * 4] * 10, names(10), seed=0) == Estimate(0.5, 0.5, 0.5, 10)
    by_prompt = [[float(index)] * 4 for index in range(10)]
    assert auroc_within_groups_estimate(truth, by_prompt, names(10), seed=0) == Estimate(0.5, 0.5, 0.5, 10)


def test_calibration_error_worked_by_hand() -> None:
    # Bin [0, .1): 0, .05, half right; bin [.6, .7): .6, .65, .7 would be the next; bin [.9, 1]: .95, 1, both right.
    truth = [[False, True, True, False, True, True]]
    values = [[0.0, 0.05, 0.6, 0.65, 0.95, 1.0]]
    expected = (2 * abs(0.5 - 0.025) + 2 * abs(0.5 - 0.625) + 2 * abs(1 - 0.975)) / 6
    assert calibration_error(truth, values) == pytest.approx(expected)


def test_confidence_0_and_1_are_in_the_bins() -> None:
    assert calibration_error([[True]], [[0.0]]) == 1
    assert calibration_error([[False]], [[1.0]]) == 1
    assert calibration_error([[False, True]], [[0.0, 1.0]]) == 0


@pytest.mark.parametrize("value", [-0.01, 1.01])
def test_what_is_no_probability_has_no_calibration_error_as_it_stands(value: float) -> None:
    assert calibration_error([[True, False]], [[0.5, value]]) is None
    assert calibration_error([[True, False]], [[0.5, None]]) == pytest.approx(0.5)


def test_calibration_mends_a_signal_of_another_scale() -> None:
    rng = np.random.default_rng(6)
    chance = rng.random((400, 4))
    truth = (rng.random((400, 4)) < chance).tolist()
    shrunk = (chance / 3).tolist()  # falls short by up to two thirds
    logits = (10 * np.log(chance / (1 - chance))).tolist()
    assert calibration_error(truth, shrunk) == pytest.approx(np.mean(chance) * 2 / 3, abs=0.03)
    calibrated = [calibrated_error(truth, values, names(400), seed=0) for values in (shrunk, logits)]
    assert calibrated[0] == pytest.approx(calibrated[1], abs=1e-3)  # but for straight lines between steps
    assert calibrated[0] is not None and calibrated[0] < 0.04


def test_calibration_is_judged_on_prompts_it_was_not_fitted_on() -> None:
    """Values that name the prompt: a regression that had seen the prompt would know its answers by heart."""
    rng = np.random.default_rng(7)
    truth = [[bool(right)] * 8 for right in rng.integers(2, size=30)]
    values = [[float(index)] * 8 for index in range(30)]
    seen = calibrated_error(truth, values, [f"{i}" for i in range(30)], seed=0)
    assert seen is not None and seen > 0.1


def test_a_signal_that_knows_nothing_is_calibrated_to_the_share_right() -> None:
    truth = [[True, False, False, False]] * 20
    assert calibrated_error(truth, [[0.9] * 4] * 20, names(20), seed=0) == pytest.approx(0)
    assert calibration_error(truth, [[0.9] * 4] * 20) == pytest.approx(0.65)


def test_calibration_takes_two_prompts() -> None:
    assert calibrated_error([[True, False]], [[1.0, 0.0]], ["p"], seed=0) is None
    assert calibrated_error([[True, False]] * 2, [[1.0, 0.0]] * 2, ["p", "q"], seed=0) == pytest.approx(0)
