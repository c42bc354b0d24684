"""Embeds short texts with the base model, so that answers in free text can be compared by what they mean.

A text is asked to be put in one word (PromptEOL, arXiv 2307.16645); the last hidden state of that question's last token
is standardised, dimension by dimension, by those of some texts about other things. Measured on SmolLM2-135M, on 24
questions with 3 answers in 3 wordings each (864 pairs, half of them unseen while this was chosen): AUROC of the cosine
0.88 (0.85 on the unseen half; 0.81 without standardising; 0.53 for the mean over the text's own tokens, which is no
better than a guess), and at `EquivalenceConfig`'s own max_distance 71% of the pairs that are merged mean the same, and
61% of those that do are merged.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward.equivalence import Embed
from rlsf import forward
from rlsf.config.schema import ModelConfig
from rlsf.models import load_base_model, load_tokenizer, resolve_model

if TYPE_CHECKING:
    from rlsf.policy import Policy

BEFORE, AFTER = 'The answer "', '" means in one word: "'
BATCH_TOKENS = 8192
"""Tokens per forward pass."""
OTHERS = (
    "the meeting was moved to friday.",
    "water boils at one hundred degrees.",
    "she opened the window.",
    "yes, of course.",
    "forty-two",
    "the train leaves from platform nine.",
    "i would rather stay at home.",
    "they won the game by two goals.",
    "a small bird sat on the fence.",
    "the price went up again.",
    "no",
    "please close the door.",
    "he studied law for five years.",
    "the soup needs more salt.",
    "mount everest",
    "it was raining all day.",
    "the company hired three engineers.",
    "turn left at the next corner.",
    "gold",
    "the results are not significant.",
    "we grow tomatoes in the garden.",
    "my phone is out of battery.",
    "because the bridge was closed.",
    "beethoven",
    "the cat is under the table.",
    "you can pay by card.",
    "there are seven days in a week.",
    "the engine makes a strange noise.",
    "in the morning",
    "nobody answered the question.",
    "the museum is free on sundays.",
    "take two of these every day.",
)
"""In lower case, as answers in free text are spelled when they are compared."""


class Embedder:
    """(N, H) float32 vectors for N texts, H being the model's hidden size: close directions for close meanings.

    A text that does not fit the model's context is cut at its end.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """`model`: in evaluation mode."""
        self._model = model
        self._tokenizer = tokenizer
        self._before = tokenizer(BEFORE)["input_ids"]
        self._after = tokenizer(AFTER, add_special_tokens=False)["input_ids"]
        self._typical: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        if self._typical is None:
            others = self._states(OTHERS)
            self._typical = others.mean(axis=0), np.maximum(others.std(axis=0), 1e-6)
        mean, deviation = self._typical
        return (self._states(texts) - mean) / deviation

    @torch.no_grad()
    def _states(self, texts: Sequence[str]) -> np.ndarray:
        """(N, H) last hidden states, each that of a question's last token."""
        config = self._model.config.get_text_config()
        states = np.zeros((len(texts), config.hidden_size), dtype=np.float32)
        # A token behind the question stands for the word: it is predicted from the state that is looked for.
        sequences = [(self._question(text), (self._tokenizer.pad_token_id,)) for text in texts]
        for indices in forward.micro_batches(sequences, BATCH_TOKENS):
            batch = forward.collate(
                [sequences[index] for index in indices], self._tokenizer.pad_token_id, self._model.device
            )
            states[indices] = forward.completion_hidden_states(self._model, batch)[:, 0].float().cpu().numpy()
        return states

    def _question(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None:
            ids = ids[: max(limit - len(self._before) - len(self._after) - 1, 0)]
        return [*self._before, *ids, *self._after]


def policy_embedder(policy: "Policy") -> Embed:
    """An embedder over the policy's base model, its adapters switched off: what counts as equal must not drift with
    training."""
    embedder = Embedder(policy.causal_lm, policy.tokenizer)

    def embed(texts: Sequence[str]) -> np.ndarray:
        with policy.model.disable_adapter():
            return embedder(texts)

    return embed


def model_embedder(config: ModelConfig) -> Embed:
    """The same without a policy: the base model is loaded when there is something to embed.

    The embedder raises ModelError where the model cannot be loaded.
    """

    @cache
    def load() -> Embedder:
        path = resolve_model(config.source)
        return Embedder(load_base_model(path, config.dtype, config.device), load_tokenizer(path, config.chat_template))

    def embed(texts: Sequence[str]) -> np.ndarray:
        return load()(texts)

    return embed
