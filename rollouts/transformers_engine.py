"""Rollouts with Hugging Face `generate`: needs nothing else installed, and is bit-reproducible on a CPU."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rollouts import decoding
from rollouts.adapter import LoraAdapter, check_fit, linear_shapes, merge, pair_up, read_adapter
from rollouts.base import Lifeline, assemble
from rollouts.config import TransformersEngineConfig
from rollouts.prompts import encode_prompts, end_token_ids
from rollouts.types import EngineError, Prompt, Rollout, SamplingParams

# Bounds the float32 logits of one teacher-forcing pass to 256 MiB.
_SCORE_LOGITS = 2**26


class TransformersEngine:
    """Implements `rollouts.Engine` on its own copy of the base model.

    Args:
        model: folder or hub id of the base model, or the model itself, which is copied.
        tokenizer: of the model; None loads it from the same folder.
        device: of the copy.
        dtype: of the copy's weights and activations.

    Raises:
        EngineError: the model cannot be loaded, or its context is shorter than `config.max_model_len`.
    """

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        config: TransformersEngineConfig,
        tokenizer: Any = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._config = config
        self._device = torch.device(device)
        self._dtype = str(dtype).removeprefix("torch.")
        with decoding.own_randomness(self._device):
            loaded = _load(model, dtype)
        self._model: Any = loaded.to(self._device, dtype).eval().requires_grad_(False)
        if tokenizer is None:
            source = loaded.config._name_or_path if isinstance(model, torch.nn.Module) else str(model)
            tokenizer = AutoTokenizer.from_pretrained(source)
        self._tokenizer = tokenizer
        self._end_ids = end_token_ids(tokenizer, self._model.generation_config)
        # `generate` fills whatever a call leaves open from here: a model's own repetition penalty, say.
        self._model.generation_config = GenerationConfig()
        self._max_model_len = _context(self._model.config, config.max_model_len)
        self._linear_shapes = linear_shapes(self._model)
        self._lifeline = Lifeline("transformers")
        self._version = 0
        self._fingerprint: str | None = None
        self._base_weights: dict[str, torch.Tensor] = {}

    @property
    def sync_mode(self) -> str:
        return "adapter" if self._config.sync == "auto" else self._config.sync

    @property
    def version(self) -> int:
        """Version of the adapter that was loaded last; 0 is the untouched model."""
        return self._version

    @property
    def fingerprint(self) -> str | None:
        """sha256 of the adapter tensors in the model (`LoraAdapter.fingerprint`); None before the first sync."""
        return self._fingerprint

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self._max_model_len

    @property
    def dtype(self) -> str:
        """Of weights and activations: "float32", "bfloat16" or "float16"."""
        return self._dtype

    @property
    def description(self) -> str:
        return f"transformers, sync {self.sync_mode}, {self._device}, {self.dtype}"

    @property
    def constrains_output(self) -> bool:
        """False: a JSON schema is ignored."""
        return False

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams, *, seed: int) -> list[list[Rollout]]:
        """See `rollouts.Engine`. The caller's random state is left as it was.

        Raises:
            EngineError: a prompt does not fit, or the engine is dead.
        """
        with self._lifeline("generating"):
            encoded = encode_prompts(self._tokenizer, prompts, sampling, self._max_model_len)
            groups = decoding.sample_groups(
                self._model,
                self._tokenizer,
                encoded,
                sampling,
                self._end_ids,
                seed=seed,
                max_batch=self._config.max_batch,
            )
            return assemble(
                self._tokenizer, prompts, encoded, groups, sampling=sampling, version=self._version, seed=seed
            )

    def score_tokens(
        self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], *, temperature: float = 1.0
    ) -> list[list[float]]:
        """See `rollouts.Engine`.

        Raises:
            EngineError: the engine is dead.
        """
        with self._lifeline("scoring tokens"):
            result: list[list[float]] = [[] for _ in sequences]
            pending = [index for index, (_, completion) in enumerate(sequences) if completion]
            pending.sort(key=lambda index: sum(map(len, sequences[index])))
            longest = max((len(sequences[index][1]) for index in pending), default=0) + 1
            rows = max(1, min(self._config.max_batch, _SCORE_LOGITS // (longest * self._model.config.vocab_size)))
            for start in range(0, len(pending), rows):
                chunk = pending[start : start + rows]
                scores = decoding.score(self._model, [sequences[index] for index in chunk], temperature)
                for index, logprobs in zip(chunk, scores, strict=True):
                    result[index] = logprobs
            return result

    def sync(self, adapter_dir: Path, version: int) -> None:
        """See `rollouts.Engine`.

        Raises:
            EngineError: the adapter cannot be read, is no plain LoRA, or does not fit the model; the engine then keeps
                serving what it served.
        """
        with self._lifeline("loading an adapter"):
            adapter = read_adapter(adapter_dir)
            check_fit(adapter, self._linear_shapes, adapter_dir)
            if self.sync_mode == "merge":
                self._merge(adapter)
                self._fingerprint = adapter.fingerprint
            else:
                self._fingerprint = self._attach(adapter_dir, adapter, version)
            self._version = version

    def close(self) -> None:
        """Free the model. Later calls raise EngineError."""
        if self._lifeline.close():
            self._model = None
            self._base_weights.clear()

    @torch.no_grad()
    def _merge(self, adapter: LoraAdapter) -> None:
        """Write W + s·B·A, always from the kept copy of W: taking the last adapter off again would add up rounding."""
        for name in self._base_weights.keys() - adapter.pairs.keys():
            self._model.get_submodule(name).weight.copy_(self._base_weights[name])
        for name, pair in adapter.pairs.items():
            weight = self._model.get_submodule(name).weight
            base = self._base_weights.setdefault(name, weight.detach().clone())
            weight.copy_(merge(base, pair, adapter.scaling))

    def _attach(self, adapter_dir: Path, adapter: LoraAdapter, version: int) -> str:
        """Load the adapter beside the base weights with PEFT; returns the fingerprint of what the model now holds."""
        from peft import PeftModel, get_peft_model_state_dict

        name = f"v{version}"
        with decoding.own_randomness(self._device):  # PEFT draws initial values before it loads the saved ones
            if not hasattr(self._model, "peft_config"):
                self._model = PeftModel.from_pretrained(self._model, str(adapter_dir), adapter_name=name)
            else:
                last = self._model.active_adapter
                name = f"{name}_again" if name == last else name  # PEFT takes no dots
                self._model.load_adapter(str(adapter_dir), adapter_name=name)
                self._model.set_adapter(name)
                self._model.delete_adapter(last)
        self._model.requires_grad_(False).eval()
        tensors = get_peft_model_state_dict(self._model, adapter_name=name)
        return LoraAdapter(pair_up(tensors, adapter_dir), adapter.scaling).fingerprint


def _load(model: str | Path | torch.nn.Module, dtype: torch.dtype) -> Any:
    if isinstance(model, torch.nn.Module):
        if hasattr(model, "peft_config"):
            raise EngineError("the engine needs the base model, not one that PEFT has wrapped; pass its folder instead")
        return copy.deepcopy(model)
    try:
        return AutoModelForCausalLM.from_pretrained(str(model), dtype=dtype)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"cannot load the model {model}: {error}; give a folder or hub id of a causal language model"
        ) from error


def _context(model_config: Any, wanted: int | None) -> int:
    """Longest sequence in tokens: what the config asks for, within what the model was built for."""
    limit = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if wanted is not None and limit is not None and wanted > limit:
        raise EngineError(
            f"engine.max_model_len is {wanted}, but the model was built for {limit} tokens; lower it to at most {limit}"
        )
    length = limit if wanted is None else wanted
    if length is None:
        raise EngineError("the model does not say how long its context is; set engine.max_model_len")
    return int(length)
