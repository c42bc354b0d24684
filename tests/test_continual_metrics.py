"""Metrics of continual learning against numbers worked out by hand, and against the definitions written out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsf.continual import metrics
from rlsf.continual.matrix import ScoreMatrix
from rlsf.evaluation.statistics import wilson

NAN = float("nan")
R = np.array(
    [
        [0.10, 0.20, 0.05],  # as the stream begins
        [0.80, 0.25, 0.05],
        [0.60, 0.90, 0.15],
        [0.70, 0.50, 0.95],
    ]
)
LEARNED = [1, 2, 3]


def test_worked_example() -> None:
    assert metrics.average_accuracy(R, LEARNED) == pytest.approx((0.70 + 0.50 + 0.95) / 3)
    assert metrics.backward_transfer(R, LEARNED) == pytest.approx(((0.70 - 0.80) + (0.50 - 0.90)) / 2)
    assert metrics.forward_transfer(R, LEARNED) == pytest.approx(((0.25 - 0.20) + (0.15 - 0.05)) / 2)
    assert metrics.forgetting(R, LEARNED) == pytest.approx(((0.80 - 0.70) + (0.90 - 0.50)) / 2)
    assert metrics.plasticity(R, LEARNED) == pytest.approx((0.70 + 0.65 + 0.80) / 3)
    assert metrics.learning_accuracy(R, LEARNED) == pytest.approx((0.80 + 0.90 + 0.95) / 3)
    assert metrics.intransigence(R, LEARNED, [0.9, 0.9, 0.9]) == pytest.approx((0.1 + 0.0 - 0.05) / 3)
    assert metrics.stability_gap([[0.8, 0.3, 0.7], [0.9, 0.9]]) == pytest.approx((0.5 + 0.0) / 2)


def test_gradient_episodic_memory_as_its_authors_compute_it() -> None:
    """`confusion_matrix` of facebookresearch/GradientEpisodicMemory (metrics/metrics.py), written from the paper's
    equations: acc = result[-1].mean(), bwt = (result[-1] - diag).mean() over ALL tasks, the last one's being 0; ours
    leaves the last out, as equation 3 does, so that the two differ by the factor (T − 1) / T."""
    result, baseline = R[1:], R[0]
    theirs = float((result[-1] - np.diag(result)).mean())
    assert metrics.backward_transfer(R, LEARNED) * 2 / 3 == pytest.approx(theirs)
    transfer = np.mean([result[i - 1, i] - baseline[i] for i in range(1, 3)])
    assert metrics.forward_transfer(R, LEARNED) == pytest.approx(float(transfer))


def test_what_was_not_measured_is_unknown_and_no_zero() -> None:
    holes = R.copy()
    holes[2, 0] = NAN
    assert metrics.forgetting(holes, LEARNED) == pytest.approx(((0.80 - 0.70) + (0.90 - 0.50)) / 2)
    negative = R - 1.0  # a maximum over zeros would be 0 here
    assert metrics.forgetting(negative, LEARNED) == pytest.approx(metrics.forgetting(R, LEARNED))
    holes[3, 0] = NAN
    assert math.isnan(metrics.average_accuracy(holes, LEARNED))
    assert math.isnan(metrics.backward_transfer(holes, LEARNED))


def test_a_task_that_was_never_trained_counts_in_acc_alone() -> None:
    learned = [1, 2, None]
    assert metrics.average_accuracy(R, learned) == pytest.approx(R[-1].mean())
    assert metrics.plasticity(R, learned) == pytest.approx((0.70 + 0.65) / 2)
    assert metrics.forgetting(R, [None, None, None]) is not None and math.isnan(
        metrics.forgetting(R, [None, None, None])
    )


def test_joint_training_has_no_transfer() -> None:
    joint, learned = R[[0, 3]], [1, 1, 1]
    assert metrics.average_accuracy(joint, learned) == pytest.approx(R[3].mean())
    for metric in (metrics.backward_transfer, metrics.forward_transfer, metrics.forgetting):
        assert math.isnan(metric(joint, learned))


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(0, 10**6))
def test_against_the_definitions_written_out(tasks: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).random((tasks + 1, tasks))
    learned = list(range(1, tasks + 1))
    last = tasks
    bwt = sum(matrix[last][j] - matrix[j + 1][j] for j in range(tasks - 1)) / (tasks - 1)
    fwt = sum(matrix[j][j] - matrix[0][j] for j in range(1, tasks)) / (tasks - 1)
    lost = sum(max(matrix[i][j] for i in range(1, last)) - matrix[last][j] for j in range(tasks - 1)) / (tasks - 1)
    assert metrics.backward_transfer(matrix, learned) == pytest.approx(bwt)
    assert metrics.forward_transfer(matrix, learned) == pytest.approx(fwt)
    assert metrics.forgetting(matrix, learned) == pytest.approx(lost)
    assert metrics.forgetting(matrix, learned) >= -metrics.backward_transfer(matrix, learned) - 1e-12


def score_matrix(prompts: int = 50) -> ScoreMatrix:
    rng = np.random.default_rng(0)
    shares = {
        (row, task): (rng.random(prompts) < R[row, j]).astype(float) for row in range(4) for j, task in enumerate("abc")
    }
    return ScoreMatrix(("a", "b", "c"), ("start", "a", "b", "c"), shares, (1, 2, 3))


def test_the_matrix_of_a_run_and_its_intervals() -> None:
    matrix = score_matrix()
    values = matrix.values()
    assert values[3, 2] == matrix.shares[3, "c"].mean()
    assert matrix.estimate(3, "c") == wilson(matrix.shares[3, "c"].tolist())
    assert matrix.estimate(4, "c") is None
    found = matrix.metrics(seed=1)
    for name, metric in metrics.MATRIX_METRICS.items():
        estimate = found[name]
        assert estimate is not None and estimate.value == pytest.approx(metric(values, matrix.learned))
        assert estimate.low < estimate.value < estimate.high
        assert found[name] == matrix.metrics(seed=1)[name]
    acc = found["ACC"]
    assert acc is not None
    # three means of 50 Bernoulli draws each
    deviation = math.sqrt(sum(p * (1 - p) / 50 for p in values[3])) / 3
    assert acc.high - acc.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_intervals_are_paired_over_prompts() -> None:
    """The same outcomes in every row: nothing was forgotten, and nothing is uncertain about that."""
    shares = {(row, task): score_matrix().shares[1, task] for row in range(4) for task in "abc"}
    found = ScoreMatrix(("a", "b", "c"), ("start", "a", "b", "c"), shares, (1, 2, 3)).metrics(seed=0)
    bwt = found["BWT"]
    assert bwt is not None and bwt.low == bwt.value == bwt.high == 0
