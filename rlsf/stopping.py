"""When to end a run, or a task, before its budget is spent."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rlsf.config.schema import EvaluationConfig
from rlsf.config.stream import ConvergenceConfig
from rlsf.state import LoopState
from rlsf.tasks import Segment
from rlsf.text import did_you_mean

if TYPE_CHECKING:
    from rlsf.run import Run


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


def start_counting(state: LoopState, segment: Segment, iteration: int) -> None:
    """Where a segment begins, evaluations before it say nothing about whether it still helps."""
    if iteration == segment.first:
        state.evaluations_since_best = 0


def end_if_converged(run: "Run", segment: Segment, metrics: Mapping[str, float]) -> bool:
    """Let the stream go on to the next segment where `stream.until` finds that this one no longer helps. Returns
    whether it does."""
    config = getattr(run.config.stream, "until", None)
    state = run.state
    if config is None:
        return False
    name = config.metric.replace("{task}", segment.task)
    if name in metrics:
        state.convergence.append(metrics[name])
    elif not state.convergence and any(metric.startswith("validation/") for metric in metrics):
        run.display.warn(
            f"stream.until: there is no metric {name} yet, so it ends nothing{did_you_mean(name, metrics)}"
        )
    reason = converged(config, state.convergence) if state.iteration < segment.last else None
    if reason is not None:
        run.display.say(f"{segment.task}, iteration {state.iteration}: {reason}; on to the next")
        run.end_segment(state.iteration)
    if reason is not None or state.iteration == segment.last:
        state.convergence.clear()
    return reason is not None


def converged(config: ConvergenceConfig, values: Sequence[float]) -> str | None:
    """Why a task should end, in words, or None.

    Args:
        values: of the metric, oldest first.
    """
    sign = 1.0 if config.better == "higher" else -1.0
    means = [
        sign * sum(values[end - config.window : end]) / config.window for end in range(config.window, len(values) + 1)
    ]
    if not means:
        return None
    shown = f"the mean of {config.metric} over {config.window}"
    if config.goal is not None and means[-1] >= sign * config.goal:
        return f"{shown} is {sign * means[-1]:.3g}, which reaches the goal"
    best = 0
    for index, mean in enumerate(means):
        if mean > means[best] + config.min_delta:
            best = index
    if config.patience is not None and len(means) - 1 - best >= config.patience:
        return f"{shown} has not improved on {sign * means[best]:.3g} for {len(means) - 1 - best} values"
    return None
