"""From prompts to token ids. Every engine goes through here, so that all of them see the same tokens."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rollouts.types import EngineError, Prompt, PromptTooLongError, SamplingParams


def encode_prompt(tokenizer: Any, prompt: Prompt) -> tuple[int, ...]:
    """Token ids of a prompt, ready to be continued.

    Chat messages go through the tokenizer's chat template with the generation prompt added. A plain string is tokenised
    as it stands, with the special tokens (BOS) that the tokenizer itself puts in front.

    Raises:
        EngineError: chat messages without a chat template, a template that refuses them, or nothing to continue.
    """
    ids = (
        _encode_text(tokenizer, prompt.content) if isinstance(prompt.content, str) else _encode_chat(tokenizer, prompt)
    )
    if not ids:
        raise EngineError(f"prompt {prompt.id!r} has no tokens; remove it or give it some text")
    return ids


def _encode_text(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text)["input_ids"])


def _encode_chat(tokenizer: Any, prompt: Prompt) -> tuple[int, ...]:
    if not getattr(tokenizer, "chat_template", None):
        raise EngineError(
            f"prompt {prompt.id!r} holds chat messages, but the tokenizer has no chat template; "
            "give the model one, or write the prompt as plain text"
        )
    try:
        ids = tokenizer.apply_chat_template(
            list(prompt.content), add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:  # templates are programs: jinja2 and Python errors alike
        raise EngineError(f"the chat template refuses prompt {prompt.id!r}: {error}") from error
    return tuple(ids)


def encode_prompts(
    tokenizer: Any, prompts: Sequence[Prompt], sampling: SamplingParams, max_model_len: int
) -> list[tuple[int, ...]]:
    """Token ids of every prompt, each of which leaves room for a completion.

    Raises:
        EngineError: as `encode_prompt` and `check_lengths`.
    """
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    check_lengths(prompts, encoded, sampling.max_tokens, max_model_len)
    return encoded


def check_lengths(
    prompts: Sequence[Prompt], encoded: Sequence[Sequence[int]], max_tokens: int, max_model_len: int
) -> None:
    """Refuse prompts that could not be completed within the context; nothing is ever cut off in silence.

    Raises:
        PromptTooLongError: names the first such prompt, the lengths, and what to change.
    """
    too_long = [
        (prompt.id, len(ids))
        for prompt, ids in zip(prompts, encoded, strict=True)
        if len(ids) + max_tokens > max_model_len
    ]
    if not too_long:
        return
    prompt_id, length = too_long[0]
    others = f" (and {len(too_long) - 1} more prompts)" if len(too_long) > 1 else ""
    raise PromptTooLongError(
        f"prompt {prompt_id!r} is too long{others}: {length} prompt tokens + max_tokens {max_tokens} = "
        f"{length + max_tokens} exceed the context of {max_model_len} tokens; shorten or drop the prompt, lower "
        "sampling.max_tokens, or raise engine.max_model_len if the model allows it",
        [prompt_id for prompt_id, _ in too_long],
    )


def end_token_ids(tokenizer: Any, generation_config: Any | None) -> tuple[int, ...]:
    """Ids that end a completion: the tokenizer's end-of-sequence token and those of the model's generation config."""
    ids = {tokenizer.eos_token_id}
    of_model = getattr(generation_config, "eos_token_id", None)
    ids.update(of_model if isinstance(of_model, list | tuple) else [of_model])
    return tuple(sorted(token for token in ids if token is not None))


def group_ids(prompts: Sequence[Prompt], sampling: SamplingParams, version: int, seed: int) -> list[str]:
    """One id per prompt: the same call gives the same ids, any other call (or place in the call) gives others."""
    seen: dict[str, int] = {}
    ids = []
    for prompt in prompts:
        occurrence = seen[prompt.id] = seen.get(prompt.id, -1) + 1
        key: Mapping[str, Any] = {
            "prompt": prompt.id,
            "occurrence": occurrence,
            "version": version,
            "seed": seed,
            "sampling": dataclasses.asdict(sampling),
        }
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=6).hexdigest()
        ids.append(f"{prompt.id}/v{version}/{digest}")
    return ids
