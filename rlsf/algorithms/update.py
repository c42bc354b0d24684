"""The step that every algorithm takes: accumulate gradients, refuse what is not finite, clip, step, advance.

Hugging Face's `train()` makes a new optimizer and schedule on every call; here both live for the whole run.
"""

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from rlsf.algorithms.additions import NOTHING, Additions
from rlsf.config.algorithms import OptimizerConfig
from rlsf.errors import TrainingError
from rlsf.experience import Experience, Group
from rlsf.files import write_text
from rlsf.forward import TokenPair
from rollouts.types import LOWER_THE_RATE

M = TypeVar("M")

deterministic: Any = torch.utils.deterministic  # its setting is a property of the module: unseen by type checkers

_STATE = "algorithm.pt"
_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimizer step did."""

    loss: float
    grad_norm: float
    """L2 norm before clipping."""
    learning_rate: float


class AdapterOptimizer:
    """AdamW with a schedule, over the weights of one adapter."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        learning_rate: float,
        total_steps: int,
        schedule: str = "constant",
        warmup_steps: int = 0,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        additions: Additions = NOTHING,
    ) -> None:
        self._parameters = list(parameters)
        self._max_grad_norm = max_grad_norm
        self._additions = additions
        self._configured = learning_rate
        self._lowered = 1.0
        self._optimizer = torch.optim.AdamW(self._parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay)
        self._schedule = get_scheduler(
            _SCHEDULES[schedule], self._optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps
        )

    @classmethod
    def from_config(
        cls,
        parameters: Sequence[nn.Parameter],
        config: OptimizerConfig,
        *,
        total_steps: int,
        additions: Additions = NOTHING,
    ) -> "AdapterOptimizer":
        """As the algorithm's section says."""
        return cls(
            parameters,
            learning_rate=config.learning_rate,
            total_steps=total_steps,
            schedule=config.schedule,
            warmup_steps=config.warmup_steps,
            betas=config.betas,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            additions=additions,
        )

    def step(
        self,
        micro_batches: Iterable[M],
        loss: Callable[[M], Tensor],
        *,
        backward: Callable[[Tensor], None],
        fail: Callable[[str], NoReturn],
    ) -> Step:
        """One step on the sum of the micro-batches' losses and of what is added to them.

        Args:
            loss: of one micro-batch, scaled so that the sum over all of them is the minibatch's loss.
            fail: called with the reason, before the weights are touched, when a loss or the gradient is not finite.
        """
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        with torch.enable_grad():  # a reward with a model of its own may have switched gradients off
            for value in chain(map(loss, micro_batches), self._additions.penalties()):
                if not math.isfinite(value.item()):
                    fail(f"the loss is {value.item()}")
                backward(value)
                total += value.item()
        rates = self._additions.rates()
        if rates is not None:
            self._still(rates)
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm))
        if not math.isfinite(norm):
            fail(f"the gradient norm is {norm}")
        learning_rate = self._schedule.get_last_lr()[0]
        with self._at_rates(rates):
            self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        return Step(total, norm, learning_rate)

    def _still(self, rates: Sequence[Tensor]) -> None:
        """What may not move takes no part in the gradient's norm."""
        for parameter, rate in zip(self._parameters, rates, strict=True):
            if parameter.grad is not None:
                parameter.grad.mul_(rate != 0)

    @contextmanager
    def _at_rates(self, rates: Sequence[Tensor] | None) -> Iterator[None]:
        """Scales the step taken within the block. AdamW's step, weight decay included, is proportional to the rate, so
        that this is the step at a rate of its own for every weight."""
        before = None if rates is None else [parameter.detach().clone() for parameter in self._parameters]
        yield
        if rates is None or before is None:
            return
        for parameter, old, rate in zip(self._parameters, before, rates, strict=True):
            parameter.data.copy_(torch.where(rate == 0, old, torch.lerp(old, parameter.data, rate.expand_as(old))))

    def lower_rate(self, factor: float) -> None:
        """Go on at `factor` times the rate; the schedule's shape stays."""
        self._lowered *= factor
        self._set_rates([self._configured * self._lowered for _ in self._schedule.base_lrs])

    def forget_moments(self) -> None:
        """The weights were replaced, so that what the gradients were like says nothing any more."""
        self._optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "lowered": self._lowered,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` left off, at this optimizer's own learning rate should it be another one, lowered as
        it was."""
        self._lowered = state.get("lowered", 1.0)  # checkpoints of older versions do not say
        configured = [self._configured * self._lowered for _ in self._schedule.base_lrs]
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        if self._schedule.base_lrs != configured:
            self._set_rates(configured)

    def _set_rates(self, base_rates: Sequence[float]) -> None:
        schedule: Any = self._schedule
        schedule.base_lrs = list(base_rates)
        factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
        for group, base, factor in zip(self._optimizer.param_groups, base_rates, factors, strict=True):
            group["initial_lr"], group["lr"] = base, base * factor
        schedule._last_lr = [group["lr"] for group in self._optimizer.param_groups]


def step_metrics(steps: Sequence[Step]) -> dict[str, float]:
    """Means over the steps of an update; empty without steps."""
    if not steps:
        return {}
    return {
        "train/loss": sum(step.loss for step in steps) / len(steps),
        "train/grad_norm": sum(step.grad_norm for step in steps) / len(steps),
        "train/learning_rate": steps[-1].learning_rate,
        "train/steps": float(len(steps)),
    }


def save_state(folder: Path, state: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save(state, content)
    (folder / _STATE).write_bytes(content.getvalue())  # torch's own writer raises no OSError when the disk is full


def load_state(folder: Path) -> dict[str, Any]:
    """What `save_state` wrote."""
    return torch.load(folder / _STATE, map_location="cpu", weights_only=True)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block torch draws (dropout) from `seed` and, on a CPU, sums in a fixed order.

    Without the latter, backward passes through repeated indices add up in the order in which threads get there.
    """
    before = torch.are_deterministic_algorithms_enabled()
    fill = deterministic.fill_uninitialized_memory
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(not torch.cuda.is_available())
        deterministic.fill_uninitialized_memory = False  # a debugging aid that comes with it, and slow
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
            deterministic.fill_uninitialized_memory = fill


def fail_with_batch(folder: Path, update: str, batch: Sequence[Experience | TokenPair]) -> Callable[[str], NoReturn]:
    """A `fail` for `AdapterOptimizer.step` that saves the batch as JSON and stops the run.

    Args:
        update: which one, such as "iteration 3"; the file is called after it.
    """

    def fail(reason: str) -> NoReturn:
        path = folder / f"{update.replace(' ', '_')}.json"
        content = {"reason": reason, "batch": [_dump_row(item) for item in batch]}
        where = f"The batch is in {path}: look there for"
        try:
            write_text(path, json.dumps(content, indent=1))
        except OSError as error:  # the reason must not be lost
            where = f"The batch cannot be saved in {path} ({error.strerror or error}); it may hold"
        raise TrainingError(
            f"{update}: {reason}, so the run stops before this step changes any weight. {where} rewards or "
            f"log-probabilities that are not finite; if there are none, {LOWER_THE_RATE}"
        )

    return fail


def refuse_bad_rewards(folder: Path, update: str, groups: Sequence[Group]) -> None:
    """Raises TrainingError, with the batch saved, where a reward is a number but not a finite one."""
    experiences = [experience for group in groups for experience in group.experiences]
    for experience in experiences:
        if experience.score.value is not None and not math.isfinite(experience.score.value):
            fail_with_batch(folder, update, experiences)(
                f"the reward of rollout {experience.rollout.id} is {experience.score.value}"
            )


def _dump_row(item: Experience | TokenPair) -> dict[str, Any]:
    if not isinstance(item, Experience):
        return {"prompt_ids": item[0], "completion_ids": item[1]}
    rollout = item.rollout
    return {
        "group_id": rollout.group_id,
        "rollout_id": rollout.id,
        "iteration": item.iteration,
        "policy_version": rollout.policy_version,
        "reward": item.score.value,
        "prompt_ids": rollout.prompt_ids,
        "completion_ids": rollout.completion_ids,
        "logprobs": rollout.logprobs,
        "reference_logprobs": item.reference_logprobs,
        "text": rollout.text,
    }
