"""When to end a run before its budget is spent."""

from rlsf.config.schema import EvaluationConfig
from rlsf.state import LoopState


def note_validation(state: LoopState, iteration: int, value: float, *, tasks: int, min_delta: float) -> bool:
    """Remember a validation score; returns whether it is the best so far by more than `min_delta`.

    Args:
        value: mean over `tasks` tasks. When a task joins, the mean changes its meaning, and the best starts anew.
    """
    joined, state.validated_tasks = tasks != state.validated_tasks, tasks
    if joined or state.best_value is None or value > state.best_value + min_delta:
        state.best_value, state.best_iteration = value, iteration
        state.evaluations_since_best = 0
        return True
    state.evaluations_since_best += 1
    return False


def should_stop(config: EvaluationConfig, state: LoopState) -> str | None:
    """The reason to stop now, in words, or None."""
    if config.patience is not None and state.evaluations_since_best >= config.patience:
        return (
            f"validation pass@1 has not risen above {state.best_value:.3f} (iteration {state.best_iteration}) for "
            f"{state.evaluations_since_best} evaluations"
        )
    return None
