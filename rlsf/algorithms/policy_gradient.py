"""The clipped policy update that GRPO and PPO share; they differ in where the advantages come from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rlsf.algorithms.diagnostics import TokenDiagnostics
from rlsf.algorithms.samples import Sample, TokenTensors, micro_batches, minibatches, tensors
from rlsf.algorithms.trl_overrides import PolicyGradientLoss
from rlsf.algorithms.update import AdapterOptimizer, Step, fail_with_batch, step_metrics
from rlsf.config.schema import GrpoConfig, PpoConfig
from rlsf.policy import Policy, sampling_temperature


class PolicyGradient:
    """Optimizer and loss of the policy's adapter."""

    def __init__(
        self,
        config: GrpoConfig | PpoConfig,
        policy: Policy,
        *,
        loss: str,
        kl_coef: float,
        total_steps: int,
        dump_dir: Path,
    ) -> None:
        self._config = config
        self._policy = policy
        self._dump_dir = dump_dir
        if config.gradient_checkpointing:
            policy.enable_gradient_checkpointing()
        self._loss = PolicyGradientLoss(
            policy,
            kind=loss,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
            kl_coef=kl_coef,
        )
        self._optimizer = AdapterOptimizer.from_config(policy.parameters(), config, total_steps=total_steps)

    @property
    def backward(self) -> Callable[[Tensor], None]:
        """Accelerate's, which knows about devices and scaling."""
        return self._loss.backward

    def update(self, groups: Sequence[Sequence[Sample]], *, iteration: int, seed: int) -> dict[str, float]:
        """`epochs` passes over the groups' samples, `minibatches` optimizer steps each. Without groups, nothing.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        diagnostics = TokenDiagnostics()
        steps = [
            self._step(minibatch, diagnostics, iteration=iteration)
            for epoch in range(self._config.epochs)
            for minibatch in minibatches(groups, self._config.minibatches, seed=seed, epoch=epoch)
        ]
        return step_metrics(steps) | diagnostics.metrics()

    def _step(self, minibatch: Sequence[Sample], diagnostics: TokenDiagnostics, *, iteration: int) -> Step:
        rollouts = [sample.experience.rollout for sample in minibatch]
        temperature = sampling_temperature(rollouts)
        step_tokens = sum(len(rollout.completion_ids) for rollout in rollouts)
        max_tokens = max(rollout.sampling.max_tokens for rollout in rollouts)

        def loss(tokens: TokenTensors) -> Tensor:
            value = self._loss(
                tokens,
                temperature=temperature,
                step_rows=len(rollouts),
                step_tokens=step_tokens,
                max_tokens=max_tokens,
            )
            diagnostics.add(
                tokens,
                self._loss.last["logprob"],
                self._loss.last["entropy"],
                clip=(self._config.clip_low, self._config.clip_high),
                dual_clip=self._config.dual_clip,
            )
            return value

        parts = micro_batches(minibatch, self._config.micro_batch_tokens)
        return self._optimizer.step(
            (tensors(part, self._policy) for part in parts),
            loss,
            backward=self._loss.backward,
            fail=fail_with_batch(self._dump_dir, f"iteration {iteration}", [sample.experience for sample in minibatch]),
        )

    def lower_rate(self, factor: float) -> None:
        self._optimizer.lower_rate(factor)

    def forget_moments(self) -> None:
        self._optimizer.forget_moments()

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)
