"""All strategies that a run uses together, as the algorithm sees them, and what they do when the task changes."""

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlsf.algorithms.additions import Additions, PartWeights, SampleWeight
from rlsf.config.strategies import ContinualConfig
from rlsf.continual.cppo import cppo_weights
from rlsf.continual.distillation import Distillation
from rlsf.continual.fisher import fisher_diagonal
from rlsf.continual.layers import check_layers, layer_rates
from rlsf.continual.penalties import EwcPenalty, L2Penalty, OrthogonalBlocks
from rlsf.experience import Experience, Group, in_turn
from rlsf.policy import LAST, POLICY, Policy

_STATE = "continual.pt"


class Strategies(Additions):
    """What `continual` in the config asks for, but for adapters per task (`rlsf.continual.adapters`)."""

    def __init__(self, config: ContinualConfig, policy: Policy, *, micro_batch_tokens: int) -> None:
        """Raises ConfigError where `layers` names layers that the model does not have."""
        self._config = config
        self._policy = policy
        self._parameters = policy.parameters()
        self._names = policy.parameter_names()
        self._l2 = L2Penalty(config.l2, self._parameters) if config.l2 else None
        self._ewc = EwcPenalty(config.ewc, self._parameters) if config.ewc else None
        self._blocks = OrthogonalBlocks(config.orthogonal, self._parameters, self._names) if config.orthogonal else None
        self._distillation = Distillation(config.distill, policy, micro_batch_tokens) if config.distill else None
        self._importance: list[Tensor] | None = None
        """Fisher information of all tasks so far, for the layers' rates."""
        self._ended = 0
        """How often a task has ended."""
        self._values: dict[str, float] = {}
        if config.layers is not None:
            check_layers(config.layers, self._names)
        self.needs_reference = config.cppo is not None and config.cppo.coef > 0
        if config.transfer is not None:
            self.part_weights = PartWeights(config.transfer.source, config.transfer.target)

    # -- when the task changes -----------------------------------------------------------------------------------------

    @property
    def distilled_groups(self) -> int:
        """How many groups of earlier tasks an update wants to compare on; 0 until a task has ended."""
        return self._config.distill.groups if self._config.distill is not None and self._ended else 0

    @property
    def fisher_samples(self) -> int:
        """Completions of the ending task that `end_task` wants; 0 where none are needed."""
        if self._config.ewc is not None:
            return self._config.ewc.samples
        return 64 if self._config.layers is not None and self._config.layers.importance else 0

    def begin_task(self, task: str) -> bool:
        """Returns whether there was room for it: false where `orthogonal` has no block of its own for the task."""
        return self._blocks is None or self._blocks.begin(task)

    def end_task(self, recent: Sequence[Experience]) -> None:
        """Remember what the task that ends leaves behind.

        Args:
            recent: up to `fisher_samples` of its last completions.
        """
        self._ended += 1
        fisher = fisher_diagonal(self._policy, recent) if recent and self.fisher_samples else None
        if fisher is not None:
            before = self._importance or [torch.zeros_like(part) for part in fisher]
            self._importance = [old + new for old, new in zip(before, fisher, strict=True)]
        if self._ewc is not None and fisher is not None:
            self._ewc.consolidate(fisher)
        if self._l2 is not None:
            self._l2.consolidate()
        if self._distillation is not None:
            self._policy.copy_adapter(POLICY, LAST)
        if self._config.reference == "last_task":
            self._policy.freeze_reference()

    # -- in an update --------------------------------------------------------------------------------------------------

    def replay(self, groups: Sequence[Group]) -> None:
        """What the next update distils on."""
        if self._distillation is not None:
            self._distillation.replay(groups)

    def penalties(self) -> Iterator[Tensor]:
        for name, penalty in (("l2", self._l2), ("ewc", self._ewc), ("orthogonal", self._blocks)):
            value = penalty() if penalty is not None else None
            if value is not None:
                self._values[f"continual/{name}"] = value.item()
                yield value
        if self._distillation is not None:
            yield from self._distillation.penalties()
            if self._distillation.value is not None:
                self._values["continual/distill"] = self._distillation.value

    def rates(self) -> Sequence[Tensor] | None:
        found = self._blocks.rates() if self._blocks is not None else None
        layers = self._config.layers
        if layers is None or self._ended + 1 < layers.from_task:
            return found
        factors = layer_rates(layers, self._names, self._importance if layers.importance else None)
        found = found or [torch.ones((), device=parameter.device) for parameter in self._parameters]
        return [rate * factor for rate, factor in zip(found, factors, strict=True)]

    def weigh(self, experiences: Sequence[Experience]) -> Mapping[str, SampleWeight]:
        if self._config.cppo is None:
            return {}
        config = self._config.cppo if self._ended else self._config.cppo.model_copy(update={"coef": 0.0})
        return cppo_weights(config, experiences)  # the first task has no policy before it to hold on to

    def metrics(self) -> dict[str, float]:
        """Values of the penalties at the last optimizer step, each with its coefficient; but `distill` is the mean KL
        in nats per token."""
        values, self._values = self._values, {}
        return values

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save({"ended": self._ended, "importance": self._importance, **self._parts_state()}, content)
        (folder / _STATE).write_bytes(content.getvalue())  # torch's own writer raises no OSError when the disk is full

    def load(self, folder: Path) -> None:
        """Go on exactly where `save` left off."""
        state = torch.load(folder / _STATE, map_location=self._policy.device, weights_only=True)
        self._ended, self._importance = state["ended"], state["importance"]
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])

    def _parts_state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def _stateful(self) -> dict[str, L2Penalty | EwcPenalty | OrthogonalBlocks]:
        parts = {"l2": self._l2, "ewc": self._ewc, "orthogonal": self._blocks}
        return {name: part for name, part in parts.items() if part is not None}


def newest_experiences(groups: Iterator[Group], count: int) -> list[Experience]:
    """Up to `count` with a token, of groups that come newest first: as many as possible of different groups."""
    answered = (group for group in groups if not group.is_lesson and in_turn([group]))
    return in_turn(list(islice(answered, count)))[:count]
