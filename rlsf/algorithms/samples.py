"""From groups to what goes through the loss: selection, minibatches, micro-batches, padded tensors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rlsf import forward
from rlsf.algorithms.additions import PartWeights, SampleWeight
from rlsf.experience import Experience, Group
from rlsf.forward import PaddedBatch, TokenPair
from rlsf.policy import REFERENCE, Policy

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sample:
    """One rollout on its way into the loss."""

    experience: Experience
    fresh: bool
    """Generated in this iteration, not drawn from the buffer."""
    advantages: np.ndarray
    """(T,), one per completion token."""
    earlier: bool = False
    """Of an earlier task than the one being trained."""
    retention: float = 0.0
    """See `SampleWeight`."""

    @property
    def tokens(self) -> TokenPair:
        return token_pair(self.experience)


@dataclass(frozen=True)
class TokenTensors:
    """Per-token values of B rollouts, all (B, T) float32 unless stated otherwise, zero at padding."""

    batch: PaddedBatch
    behaviour: Tensor
    """Log-probabilities (nats) under the policy that sampled."""
    reference: Tensor | None
    """Log-probabilities (nats) under the reference."""
    advantages: Tensor
    fresh: Tensor
    """(B,), bool."""
    retention: Tensor | None = None
    """(B,), see `SampleWeight`; None where no sample has one."""


def token_pair(experience: Experience) -> TokenPair:
    return experience.rollout.prompt_ids, experience.rollout.completion_ids


def with_reference(policy: Policy, groups: Sequence[Group]) -> list[Group]:
    """The same groups, every experience with reference log-probabilities: computed where they are missing."""
    missing = [e for group in groups for e in group.experiences if e.reference_logprobs is None]
    rows = iter(policy.logprobs([e.rollout for e in missing], adapter=REFERENCE) if missing else [])
    return [
        replace(
            group,
            experiences=tuple(
                e if e.reference_logprobs is not None else replace(e, reference_logprobs=tuple(next(rows)))
                for e in group.experiences
            ),
        )
        for group in groups
    ]


def minibatches(groups: Sequence[Sequence[T]], count: int, *, seed: int, epoch: int) -> Iterator[list[T]]:
    """The groups' members in `count` parts of nearly equal numbers of groups, shuffled; a group is never torn apart."""
    order = np.random.default_rng([seed, epoch]).permutation(len(groups))
    for part in np.array_split(order, min(count, len(groups))) if len(groups) else []:
        yield [member for index in part for member in groups[index]]


def weighted(groups: Sequence[Sequence[Sample]], weights: Mapping[str, SampleWeight]) -> list[list[Sample]]:
    """The same samples, those whose rollout is named counting as much as `weights` says."""

    def weigh(sample: Sample) -> Sample:
        weight = weights.get(sample.experience.rollout.id)
        if weight is None:
            return sample
        return replace(sample, advantages=weight.learning * sample.advantages, retention=weight.retention)

    return [[weigh(sample) for sample in group] for group in groups]


def parts(members: Sequence[T], earlier: Sequence[bool], weights: PartWeights | None) -> list[tuple[list[T], float]]:
    """A minibatch in the parts that are averaged by themselves, each with its weight; without `weights` it is one."""
    if weights is None:
        return [(list(members), 1.0)]
    sides: tuple[list[T], list[T]] = ([], [])
    for member, is_earlier in zip(members, earlier, strict=True):
        sides[not is_earlier].append(member)
    return [(side, weight) for side, weight in zip(sides, (weights.source, weights.target), strict=True) if side]


def micro_batches(samples: Sequence[Sample], budget: int) -> list[list[Sample]]:
    """Parts of at most `budget` padded tokens: similar lengths go together, rollouts of one prompt stay neighbours."""
    longest: dict[tuple[int, ...], int] = {}
    for sample in samples:
        rollout = sample.experience.rollout
        length = len(rollout.prompt_ids) + len(rollout.completion_ids)
        longest[rollout.prompt_ids] = max(longest.get(rollout.prompt_ids, 0), length)
    ordered = sorted(samples, key=lambda s: (longest[s.experience.rollout.prompt_ids], s.experience.rollout.prompt_ids))
    parts = forward.micro_batches([sample.tokens for sample in ordered], budget)
    return [[ordered[index] for index in part] for part in parts]


def tensors(samples: Sequence[Sample], policy: Policy) -> TokenTensors:
    """Padded tensors of the samples, on the policy's device."""
    batch = forward.collate([sample.tokens for sample in samples], policy.pad_id, policy.device)
    references = [sample.experience.reference_logprobs for sample in samples]
    known = [row for row in references if row is not None]
    return TokenTensors(
        batch=batch,
        behaviour=forward.pad_rows([sample.experience.rollout.logprobs for sample in samples], batch),
        reference=forward.pad_rows(known, batch) if len(known) == len(samples) else None,
        advantages=forward.pad_rows([sample.advantages for sample in samples], batch),
        fresh=batch.prompt_ids.new_tensor([sample.fresh for sample in samples]).bool(),
        retention=_retention(samples, policy),
    )


def _retention(samples: Sequence[Sample], policy: Policy) -> Tensor | None:
    if not any(sample.retention for sample in samples):
        return None
    return torch.tensor([sample.retention for sample in samples], dtype=torch.float32, device=policy.device)
