"""Several rewards in one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from reward.config.section import RewardSection
from rollouts.config import Section

if TYPE_CHECKING:
    from reward.config import RewardConfig

ComponentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=100)]
Normalize = Literal["none", "group", "task", "running"]


class Component(Section):
    """One part of a product or a minimum."""

    normalize: Normalize = "none"
    """`group`: minus the mean, over the sample deviation, of the group; `task`: of everything scored so far on the same
    task; `running`: of everything scored so far. Values that do not differ become 0."""
    reward: "RewardConfig"


class WeightedComponent(Component):
    weight: float | dict[Annotated[int, Field(ge=0)], float] = 1.0
    """Factor of the (normalised) component. A mapping from iterations to factors is a schedule: straight lines between
    them, constant before the first and after the last."""

    @model_validator(mode="after")
    def _check(self) -> "WeightedComponent":
        if self.weight == {}:
            raise ValueError("weight: the schedule is empty; name at least one iteration")
        return self


class WeightedSumConfig(RewardSection):
    """Σ weight · component. A component without an opinion on a rollout counts as its mean over the group; one without
    an opinion on any of the group, or at weight 0, is left out of the sum."""

    kind: Literal["weighted_sum"] = "weighted_sum"
    components: dict[ComponentName, WeightedComponent] = Field(min_length=1)
    """By name; the name appears in every score and in the metrics."""

    def parts(self) -> Mapping[str, RewardSection]:
        return _parts(self.components)


class ProductConfig(RewardSection):
    """Π component: all must be good. No opinion where one of them has none. Components must not be negative, since the
    product of two that are bad would be good: the run stops at such a value."""

    kind: Literal["product"] = "product"
    components: dict[ComponentName, Component] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "ProductConfig":
        for name, component in self.components.items():
            if component.normalize != "none":
                raise ValueError(
                    f"components.{name}.normalize: what lies below the mean becomes negative, and the product of two "
                    "such components would be good; leave it out, or take a weighted_sum"
                )
            if component.reward.is_penalty:
                raise ValueError(
                    f"components.{name}: {component.reward.kind} is never above 0, and the product of two penalties "
                    "would be good; take a weighted_sum, or make it the condition of a gate"
                )
        return self

    def parts(self) -> Mapping[str, RewardSection]:
        return _parts(self.components)


class MinimumConfig(RewardSection):
    """The smallest component: no better than the worst. No opinion where one of them has none."""

    kind: Literal["minimum"] = "minimum"
    components: dict[ComponentName, Component] = Field(min_length=1)

    def parts(self) -> Mapping[str, RewardSection]:
        return _parts(self.components)


class GateConfig(RewardSection):
    """A reward that is paid only where a condition holds: a hard rule that no other reward can outweigh."""

    kind: Literal["gate"] = "gate"
    condition: "RewardConfig"
    """Scores every rollout; the gate is open where it is at least `threshold`. Rules at their default threshold of 0
    keep it shut where any is broken."""
    threshold: float = 0.0
    closed: float | None = -1.0
    """What a rollout before a closed gate earns, or the lowest reward that the open gate pays in its group where that
    is lower; null is no opinion. A condition without an opinion closes the gate with no opinion."""
    reward: "RewardConfig"
    """Paid where the gate is open. It scores whole groups, those before a closed gate among them."""

    def parts(self) -> Mapping[str, RewardSection]:
        return {"condition": self.condition, "reward": self.reward}


def _parts(components: Mapping[str, Component]) -> dict[str, RewardSection]:
    return {f"components.{name}.reward": component.reward for name, component in components.items()}
