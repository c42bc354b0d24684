"""The diagonal of the Fisher information of a policy's adapter."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlsf import forward
from rlsf.experience import Experience
from rlsf.policy import Policy


def fisher_diagonal(policy: Policy, experiences: Sequence[Experience]) -> list[Tensor]:
    """Mean over completions of the squared gradient of log π(completion | prompt), by weight tensor of the adapter, in
    the order of `Policy.parameters` (arXiv 1612.00796, below eq. 3; completions sampled from the policy make it the
    true Fisher information, and not the empirical one of given labels).

    Dropout is off. One backward pass per completion: the square of a batch's mean gradient would be another thing, and
    0 where the gradients are 1 and −1.

    Args:
        experiences: at least one, each with a token; the temperature they were sampled at is the distribution's.

    Raises:
        ValueError: there are none.
    """
    if not experiences:
        raise ValueError("the Fisher information needs at least one completion")
    parameters = policy.parameters()
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    with torch.enable_grad(), policy.evaluating():
        for experience in experiences:
            rollout = experience.rollout
            batch = forward.collate([(rollout.prompt_ids, rollout.completion_ids)], policy.pad_id, policy.device)
            temperature = rollout.sampling.temperature or 1.0
            values = forward.token_statistics(policy.causal_lm, batch, temperature=temperature, statistics=())
            for total, gradient in zip(totals, torch.autograd.grad(values["logprob"].sum(), parameters), strict=True):
                total += gradient**2
    return [total / len(experiences) for total in totals]
