"""What is watched while a run trains, and what is done about it."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from rollouts.config import MAX_COMPLETIONS, Section

Action = Literal["warn", "lower_rate", "roll_back", "stop"]
"""From the mildest to the most severe."""


def _in_order(actions: tuple[Action, ...]) -> tuple[Action, ...]:
    """Each once, the mildest first, however they were written."""
    return tuple(action for action in get_args(Action) if action in actions)


LABELLED = "validation/"
"""How the names of metrics begin that compare with references."""

Actions = Annotated[tuple[Action, ...], Field(min_length=1), AfterValidator(_in_order)]


class WatchConfig(Section):
    """A metric that must stay within a bound."""

    metric: str = Field(min_length=1)
    """Name in metrics.jsonl, such as rollout/entropy; docs/loop.md lists them."""
    above: float | None = None
    below: float | None = None
    """It is trouble when the metric lies beyond the one of the two that is given."""
    relative: bool = False
    """The bound is a factor of the metric's mean over the first `window` iterations of the task; of a negative mean, as
    much further down or up (0.5 of −1 is −1.5)."""
    window: int = Field(3, ge=1)
    """The mean over so many iterations is compared with the bound."""
    then: Actions = ("warn",)
    """What is done, whatever the order they are named in: `warn`; `lower_rate` (by `guard.lower_by`); `roll_back` to
    the best adapter of the canary, or without one to the last at which nothing that rolls back was in trouble;
    `stop`."""

    @model_validator(mode="after")
    def _check(self) -> "WatchConfig":
        if (self.above is None) == (self.below is None):
            raise ValueError("watch: give exactly one of above and below")
        return self


class CanaryConfig(Section):
    """Validation prompts of the task, answered again and again: does the policy still know what it knew?"""

    truth: Literal["references", "votes"] = "references"
    """What counts as right: the labels, which then choose an adapter but never train one; or, without any label, what
    the policy itself voted for when the task began, on prompts where its vote was decisive."""
    prompts: int = Field(64, ge=4)
    """The last ones of the validation split; `evaluation.prompts` can keep the first ones apart from them."""
    samples: int = Field(8, ge=2, le=MAX_COMPLETIONS)
    """Completions per prompt each time, at the training temperature."""
    every: int = Field(1, ge=1)
    """Iterations between measurements."""
    votes: int = Field(32, ge=4, le=MAX_COMPLETIONS)
    """For `votes`: completions per prompt that decide what is right."""
    min_share: float = Field(0.5, gt=0, le=1)
    """For `votes`: prompts whose winner has a smaller share are left out."""
    window: int = Field(3, ge=1)
    """The mean over so many measurements is compared with the best such mean."""
    better_by: float = Field(1.0, ge=0)
    """A later adapter becomes the best where it is better by more than so many standard errors of the difference,
    paired over the prompts. With 0 the best of many takes over by luck as well."""
    max_drop: float = Field(0.05, gt=0, lt=1)
    """A fall below the best by more than this share of it is trouble, if it is also beyond chance."""
    false_alarms: float = Field(0.1, gt=0, lt=1)
    """How often, about, a task may be reported through which the policy stays as it was: the more, the smaller the fall
    that is noticed. The test is paired over the prompts and one-sided."""
    then: Actions = ("lower_rate", "roll_back")


class GuardConfig(Section):
    """Notices that a run goes astray: rewards that rise while the truth falls. guard.jsonl has all that it did."""

    canary: CanaryConfig | None = None
    watch: tuple[WatchConfig, ...] = (
        WatchConfig(metric="rollout/entropy", below=0.1, relative=True),
        WatchConfig(metric="rollout/vote_share", above=0.98),
        WatchConfig(metric="rollout/truncated", above=0.5),
        WatchConfig(metric="rollout/kl", above=1.0),
        WatchConfig(metric="reward/no_opinion", above=0.9),
    )
    """The defaults warn, and change nothing."""
    lower_by: float = Field(0.5, gt=0, lt=1)
    """Factor on the learning rate each time it is lowered."""
    max_rollbacks: int = Field(2, ge=0)
    """Further trouble ends the run at the adapter that would have been rolled back to."""

    @property
    def sees_labels(self) -> bool:
        """Whether what it does to a run follows from reference answers."""
        acting = [watch for watch in self.watch if watch.then != ("warn",)]
        return (self.canary is not None and self.canary.truth == "references") or any(
            watch.metric.startswith(LABELLED) for watch in acting
        )

    @property
    def rolls_back(self) -> bool:
        """Whether adapters have to be kept to go back to."""
        return self.canary is not None or any("roll_back" in watch.then for watch in self.watch)
