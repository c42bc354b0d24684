"""Direct preference optimisation (arXiv 2305.18290) on pairs of rollouts that answer the same prompt."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.special import expit
from torch import Tensor

from rlsf.algorithms.additions import NOTHING, Additions
from rlsf.algorithms.base import UpdateResult
from rlsf.algorithms.diagnostics import TokenDiagnostics
from rlsf.algorithms.samples import (
    Sample,
    TokenTensors,
    minibatches,
    parts,
    tensors,
    token_pair,
    with_reference,
)
from rlsf.algorithms.trl_overrides import PreferenceLoss
from rlsf.algorithms.update import (
    AdapterOptimizer,
    Step,
    fail_with_batch,
    load_state,
    refuse_bad_rewards,
    save_state,
    seeded,
    step_metrics,
)
from rlsf.config.algorithms import DpoConfig
from rlsf.experience import Group
from rlsf.forward import TokenPair, micro_batches
from rlsf.policy import Policy, sampling_temperature
from rlsf.preferences import Pair, make_pairs

_NO_ADVANTAGE = np.zeros(0)


class Dpo:
    """Raises the margin, measured against the reference, of better answers over worse ones."""

    needs_reference = True

    def __init__(
        self, config: DpoConfig, policy: Policy, *, total_steps: int, dump_dir: Path, additions: Additions = NOTHING
    ) -> None:
        self._config = config
        self._policy = policy
        self._dump_dir = dump_dir
        if config.gradient_checkpointing:
            policy.enable_gradient_checkpointing()
        self._loss = PreferenceLoss(policy, kind=config.loss, beta=config.beta, label_smoothing=config.label_smoothing)
        self._additions = additions
        self._optimizer = AdapterOptimizer.from_config(
            policy.parameters(), config, total_steps=total_steps, additions=additions
        )

    def update(
        self, groups: Sequence[Group], *, iteration: int, seed: int, earlier: Collection[str] = ()
    ) -> UpdateResult:
        """See `Algorithm.update`. A group without two sufficiently different rewards gives no pair and is skipped."""
        refuse_bad_rewards(self._dump_dir, f"iteration {iteration}", groups)
        groups = with_reference(self._policy, groups)
        pairs = {
            group.id: make_pairs(group, self._config, fresh=group.iteration == iteration, earlier=group.id in earlier)
            for group in groups
        }
        paired = [found for found in pairs.values() if found]
        report = _Report(self._config.beta)
        with seeded(seed), self._policy.training():
            steps = [
                self._step(minibatch, report, iteration)
                for epoch in range(self._config.epochs)
                for minibatch in minibatches(paired, self._config.minibatches, seed=seed, epoch=epoch)
            ]
        metrics = {
            "train/groups": float(len(paired)),
            "train/skipped_groups": float(len(groups) - len(paired)),
            "train/pairs": float(sum(map(len, paired))),
        }
        return UpdateResult(metrics | step_metrics(steps) | report.metrics(), report.priorities(groups))

    def _step(self, minibatch: Sequence[Pair], report: "_Report", iteration: int) -> Step:
        members = [experience for pair in minibatch for experience in (pair.chosen, pair.rejected)]
        temperature = sampling_temperature([experience.rollout for experience in members])

        def loss(portion: tuple[list[Pair], float]) -> Tensor:
            pairs, weight = portion
            samples = [
                *(Sample(pair.chosen, pair.fresh, _NO_ADVANTAGE) for pair in pairs),
                *(Sample(pair.rejected, pair.fresh, _NO_ADVANTAGE) for pair in pairs),
            ]
            tokens = tensors(samples, self._policy)
            assert tokens.reference is not None, "with_reference() has filled it in"
            chosen_reference, rejected_reference = tokens.reference.sum(dim=1).chunk(2)
            value = self._loss(
                [token_pair(pair.chosen) for pair in pairs],
                [token_pair(pair.rejected) for pair in pairs],
                chosen_reference.tolist(),
                rejected_reference.tolist(),
                temperature=temperature,
            )
            report.add(pairs, tokens, self._loss.last)
            return value * weight

        return self._optimizer.step(
            self._portions(minibatch),
            loss,
            backward=self._loss.backward,
            fail=fail_with_batch(self._dump_dir, f"iteration {iteration}", members),
        )

    def _portions(self, minibatch: Sequence[Pair]) -> Iterator[tuple[list[Pair], float]]:
        """Micro-batches, and the weight of each one's mean in the loss."""
        for part, weight in parts(minibatch, [pair.earlier for pair in minibatch], self._additions.part_weights):
            for indices in micro_batches([_as_one_sequence(pair) for pair in part], self._config.micro_batch_tokens):
                yield [part[index] for index in indices], weight * len(indices) / len(part)

    def lower_rate(self, factor: float) -> None:
        self._optimizer.lower_rate(factor)

    def forget_moments(self) -> None:
        self._optimizer.forget_moments()

    def save(self, folder: Path) -> None:
        save_state(folder, self._optimizer.state_dict())

    def load(self, folder: Path) -> None:
        self._optimizer.load_state_dict(load_state(folder))


class _Report:
    """Margins of the pairs, and how far the policy has moved on their tokens."""

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self._tokens = TokenDiagnostics()
        self._margins: list[tuple[Pair, float]] = []

    def add(self, pairs: Sequence[Pair], tokens: TokenTensors, statistics: Mapping[str, Tensor]) -> None:
        """`tokens` and `statistics` have the chosen rows first, then the rejected ones."""
        self._tokens.add(tokens, statistics["logprob"], statistics["entropy"])
        assert tokens.reference is not None
        gains = (statistics["logprob"].detach() - tokens.reference).sum(dim=1)
        chosen, rejected = gains.chunk(2)
        self._margins += zip(pairs, (self._beta * (chosen - rejected)).tolist(), strict=True)

    def metrics(self) -> dict[str, float]:
        """`margin` is β · (gain of the chosen over the reference − the rejected's); `accuracy`: margins above 0."""
        result = self._tokens.metrics()
        for part, fresh in (("fresh", True), ("replayed", False)):
            margins = np.array([margin for pair, margin in self._margins if pair.fresh == fresh])
            if len(margins):
                result[f"train/{part}/margin"] = float(margins.mean())
                result[f"train/{part}/accuracy"] = float((margins > 0).mean())
        return result

    def priorities(self, groups: Sequence[Group]) -> dict[str, float]:
        """Mean σ(−margin) of the group's pairs: the weight that DPO's gradient gives them; 0 without pairs."""
        weights: dict[str, list[float]] = {group.id: [] for group in groups}
        for pair, margin in self._margins:
            weights[pair.group_id].append(float(expit(-margin)))
        return {name: float(np.mean(values)) if values else 0.0 for name, values in weights.items()}


def _as_one_sequence(pair: Pair) -> TokenPair:
    """A stand-in that takes as many padded tokens as the pair's two rows."""
    prompt, chosen = token_pair(pair.chosen)
    _, rejected = token_pair(pair.rejected)
    longer = max(chosen, rejected, key=len)
    return prompt, [*longer, *longer]
