"""Early stopping and the choice of the best adapter, in single tasks and in streams."""

from rlsf.config.schema import EvaluationConfig
from rlsf.state import LoopState
from rlsf.stopping import note_validation, should_stop

PATIENT = EvaluationConfig(patience=2)


def feed(state, scores, tasks=1, first=1, min_delta=0.0):
    """Which of the scores were the best so far."""
    return [
        note_validation(state, iteration, score, tasks=tasks, min_delta=min_delta)
        for iteration, score in enumerate(scores, first)
    ]


def test_patience_counts_evaluations_without_a_new_best():
    state = LoopState()
    assert feed(state, [0.2, 0.5, 0.4]) == [True, True, False]
    assert should_stop(PATIENT, state) is None
    feed(state, [0.5], first=4)
    assert (state.best_value, state.best_iteration) == (0.5, 2)
    reason = should_stop(PATIENT, state)
    assert reason is not None and "0.500 (iteration 2) for 2 evaluations" in reason
    assert should_stop(EvaluationConfig(), state) is None
    feed(state, [0.6], first=5)
    assert should_stop(PATIENT, state) is None


def test_an_improvement_is_more_than_min_delta():
    assert feed(LoopState(), [0.50, 0.55, 0.61], min_delta=0.1) == [True, False, True]


def test_a_new_task_starts_the_comparison_anew():
    """Its low scores pull the mean down: that is no reason to stop, nor to prefer the adapter from before it."""
    state = LoopState()
    feed(state, [0.9, 0.9])
    assert feed(state, [0.5, 0.6], tasks=2, first=3) == [True, True]
    assert (state.best_value, state.best_iteration) == (0.6, 4)
    assert should_stop(PATIENT, state) is None
