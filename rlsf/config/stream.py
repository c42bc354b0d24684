"""In which order and mixture the tasks come."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rollouts.config import Section


class ConvergenceConfig(Section):
    """Ends a task before its budget is spent: when a metric no longer improves, or is good enough."""

    metric: str = "reward/mean"
    """Name in metrics.jsonl; `{task}` stands for the task, as in validation/{task}/pass@1. Iterations without the
    metric do not count."""
    better: Literal["higher", "lower"] = "higher"
    window: int = Field(3, ge=1)
    """Means over so many values are compared: single iterations are noisy."""
    patience: int | None = Field(5, ge=1)
    """Go on to the next task when the best mean so far lies so many values back. None waits for `goal` alone."""
    min_delta: float = Field(0.0, ge=0)
    """An improvement is more than this."""
    goal: float | None = None
    """Go on as soon as the mean is at least as good as this."""

    @model_validator(mode="after")
    def _check(self) -> "ConvergenceConfig":
        if self.patience is None and self.goal is None:
            raise ValueError("until: give patience, goal, or both; without either no task would end early")
        return self


class _OrderedStream(Section):
    order: tuple[str, ...] | None = None
    """Names of all tasks in the order in which they are trained; None takes them as they are listed."""


class SequentialStream(_OrderedStream):
    """One task after the other."""

    kind: Literal["sequential"] = "sequential"
    until: ConvergenceConfig | None = None
    """Ends tasks early; budgets are then the most they get."""


class RecurringStream(_OrderedStream):
    """One task after the other, and all over again; a task's budget is for each of its visits."""

    kind: Literal["recurring"] = "recurring"
    rounds: int = Field(2, ge=2)
    """Visits to each task."""
    until: ConvergenceConfig | None = None
    """Ends visits early; budgets are then the most they get."""


class BlurredStream(_OrderedStream):
    """One task after the other, with a gradual change from each to the next."""

    kind: Literal["blurred"] = "blurred"
    overlap: float = Field(0.5, gt=0, le=1)
    """Length of the change, as a share of the shorter of the two tasks: over it, the next task's share of the prompts
    rises from 0 to 1 on a straight line, and is a half where the budget of the one ends and the other's begins."""


class DriftingStream(Section):
    """A mixture of all tasks whose shares move on straight lines from the first iteration to the last."""

    kind: Literal["drifting"] = "drifting"
    start: dict[str, Annotated[float, Field(ge=0)]] = Field(min_length=1)
    """Weights of the tasks in the first iteration; those that are not named have none."""
    end: dict[str, Annotated[float, Field(ge=0)]] = Field(min_length=1)
    """In the last one."""
    stages: int | None = Field(None, ge=1)
    """Equal stretches at whose ends all tasks are measured; None makes as many as there are tasks."""

    @model_validator(mode="after")
    def _check(self) -> "DriftingStream":
        for name, weights in (("start", self.start), ("end", self.end)):
            if not 0 < math.fsum(weights.values()) < math.inf:
                raise ValueError(f"{name}: the weights must have a positive, finite sum")
        return self


class JointStream(Section):
    """All tasks at once, in equal shares: what training could reach if nothing had to be remembered."""

    kind: Literal["joint"] = "joint"


StreamConfig = Annotated[
    SequentialStream | RecurringStream | BlurredStream | DriftingStream | JointStream, Field(discriminator="kind")
]
