"""The clipped policy update that GRPO and PPO share; they differ in where the advantages come from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rlsf.algorithms.additions import NOTHING, Additions
from rlsf.algorithms.diagnostics import TokenDiagnostics
from rlsf.algorithms.samples import Sample, TokenTensors, micro_batches, minibatches, parts, tensors, weighted
from rlsf.algorithms.trl_overrides import PolicyGradientLoss
from rlsf.algorithms.update import AdapterOptimizer, Step, fail_with_batch, step_metrics
from rlsf.config.algorithms import GrpoConfig, PpoConfig
from rlsf.policy import Policy, sampling_temperature


@dataclass(frozen=True)
class _Portion:
    """A micro-batch and the part of the minibatch over which its loss is averaged."""

    tokens: TokenTensors
    rows: int
    """Rollouts in the part."""
    count: int
    """Completion tokens in the part."""
    weight: float
    """Of the part's loss."""


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
        additions: Additions = NOTHING,
    ) -> None:
        self._config = config
        self._additions = additions
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
        self._optimizer = AdapterOptimizer.from_config(
            policy.parameters(), config, total_steps=total_steps, additions=additions
        )

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
        retained: list[float] = []
        weights = self._additions.weigh([sample.experience for group in groups for sample in group])
        groups = weighted(groups, weights)
        steps = [
            self._step(minibatch, diagnostics, retained, iteration=iteration)
            for epoch in range(self._config.epochs)
            for minibatch in minibatches(groups, self._config.minibatches, seed=seed, epoch=epoch)
        ]
        metrics = step_metrics(steps) | diagnostics.metrics()
        if any(sample.retention for group in groups for sample in group):
            metrics["continual/retention"] = sum(retained) / len(steps)
        return metrics

    def _step(
        self, minibatch: Sequence[Sample], diagnostics: TokenDiagnostics, retained: list[float], *, iteration: int
    ) -> Step:
        """`retained` takes what each micro-batch adds to hold on to the reference."""
        rollouts = [sample.experience.rollout for sample in minibatch]
        temperature = sampling_temperature(rollouts)
        max_tokens = max(rollout.sampling.max_tokens for rollout in rollouts)

        def loss(portion: _Portion) -> Tensor:
            value = self._loss(
                portion.tokens,
                temperature=temperature,
                step_rows=portion.rows,
                step_tokens=portion.count,
                max_tokens=max_tokens,
            )
            diagnostics.add(
                portion.tokens,
                self._loss.last["logprob"],
                self._loss.last["entropy"],
                clip=(self._config.clip_low, self._config.clip_high),
                dual_clip=self._config.dual_clip,
            )
            kept = retention(portion.tokens, self._loss.last["logprob"]) / portion.count
            retained.append(kept.item())
            return portion.weight * (value + kept)

        return self._optimizer.step(
            self._portions(minibatch),
            loss,
            backward=self._loss.backward,
            fail=fail_with_batch(self._dump_dir, f"iteration {iteration}", [sample.experience for sample in minibatch]),
        )

    def _portions(self, minibatch: Sequence[Sample]) -> Iterator[_Portion]:
        earlier = [sample.earlier for sample in minibatch]
        for part, weight in parts(minibatch, earlier, self._additions.part_weights):
            count = sum(len(sample.experience.rollout.completion_ids) for sample in part)
            for micro_batch in micro_batches(part, self._config.micro_batch_tokens):
                yield _Portion(tensors(micro_batch, self._policy), len(part), count, weight)

    def lower_rate(self, factor: float) -> None:
        self._optimizer.lower_rate(factor)

    def forget_moments(self) -> None:
        self._optimizer.forget_moments()

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)


def retention(tokens: TokenTensors, logprobs: Tensor) -> Tensor:
    """Σ weight · (log π − log ref)² over the completion tokens; 0 where no sample has a weight.

    Raises:
        ValueError: samples have weights, and one of them no log-probabilities under the reference.
    """
    if tokens.retention is None or not tokens.retention.any():
        return logprobs.new_zeros(())
    if tokens.reference is None:
        raise ValueError("retention compares with the reference, and a sample has no log-probabilities under it")
    return (tokens.retention[:, None] * tokens.batch.completion_mask * (logprobs - tokens.reference) ** 2).sum()
