"""The critic: a second LoRA adapter on the policy's frozen base, and a scalar head: one base model in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlsf import forward
from rlsf.algorithms.samples import minibatches, token_pair
from rlsf.algorithms.update import AdapterOptimizer, Step, fail_with_batch
from rlsf.config.algorithms import PpoConfig
from rlsf.experience import Experience
from rlsf.policy import Policy

VALUE = "value"
"""Name of the critic's adapter."""


@dataclass(frozen=True, slots=True)
class ValueTarget:
    """What the critic should have said about one rollout."""

    experience: Experience
    old_values: np.ndarray
    """(T,), its estimates before the update."""
    returns: np.ndarray
    """(T,), what came of each state."""


class Critic:
    """V(s_t): expected return from the state in which token t is chosen. Starts at 0 everywhere."""

    def __init__(self, config: PpoConfig, policy: Policy, *, total_steps: int, seed: int, dump_dir: Path) -> None:
        self._config = config
        self._policy = policy
        self._dump_dir = dump_dir
        policy.add_adapter(VALUE, seed=seed)
        hidden_size = policy.causal_lm.config.get_text_config().hidden_size
        self._head = nn.Linear(hidden_size, 1, device=policy.device)
        nn.init.zeros_(self._head.weight)
        nn.init.zeros_(self._head.bias)
        self._optimizer = AdapterOptimizer.from_config(
            [*policy.parameters(VALUE), *self._head.parameters()],
            config.model_copy(update={"learning_rate": config.value_learning_rate}),
            total_steps=total_steps,
        )

    @torch.no_grad()
    def values(self, experiences: Sequence[Experience]) -> list[np.ndarray]:
        """(T,) of each experience, without dropout."""
        result: list[np.ndarray] = []
        sequences = [token_pair(experience) for experience in experiences]
        with self._policy.using(VALUE):
            for indices in forward.micro_batches(sequences, self._config.micro_batch_tokens):
                part = [sequences[index] for index in indices]
                values = self._forward(forward.collate(part, self._policy.pad_id, self._policy.device)).cpu().numpy()
                result += [values[row, : len(completion)] for row, (_, completion) in enumerate(part)]
        return result

    def fit(
        self, groups: Sequence[Sequence[ValueTarget]], *, iteration: int, seed: int, backward: Callable[[Tensor], None]
    ) -> dict[str, float]:
        """`epochs` · `value_epochs` passes over the groups' targets, `minibatches` optimizer steps each.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        with self._policy.using(VALUE):
            steps = [
                self._step(minibatch, iteration, backward)
                for epoch in range(self._config.epochs * self._config.value_epochs)
                for minibatch in minibatches(groups, self._config.minibatches, seed=seed, epoch=epoch)
            ]
        return {
            "train/value/loss": sum(step.loss for step in steps) / len(steps),
            "train/value/grad_norm": sum(step.grad_norm for step in steps) / len(steps),
        }

    def _step(self, minibatch: Sequence[ValueTarget], iteration: int, backward: Callable[[Tensor], None]) -> Step:
        total = sum(len(target.returns) for target in minibatch)
        parts = forward.micro_batches([token_pair(t.experience) for t in minibatch], self._config.micro_batch_tokens)

        def loss(indices: list[int]) -> Tensor:
            targets = [minibatch[index] for index in indices]
            batch = forward.collate(
                [token_pair(target.experience) for target in targets], self._policy.pad_id, self._policy.device
            )
            errors = clipped_value_errors(
                self._forward(batch),
                forward.pad_rows([target.old_values for target in targets], batch),
                forward.pad_rows([target.returns for target in targets], batch),
                self._config.value_clip,
            )
            return (errors * batch.completion_mask).sum() / total

        members = [target.experience for target in minibatch]
        fail = fail_with_batch(self._dump_dir, f"iteration {iteration} critic", members)
        return self._optimizer.step(parts, loss, backward=backward, fail=fail)

    def _forward(self, batch: forward.PaddedBatch) -> Tensor:
        """(B, T) values; those at padding mean nothing."""
        hidden = forward.completion_hidden_states(self._policy.causal_lm, batch)
        return self._head(hidden.float()).squeeze(-1)

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the adapter below `folder`; returns the rest of the state."""
        self._policy.save_adapter(folder / VALUE, VALUE)
        return {"head": self._head.state_dict(), **self._optimizer.state_dict()}

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        self._policy.load_adapter(folder / VALUE, VALUE)
        self._head.load_state_dict(state["head"])
        self._optimizer.load_state_dict(state)


def clipped_value_errors(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """½ max((V − R)², (clip(V, V_old ± clip) − R)²), elementwise (arXiv 2005.12729, section 2)."""
    clipped = torch.clamp(values, old_values - clip, old_values + clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
