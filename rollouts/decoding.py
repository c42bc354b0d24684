"""Batched sampling and teacher forcing with a Hugging Face model: tensors in, tensors out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rollouts.base import Completion
from rollouts.types import FinishReason, SamplingParams


class _RecordLogprobs(LogitsProcessor):
    """Shapes the logits by temperature, top-k and top-p and keeps the log-probability of each token drawn from them.

    Asking `generate` for its scores would hold (tokens, rows, vocabulary) floats; this holds one step of them.
    """

    def __init__(self, sampling: SamplingParams) -> None:
        self._warpers: list[LogitsProcessor] = []
        if sampling.temperature not in (0, 1):
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.temperature > 0 and sampling.top_k > 0:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.temperature > 0 and sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._step: torch.Tensor | None = None
        self._columns: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self._gather(input_ids)
        shaped: Any = scores.float()
        for warper in self._warpers:
            shaped = warper(input_ids, shaped)
        self._step = shaped.log_softmax(-1)
        return shaped

    def _gather(self, input_ids: torch.Tensor) -> None:
        if self._step is not None:
            self._columns.append(self._step.gather(1, input_ids[:, -1:]))

    def logprobs(self, sequences: torch.Tensor) -> torch.Tensor:
        """(rows, completion tokens) of the finished `sequences`; meaningless after a row's end."""
        self._gather(sequences)
        return torch.cat(self._columns, dim=1)


class _StopStrings(StoppingCriteria):
    """Ends a row once one of the strings appears in its completion, and remembers where.

    Hugging Face's own criterion builds a table over the whole vocabulary and does not say where a row ended.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], width: int, rows: int) -> None:
        self._tokenizer, self._stop, self._width = tokenizer, stop, width
        # Every token carries at least a byte, so a new occurrence lies within this many last tokens.
        self._tail = max((len(text.encode()) for text in stop), default=0) + 4
        self.ends: list[int | None] = [None] * rows

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        length = input_ids.shape[1] - self._width
        open_rows = [row for row, end in enumerate(self.ends) if end is None]
        tails = input_ids[open_rows, self._width :][:, -self._tail :]
        texts = self._tokenizer.batch_decode(tails, skip_special_tokens=True)
        for row, text in zip(open_rows, texts, strict=True):
            if any(stop in text for stop in self._stop):
                self.ends[row] = length
        done = [end is not None for end in self.ends]
        return torch.tensor(done, device=input_ids.device)  # type: ignore[return-value]


def pad_left(sequences: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, both (rows, longest)."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pad, dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(sequence)
        mask[row, width - len(sequence) :] = 1
    return ids.to(device), mask.to(device)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Position of each token in its own sequence; padding counts as position 0."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _shared_prefill(model: Any, ids: torch.Tensor, mask: torch.Tensor, copies: torch.Tensor) -> DynamicCache:
    """Key-value cache of all but the last prompt token: each prompt is run once, its cache copied per completion."""
    cache = DynamicCache(config=model.config.get_text_config())
    model(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=_positions(mask[:, :-1]),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_select_indices(copies)
    return cache


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    copies: Sequence[int],
    sampling: SamplingParams,
    end_ids: Sequence[int],
) -> list[Completion]:
    """One completion per entry of `copies`, which indexes `prompts`. Draws from torch's global generator."""
    pad = end_ids[0] if end_ids else 0  # masked or cut off everywhere, so any id does
    ids, mask = pad_left(prompts, pad, model.device)
    index = torch.tensor(copies, device=model.device)
    cache = _shared_prefill(model, ids, mask, index) if ids.shape[1] > 1 else None
    recorder = _RecordLogprobs(sampling)
    stopper = _StopStrings(tokenizer, sampling.stop, ids.shape[1], len(copies))
    sequences = model.generate(
        ids[index],
        attention_mask=mask[index],
        past_key_values=cache,
        generation_config=GenerationConfig(
            do_sample=sampling.temperature > 0,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=list(end_ids) or None,
            pad_token_id=pad,
            **_unshaped(sampling),
        ),
        logits_processor=LogitsProcessorList([recorder]),
        stopping_criteria=StoppingCriteriaList([stopper] if sampling.stop else []),
    )
    logprobs = recorder.logprobs(sequences)
    completions = sequences[:, ids.shape[1] :]
    return [
        _cut(row_ids, row_logprobs, end, end_ids)
        for row_ids, row_logprobs, end in zip(completions.tolist(), logprobs.tolist(), stopper.ends, strict=True)
    ]


def sample_groups(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    end_ids: Sequence[int],
    *,
    seed: int,
    max_batch: int,
) -> list[list[Completion]]:
    """`sampling.n` completions of each prompt, at most `max_batch` at once; all draws come from `seed`."""
    # Prompts of like length share a batch: less padding.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    rows = [index for index in order for _ in range(sampling.n)]
    groups: list[list[Completion]] = [[] for _ in prompts]
    with own_randomness(model.device):
        torch.manual_seed(seed)
        for start in range(0, len(rows), max_batch):
            chunk = rows[start : start + max_batch]
            distinct = list(dict.fromkeys(chunk))
            copies = [distinct.index(row) for row in chunk]
            completions = sample(model, tokenizer, [prompts[index] for index in distinct], copies, sampling, end_ids)
            for index, completion in zip(chunk, completions, strict=True):
                groups[index].append(completion)
    return groups


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Whatever is drawn or seeded inside leaves the caller's generators as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _unshaped(sampling: SamplingParams) -> dict[str, float]:
    """The recorder shapes the distribution, so nothing is left to generate's own defaults (its top_k is 50)."""
    return {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampling.temperature > 0 else {}


def _cut(ids: list[int], logprobs: list[float], stopped: int | None, end_ids: Sequence[int]) -> Completion:
    """Drop what follows a row's end; the ending token stays."""
    ends = [position + 1 for position, token in enumerate(ids) if token in end_ids][:1]
    if stopped is not None:
        ends.append(stopped)
    reason: FinishReason = "stop" if ends else "length"
    length = min(ends, default=len(ids))
    return Completion(tuple(ids[:length]), tuple(logprobs[:length]), reason)


@torch.no_grad()
def score(
    model: Any, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], temperature: float
) -> list[list[float]]:
    """Teacher-forced log-probability (nats) of each completion token. No completion may be empty."""
    ids, mask = pad_left([[*prompt, *completion] for prompt, completion in sequences], 0, model.device)
    longest = max(len(completion) for _, completion in sequences)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=_positions(mask),
        logits_to_keep=longest + 1,
        use_cache=False,
    ).logits[:, :-1]
    logprobs = (logits.float() / temperature).log_softmax(-1)
    taken = logprobs.gather(2, ids[:, -longest:, None])[..., 0]
    return [taken[row, longest - len(completion) :].tolist() for row, (_, completion) in enumerate(sequences)]
