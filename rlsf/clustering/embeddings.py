"""Vectors of prompts and answers: what they are about, not what they mean (for that see `rlsf.embedding`).

The policy's own are hidden states of its frozen base model, averaged over the tokens: those that enter the layer at
`LAYER` of the depth (the token embeddings of the lab model, what enters the fourth of SmolLM2's 30 layers). Measured on
seven reasoning-gym tasks (in five wordings: five), standardised, in 16 principal components; adjusted Rand index of
k-means with the right k against the true task, and share of the ten nearest neighbours that are of the same one:

                                       mean, this layer   mean, middle   mean, last    last token, middle   last, last
    lab model, lab tasks               0.78, 0.99         0.50, 0.91     0.55, 0.91    0.48, 0.91           0.33, 0.81
    SmolLM2-135M, lab tasks            1.00, 1.00         1.00, 1.00     1.00, 1.00    1.00, 1.00           0.84, 0.88
    SmolLM2-135M, longer tasks         1.00, 1.00         1.00, 1.00     1.00, 1.00    1.00, 1.00           1.00, 1.00
    SmolLM2-135M, in five wordings     1.00, 1.00         1.00, 1.00     1.00, 1.00    0.24, 1.00           1.00, 1.00

Without standardising, the mean over the middle layer falls to 0.31 to 0.99: a few dimensions are hundreds of times as
large as the others. That is why `rlsf.clustering.projection` standardises. `python -m benchmarks.clustering embeddings`
measures it.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rlsf import forward
from rlsf.config.clustering import EmbeddingConfig
from rlsf.errors import ConfigError, ModelError
from rlsf.models.loading import quiet_transformers
from rollouts.prompts import encode_prompt
from rollouts.types import Prompt, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rlsf.policy import Policy

LAYER = 0.1
"""How deep into the model, as a share of its layers."""
BATCH_TOKENS = 8192
"""Tokens per forward pass, padding included."""


class Embeddings(Protocol):
    """(N, H) float32 vectors, one per item, whatever stands beside it; all finite."""

    def prompts(self, prompts: Sequence[Prompt]) -> np.ndarray: ...

    def answers(self, rollouts: Sequence[Rollout]) -> np.ndarray: ...


def policy_embeddings(policy: "Policy") -> Embeddings:
    """Of the policy's base model, its adapters switched off: the space must not move with training."""
    return ModelEmbeddings(policy.causal_lm, policy.tokenizer, policy.model.disable_adapter)


def make_embeddings(config: EmbeddingConfig, policy: Callable[[], Embeddings]) -> Embeddings:
    """What the config names.

    Args:
        policy: makes the policy's embeddings, where those are wanted.

    Raises:
        ConfigError: sentence-transformers is not installed.
        ModelError: its model cannot be loaded.
    """
    if config.by == "policy":
        return policy()
    assert config.model is not None
    return SentenceEmbeddings(config.model)


class ModelEmbeddings:
    """Mean hidden states of a language model over a text's own tokens. Tokens beyond its context are left out."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        frozen: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """
        Args:
            model: in evaluation mode.
            frozen: a context within which `model` is the base model.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._frozen = frozen

    def prompts(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Of the rendered prompts, template included. Raises EngineError as `encode_prompt` does."""
        return self._embed([encode_prompt(self._tokenizer, prompt) for prompt in prompts])

    def answers(self, rollouts: Sequence[Rollout]) -> np.ndarray:
        """Of the completions' tokens by themselves, without the prompt: the same answer to two questions is the same
        point. Zeros for a completion without tokens."""
        return self._embed([rollout.completion_ids for rollout in rollouts])

    def _embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        config = self._model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None)
        sequences = [((), tuple(text)[:context]) for text in texts]
        by_length = sorted(range(len(texts)), key=lambda index: len(sequences[index][1]))
        by_length = [index for index in by_length if sequences[index][1]]
        vectors = np.zeros((len(texts), config.hidden_size), dtype=np.float32)
        with self._frozen():
            for batch in forward.micro_batches([sequences[index] for index in by_length], BATCH_TOKENS):
                chosen = [by_length[position] for position in batch]
                vectors[chosen] = self._means([sequences[index] for index in chosen])
        return vectors

    @torch.no_grad()
    def _means(self, sequences: Sequence[tuple[tuple[()], tuple[int, ...]]]) -> np.ndarray:
        batch = forward.collate(sequences, self._tokenizer.pad_token_id, self._model.device)
        states = entering_states(self._model, batch.completion_ids, batch.completion_mask).float()
        mask = batch.completion_mask[..., None].float()
        return ((states * mask).sum(dim=1) / mask.sum(dim=1)).cpu().numpy()


class _Reached(Exception):  # noqa: N818 - a way out, no error
    """The states are known."""


def entering_states(model: "PreTrainedModel", ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T, H) states that enter the layer at `LAYER` of the depth; the layers from there on are not run.

    Args:
        ids: (B, T) tokens, padded on the right.
        mask: (B, T), 1 at real tokens.

    Raises:
        ModelError: the model has no list of its layers.
    """
    depth = model.config.get_text_config().num_hidden_layers
    stacks = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth)
    layers = next(stacks, None)
    if layers is None:
        raise ModelError(
            f"{type(model).__name__} has no list of {depth} layers, so that its states cannot be read; embed by: "
            "sentence_transformer"
        )
    found: list[Tensor] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    hook = layers[round(LAYER * depth)].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    except _Reached:
        pass
    finally:
        hook.remove()
    return found[0]


class SentenceEmbeddings:
    """Vectors of a model for sentence-transformers: of the words, without the template of the policy's model."""

    def __init__(self, model: str) -> None:
        """
        Args:
            model: local folder or hub id.

        Raises:
            ConfigError: sentence-transformers is not installed.
            ModelError: the model cannot be loaded.
        """
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ConfigError(
                f"by: sentence_transformer needs sentence-transformers, which does not import ({error}): "
                'pip install "rlsf[embeddings]", or take by: policy'
            ) from error
        try:
            with quiet_transformers():
                self._model = SentenceTransformer(model)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ModelError(
                f"model: sentence-transformers cannot load {model}: {error}. Name a local folder, or a hub id that can "
                "be reached"
            ) from error

    def prompts(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Of the last user messages."""
        return self._embed([prompt.text for prompt in prompts])

    def answers(self, rollouts: Sequence[Rollout]) -> np.ndarray:
        return self._embed([rollout.text for rollout in rollouts])

    def _embed(self, texts: list[str]) -> np.ndarray:
        """Zeros where there are no words: some tokenizers make nothing of them."""
        worded = [index for index, text in enumerate(texts) if text.strip()]
        known = self._model.encode([*(texts[index] for index in worded), "."], show_progress_bar=False)
        vectors = np.zeros((len(texts), known.shape[1]), dtype=np.float32)
        vectors[worded] = known[:-1]
        return vectors
