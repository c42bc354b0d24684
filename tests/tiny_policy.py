"""A random two-layer Llama with 32 tokens, a policy on it, and groups sampled from it: no download, no engine."""

import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reward.types import Score
from rlsf.config.schema import LoraConfig, ModelConfig
from rlsf.experience import Experience, Group
from rlsf.policy import Policy
from rollouts.types import Prompt, Rollout, SamplingParams

VOCABULARY = 32
EOS = 1


@cache
def model_folder() -> Path:
    """The model and its tokenizer, which names no padding token."""
    folder = Path(tempfile.mkdtemp(prefix="rlsf_tiny_"))
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,  # distributions far from uniform
        eos_token_id=EOS,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {"<eos>" if index == EOS else f"t{index}": index for index in range(VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(folder)
    return folder


def make_policy(*, seed: int = 0, dtype: str = "float32", **lora: object) -> Policy:
    config = ModelConfig(dtype=dtype, device="cpu", lora=LoraConfig(**{"r": 4, "alpha": 8.0, **lora}))
    return Policy.create(model_folder(), config, seed=seed)


def perturb(policy: Policy, *, seed: int = 1, scale: float = 0.05, adapter: str = "default") -> None:
    """Move the adapter off its initial no-op."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters(adapter):
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def sample(
    policy: Policy, prompts: Sequence[Sequence[int]], sampling: SamplingParams, *, seed: int
) -> list[list[tuple[int, ...]]]:
    """`sampling.n` completions of each prompt."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)] * sampling.n)
        for _ in range(sampling.max_tokens):
            logits = policy.causal_lm(input_ids=ids).logits[:, -1].float() / sampling.temperature
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=generator)], dim=1)
        result.append([_until_eos(row) for row in ids[:, len(prompt) :].tolist()])
    return result


def _until_eos(row: list[int]) -> tuple[int, ...]:
    return tuple(row[: row.index(EOS) + 1]) if EOS in row else tuple(row)


def make_groups(
    policy: Policy,
    reward: Callable[[Rollout], float | None],
    *,
    iteration: int = 1,
    prompts: int = 4,
    n: int = 4,
    max_tokens: int = 6,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Group]:
    """Fresh groups, with the policy's own log-probabilities as behaviour."""
    rng = np.random.default_rng(seed)
    prompt_ids = [tuple(rng.integers(2, VOCABULARY, size=int(rng.integers(2, 7))).tolist()) for _ in range(prompts)]
    sampling = SamplingParams(temperature=temperature, max_tokens=max_tokens, n=n)
    groups = []
    for index, (ids, completions) in enumerate(
        zip(prompt_ids, sample(policy, prompt_ids, sampling, seed=seed), strict=True)
    ):
        name = f"{iteration}-{index}"
        logprobs = policy.score_tokens([(ids, completion) for completion in completions], temperature=temperature)
        rollouts = [
            Rollout(
                id=f"{name}-{row}",
                prompt_id=f"p{index}",
                group_id=name,
                prompt_ids=ids,
                completion_ids=completion,
                text=" ".join(f"t{token}" for token in completion),
                logprobs=tuple(logprobs[row]),
                finish_reason="stop" if completion[-1] == EOS else "length",
                policy_version=iteration - 1,
                sampling=sampling,
            )
            for row, completion in enumerate(completions)
        ]
        experiences = tuple(Experience(rollout, Score(reward(rollout)), "toy", iteration) for rollout in rollouts)
        groups.append(Group(name, Prompt(f"p{index}", "toy", "?"), experiences))
    return groups


def share_of(token: int) -> Callable[[Rollout], float]:
    """A reward: the share of the completion that is `token`."""
    return lambda rollout: rollout.completion_ids.count(token) / len(rollout.completion_ids)
