"""The training pass: what the model makes of each completion token, with every prompt computed once.

The completions of a group continue the same prompt, and prompts begin alike: chat template, system prompt, question
wording. What all prompts share runs once; its key-value cache is expanded to the prompts, which run against it; theirs
is expanded to the rows, and the completions run against that. Gradients flow back through the caches. Equal to running
every row whole, at a fraction of the cost.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

TokenPair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of the completion that continues it."""

Statistic = Literal["entropy", "self_certainty", "top_gap", "mean_logit", "is_top1"]

HEAD_CHUNK = 1024
"""Positions whose logits exist at the same moment: bounds the memory of (positions, vocabulary) tensors."""

MIN_COMMON_PREFIX = 8
"""Tokens. A beginning that all prompts share gets a pass of its own from this length on."""


@dataclass(frozen=True)
class PaddedBatch:
    """Prompts padded on the left, completions on the right; B rows, each one sequence."""

    prompt_ids: Tensor
    """(B, P)"""
    prompt_mask: Tensor
    """(B, P), 1 at real tokens."""
    completion_ids: Tensor
    """(B, T)"""
    completion_mask: Tensor
    """(B, T), 1 at real tokens."""


def collate(sequences: Sequence[TokenPair], pad_id: int, device: torch.device | str) -> PaddedBatch:
    """The exact token ids as one padded batch."""
    prompt_width = max(len(prompt) for prompt, _ in sequences)
    completion_width = max(1, *(len(completion) for _, completion in sequences))
    prompt_ids = torch.full((len(sequences), prompt_width), pad_id)
    completion_ids = torch.full((len(sequences), completion_width), pad_id)
    prompt_mask, completion_mask = torch.zeros_like(prompt_ids), torch.zeros_like(completion_ids)
    for row, (prompt, completion) in enumerate(sequences):
        prompt_ids[row, prompt_width - len(prompt) :] = torch.tensor(prompt)
        prompt_mask[row, prompt_width - len(prompt) :] = 1
        completion_ids[row, : len(completion)] = torch.tensor(completion)
        completion_mask[row, : len(completion)] = 1
    return PaddedBatch(*(t.to(device) for t in (prompt_ids, prompt_mask, completion_ids, completion_mask)))


def pad_rows(rows: Sequence[Sequence[float] | np.ndarray], batch: PaddedBatch) -> Tensor:
    """Per-token values as a (B, T) float32 tensor beside `batch.completion_ids`, zero at padding."""
    padded = torch.zeros(batch.completion_ids.shape, dtype=torch.float32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.as_tensor(row, dtype=torch.float32)
    return padded.to(batch.completion_ids.device)


def micro_batches(sequences: Sequence[TokenPair], budget: int) -> Iterator[list[int]]:
    """Split `sequences`, in order, so that no forward pass covers more than `budget` tokens, padding included.

    A prompt counts once, however many neighbours continue it. A sequence longer than the budget goes alone.
    """
    batch: list[int] = []
    prompts: set[tuple[int, ...]] = set()
    longest_prompt = longest_completion = 0
    for index, (prompt, completion) in enumerate(sequences):
        wider_prompt = max(longest_prompt, len(prompt))
        wider_completion = max(longest_completion, len(completion))
        count = len(prompts | {tuple(prompt)})
        if batch and count * wider_prompt + (len(batch) + 1) * wider_completion > budget:
            yield batch
            batch, prompts = [], set()
            wider_prompt, wider_completion = len(prompt), len(completion)
        batch.append(index)
        prompts.add(tuple(prompt))
        longest_prompt, longest_completion = wider_prompt, wider_completion
    if batch:
        yield batch


def token_statistics(
    model: PreTrainedModel,
    batch: PaddedBatch,
    *,
    temperature: float = 1.0,
    statistics: Sequence[Statistic] = ("entropy",),
) -> dict[str, Tensor]:
    """What the model's distribution at `temperature` says about each completion token.

    Args:
        model: a causal language model with its LoRA adapter set; `PeftModel.get_base_model()` gives it.
        temperature: divides the logits; every value below is of the divided ones.

    Returns:
        (B, T) float32 tensors in nats, zero at padding: "logprob" of the token, with gradient; and each name in
        `statistics`, without: "entropy" −Σ p log p; "self_certainty" KL(uniform ‖ p); "top_gap" largest minus second
        largest probability; "mean_logit" over the vocabulary; "is_top1" 1 where no token is likelier.
    """
    mask = batch.completion_mask.bool()
    hidden = completion_hidden_states(model, batch)[mask]
    ids = batch.completion_ids[mask]
    chunks = [
        _head_statistics(model, hidden_chunk, id_chunk, temperature, statistics, recompute=len(ids) > HEAD_CHUNK)
        for hidden_chunk, id_chunk in zip(hidden.split(HEAD_CHUNK), ids.split(HEAD_CHUNK), strict=True)
    ]
    columns = torch.cat(chunks, dim=1)
    names = ["logprob", *statistics]
    blank = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    return {name: blank.masked_scatter(mask, column) for name, column in zip(names, columns, strict=True)}


def completion_hidden_states(model: PreTrainedModel, batch: PaddedBatch) -> Tensor:
    """Last-layer hidden state from which each completion token is predicted: that of the token before it, (B, T, H)."""
    if not can_share_prompts(model):
        return _padded_pass(model, batch)
    keyed = batch.prompt_ids.masked_fill(batch.prompt_mask == 0, -1)
    distinct, prompt_of_row = torch.unique(keyed, dim=0, return_inverse=True)
    prefix = _common_prefix(distinct)
    if len(distinct) == len(keyed) and prefix == 0:
        return _padded_pass(model, batch)
    return _shared_prompt_pass(model, batch, distinct, prompt_of_row, prefix)


def can_share_prompts(model: PreTrainedModel) -> bool:
    """Whether the cache can be expanded row by row: plain attention in every layer, and no checkpointing under way.

    Sliding windows, recurrent states and compressed caches fall back to the padded pass, as does gradient
    checkpointing, which recomputes layers without their cache.
    """
    if model.training and model.is_gradient_checkpointing:
        return False
    if getattr(model, "_is_stateful", False):
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def divergence(
    model: PreTrainedModel, hidden: Tensor, target: Tensor, *, temperature: float, forward_kl: bool
) -> Tensor:
    """KL divergence (nats) between the distributions at N positions, (N,), with gradient through `hidden`.

    The logits of `HEAD_CHUNK` positions exist at a time.

    Args:
        hidden, target: (N, H) last hidden states of the policy and of what it is compared with.
        forward_kl: KL(target ‖ policy); else KL(policy ‖ target).
    """

    def compute(ours: Tensor, theirs: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits(model, ours) / temperature, dim=-1)
        with torch.no_grad():
            log_q = torch.log_softmax(logits(model, theirs) / temperature, dim=-1)
        if forward_kl:
            return (log_q.exp() * (log_q - log_p)).sum(dim=-1)
        return (log_p.exp() * (log_p - log_q)).sum(dim=-1)

    chunks = zip(hidden.split(HEAD_CHUNK), target.split(HEAD_CHUNK), strict=True)
    if hidden.requires_grad and len(hidden) > HEAD_CHUNK:
        return torch.cat([checkpoint(compute, ours, theirs, use_reentrant=False) for ours, theirs in chunks])
    return torch.cat([compute(ours, theirs) for ours, theirs in chunks])


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The language-model head on (..., H) hidden states: (..., V), float32.

    Covers the scalings that transformers' models apply beside the head (Cohere, Granite, Gemma);
    `check_head` tells whether that is all a model does.
    """
    config = model.config.get_text_config()
    values = model.get_output_embeddings()(hidden).float()
    if getattr(config, "logit_scale", None) is not None:
        values = values * config.logit_scale
    if getattr(config, "logits_scaling", None) is not None:
        values = values / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)
    return values if cap is None else cap * torch.tanh(values / cap)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> bool:
    """Whether `logits` of the backbone's output are the logits that the model itself computes."""
    ids = torch.tensor([[0, 1]], device=model.device)
    own = model(input_ids=ids, use_cache=False).logits.float()
    ours = logits(model, model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    return own.shape == ours.shape and torch.allclose(own, ours, rtol=2e-2, atol=1e-3 * float(own.abs().max()))


def _padded_pass(model: PreTrainedModel, batch: PaddedBatch) -> Tensor:
    mask = torch.cat([batch.prompt_mask, batch.completion_mask], dim=1)
    output = model.base_model(
        input_ids=torch.cat([batch.prompt_ids, batch.completion_ids], dim=1),
        attention_mask=mask,
        position_ids=_positions(mask),
        use_cache=False,
    )
    return output.last_hidden_state[:, batch.prompt_ids.shape[1] - 1 : -1]


def _common_prefix(prompts: Tensor) -> int:
    """Length of what all rows of (D, P), left-padded with −1, begin with; 0 where a pass of its own would not pay.

    At least one token of each prompt is left over: the first completion token is predicted from it.
    """
    if len(prompts) == 1:
        return 0
    rows = [row[row >= 0].tolist() for row in prompts]
    shortest = min(map(len, rows)) - 1
    length = next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)
    return length if length >= MIN_COMMON_PREFIX else 0


def _shared_prompt_pass(
    model: PreTrainedModel, batch: PaddedBatch, distinct: Tensor, prompt_of_row: Tensor, prefix: int
) -> Tensor:
    """`distinct` (D, P) are the different prompts, −1 at padding; row i of the batch continues `prompt_of_row[i]`.

    All of them begin with the same `prefix` tokens.
    """
    cache = DynamicCache(config=model.config)
    if prefix:
        beginning = distinct[0][distinct[0] >= 0][None, :prefix]
        model.base_model(input_ids=beginning, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(distinct))
    # The padding stays on the left of what remains: prefix, padding, rest of the prompt, completion, padding.
    own_mask = (distinct >= 0).long()[:, : distinct.shape[1] - prefix]
    prompt_mask = torch.cat([own_mask.new_ones(len(distinct), prefix), own_mask], dim=1)
    prompt = model.base_model(
        input_ids=distinct[:, prefix:].clamp(min=0),
        attention_mask=prompt_mask,
        position_ids=_positions(prompt_mask)[:, prefix:],
        past_key_values=cache,
        use_cache=True,
    )
    first = prompt.last_hidden_state[prompt_of_row, -1:]
    if batch.completion_ids.shape[1] == 1:
        return first
    cache.batch_select_indices(prompt_of_row)
    mask = torch.cat([prompt_mask[prompt_of_row], batch.completion_mask[:, :-1]], dim=1)
    completion = model.base_model(
        input_ids=batch.completion_ids[:, :-1],
        attention_mask=mask,
        position_ids=_positions(mask)[:, batch.prompt_ids.shape[1] :],
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([first, completion.last_hidden_state], dim=1)


def _positions(mask: Tensor) -> Tensor:
    """Position of each token in its own row; padding repeats its neighbour's, so none exceeds the row's length."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _head_statistics(
    model: PreTrainedModel,
    hidden: Tensor,
    ids: Tensor,
    temperature: float,
    statistics: Sequence[Statistic],
    *,
    recompute: bool,
) -> Tensor:
    """One row for the log-probability and one per statistic, of N positions: (1 + S, N)."""

    def compute(hidden: Tensor) -> Tensor:
        scaled = logits(model, hidden) / temperature
        normaliser = scaled.logsumexp(dim=-1)
        chosen = scaled.gather(1, ids[:, None]).squeeze(1)
        with torch.no_grad():
            details = [_statistic(name, scaled, normaliser, chosen) for name in statistics]
        return torch.stack([chosen - normaliser, *details])

    if recompute and hidden.requires_grad:  # keep no chunk's logits for the backward pass
        return checkpoint(compute, hidden, use_reentrant=False)
    return compute(hidden)


def _statistic(name: Statistic, scaled: Tensor, normaliser: Tensor, chosen: Tensor) -> Tensor:
    """(N,), from the scaled logits (N, V), their logsumexp (N,) and the sampled token's (N,)."""
    match name:
        case "entropy":
            return normaliser - (torch.softmax(scaled, dim=-1) * scaled).sum(dim=-1)
        case "self_certainty":
            return normaliser - scaled.mean(dim=-1) - math.log(scaled.shape[-1])
        case "top_gap":
            first, second = scaled.topk(2, dim=-1).values.unbind(dim=-1)
            return (first - normaliser).exp() - (second - normaliser).exp()
        case "mean_logit":
            return scaled.mean(dim=-1)
        case "is_top1":
            return (chosen >= scaled.amax(dim=-1)).float()
