"""Distillation from the last task's policy on completions replayed from earlier tasks."""

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rlsf import forward
from rlsf.config.strategies import DistillConfig
from rlsf.experience import Experience, Group, in_turn
from rlsf.policy import LAST, Policy, sampling_temperature


class Distillation:
    """KL divergence to the frozen adapter `last`, averaged over the completion tokens of some of the replayed groups'
    completions, and of others in the next step."""

    def __init__(self, config: DistillConfig, policy: Policy, micro_batch_tokens: int) -> None:
        self._config = config
        self._policy = policy
        self._micro_batch_tokens = micro_batch_tokens
        self._queue: deque[Experience] = deque()
        self.value: float | None = None
        """Mean divergence (nats per token) at the last optimizer step; None where nothing was replayed."""

    def replay(self, groups: Sequence[Group]) -> None:
        """What the next update compares on."""
        self._queue = deque(in_turn(groups))
        self.value = None

    def penalties(self) -> Iterator[Tensor]:
        """coef · mean KL, in micro-batches that add up to it."""
        if not self._queue:
            return
        compared = [self._queue[i] for i in range(min(self._config.batch_size, len(self._queue)))]
        self._queue.rotate(-len(compared))
        sequences = [(e.rollout.prompt_ids, e.rollout.completion_ids) for e in compared]
        count = sum(len(completion) for _, completion in sequences)
        temperature = sampling_temperature([e.rollout for e in compared])
        total = 0.0
        for indices in forward.micro_batches(sequences, self._micro_batch_tokens):
            part = [sequences[index] for index in indices]
            batch = forward.collate(part, self._policy.pad_id, self._policy.device)
            mask = batch.completion_mask.bool()
            target = self._target(batch)[mask]
            hidden = forward.completion_hidden_states(self._policy.causal_lm, batch)[mask]
            values = forward.divergence(
                self._policy.causal_lm,
                hidden,
                target,
                temperature=temperature,
                forward_kl=self._config.direction == "forward",
            )
            total += float(values.detach().sum())
            yield self._config.coef * values.sum() / count
        self.value = total / count

    @torch.no_grad()
    def _target(self, batch: forward.PaddedBatch) -> Tensor:
        """(B, T, H) hidden states under the last policy, without dropout."""
        with self._policy.evaluating(), self._policy.using(LAST):
            return forward.completion_hidden_states(self._policy.causal_lm, batch)
