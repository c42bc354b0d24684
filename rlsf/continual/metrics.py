"""What continual learning is measured by, from the matrix of scores R.

R[i, j] is the score on task j after segment i of the stream; row 0 is the policy as the stream begins; NaN is what was
not measured. `learned[j]` is the row after the segment in which task j was first trained (None: it never was). In a
stream of T tasks, one after the other, that is row j + 1, and every formula below is that of its source.
"""

from collections.abc import Callable, Sequence

import numpy as np

Matrix = np.ndarray
Learned = Sequence[int | None]


def average_accuracy(matrix: Matrix, learned: Learned) -> float:
    """ACC = mean over tasks of R[T, j] (Lopez-Paz & Ranzato 2017, arXiv 1706.08840, eq. 2): over all tasks, those that
    were never trained included."""
    return _mean(matrix[-1])


def backward_transfer(matrix: Matrix, learned: Learned) -> float:
    """BWT = mean over j of R[T, j] − R[learned[j], j], over the tasks that were trained before the last segment (ibid.,
    eq. 3). Negative where later tasks cost earlier ones."""
    rows = _earlier(matrix, learned)
    return _mean([matrix[-1, j] - matrix[row, j] for j, row in rows])


def forward_transfer(matrix: Matrix, learned: Learned) -> float:
    """FWT = mean over j of R[learned[j] − 1, j] − R[0, j], over the tasks that are first trained in the second segment
    or later (ibid., eq. 4, with the policy as the stream begins for the untrained model)."""
    return _mean([matrix[row - 1, j] - matrix[0, j] for j, row in enumerate(learned) if row is not None and row > 1])


def forgetting(matrix: Matrix, learned: Learned) -> float:
    """Mean over j of max over rows i from 1 to T − 1 of R[i, j], minus R[T, j], over the tasks that were trained before
    the last segment (Chaudhry et al. 2018, arXiv 1801.10112, eq. 3). NaN rows do not count: a maximum over a matrix
    padded with zeros would hide what was never measured. Negative where later tasks helped."""
    return _mean([_peak(matrix[1:-1, j]) - matrix[-1, j] for j, _ in _earlier(matrix, learned)])


def plasticity(matrix: Matrix, learned: Learned) -> float:
    """Mean over tasks of R[learned[j], j] − R[learned[j] − 1, j]: what a task gains while it is trained."""
    return _mean([matrix[row, j] - matrix[row - 1, j] for j, row in enumerate(learned) if row is not None])


def learning_accuracy(matrix: Matrix, learned: Learned) -> float:
    """LA = mean over tasks of R[learned[j], j] (Riemer et al. 2019, arXiv 1810.11910)."""
    return _mean([matrix[row, j] for j, row in enumerate(learned) if row is not None])


def intransigence(matrix: Matrix, learned: Learned, joint: Sequence[float]) -> float:
    """Mean over tasks of joint[j] − R[learned[j], j]: how far behind joint training a task stays even where it has just
    been trained (Chaudhry et al. 2018, eq. 4, averaged over tasks).

    Args:
        joint: scores of a policy trained on all tasks together.
    """
    return _mean([joint[j] - matrix[row, j] for j, row in enumerate(learned) if row is not None])


def stability_gap(curves: Sequence[Sequence[float]]) -> float:
    """Mean over tasks of the first value of its curve minus the lowest: how far a task falls, if only for a while, once
    others are trained (De Lange et al. 2023, arXiv 2205.13452: their min-ACC is the mean of the lowest values).

    Args:
        curves: for each task that was trained before the last segment, its scores from the end of that segment on.
    """
    return _mean([curve[0] - min(curve) for curve in curves if len(curve) > 1])


MATRIX_METRICS: dict[str, Callable[[Matrix, Learned], float]] = {
    "ACC": average_accuracy,
    "BWT": backward_transfer,
    "FWT": forward_transfer,
    "forgetting": forgetting,
    "plasticity": plasticity,
    "learning accuracy": learning_accuracy,
}


def _earlier(matrix: Matrix, learned: Learned) -> list[tuple[int, int]]:
    """(task, row) of the tasks that were trained before the last segment."""
    last = len(matrix) - 1
    return [(j, row) for j, row in enumerate(learned) if row is not None and row < last]


def _peak(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else float("nan")


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """NaN where there is nothing, or where any value is NaN: a mean over what happens to be known would be of something
    else."""
    return float(np.mean(values)) if len(values) else float("nan")
