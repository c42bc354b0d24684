"""Which tokens of a completion carry its answer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reward.answers import answer_span
from reward.config import AnswerConfig
from rollouts.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answer_tokens(
    tokenizer: "PreTrainedTokenizerBase", rollout: Rollout, config: AnswerConfig
) -> tuple[int, int] | None:
    """First and one past the last completion token that holds a character of the answer; None without an answer."""
    span = answer_span(rollout, config)
    if span is None:
        return None
    ends = token_ends(tokenizer, rollout.completion_ids)
    starts = [0, *ends[:-1]]
    inside = [t for t, (start, end) in enumerate(zip(starts, ends, strict=True)) if start < span[1] and end > span[0]]
    return (inside[0], inside[-1] + 1) if inside else None


def token_ends(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[int]:
    """How many characters of the decoded text stand before the end of each token: token t covers
    text[ends[t − 1]:ends[t]]. Special tokens cover nothing; of the tokens that share a character, the last has it.

    Tokens are decoded behind their neighbours, since what a token says can depend on the one before it, and a
    character may take several.
    """
    ends: list[int] = []
    prefix = read = length = 0
    for end in range(1, len(ids) + 1):
        before = _decode(tokenizer, ids[prefix:read])
        text = _decode(tokenizer, ids[prefix:end])
        if len(text) > len(before) and not text.endswith("\ufffd"):
            length += len(text) - len(before)
            prefix, read = read, end
        ends.append(length)
    return ends


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))
