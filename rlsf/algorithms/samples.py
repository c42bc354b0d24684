"""From groups to what goes through the loss: selection, minibatches, micro-batches, padded tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from torch import Tensor

from rlsf import forward
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
    )
