"""The model that is trained: a frozen base with a LoRA adapter, and the adapters that are compared with it."""

import hashlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward.types import TokenStats, Which
from rlsf import forward
from rlsf.config.schema import LoraConfig, ModelConfig
from rlsf.errors import ModelError
from rlsf.files import fsync
from rlsf.forward import Statistic, TokenPair
from rlsf.models import load_base_model, load_tokenizer
from rollouts.prompts import encode_prompt
from rollouts.types import Prompt, Rollout

POLICY = "default"
"""The adapter being trained. TRL looks for this name."""
REFERENCE = "reference"
"""The policy as it was when the loop began, frozen: what KL penalties and DPO compare with."""

LAST = "last"
"""The policy as it was when the last task ended, frozen: what distillation compares with."""
FROZEN = (REFERENCE, LAST)
BASE = "base"
"""No adapter at all: the untouched model."""

_WEIGHTS = "adapter_model.safetensors"


class Policy:
    """One base model in memory, several LoRA adapters on it; `default` is the policy.

    Attributes:
        model: the PeftModel, in evaluation mode except while an algorithm updates it.
        tokenizer: has a padding token, even where the model's own files name none.
    """

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.micro_batch_tokens = 8192
        """Tokens per forward pass without gradient: bounds memory."""

    @classmethod
    def create(cls, model_path: str | Path, config: ModelConfig, *, seed: int) -> "Policy":
        """Load the base model and put a fresh adapter on it. A fresh adapter changes nothing: its B matrices are zero.

        Args:
            model_path: local folder in transformers' format.
            seed: of the adapter's A matrices.

        Raises:
            ModelError: the folder cannot be read, the adapter does not fit the model, or the model's head does
                something that the training pass does not know.
        """
        base = load_base_model(Path(model_path), config.dtype, config.device)
        tokenizer = load_tokenizer(Path(model_path), config.chat_template)
        if not forward.check_head(base):
            raise ModelError(
                f"{model_path}: {type(base).__name__} changes the logits after its head in a way that rlsf does not "
                "know, so log-probabilities would be wrong. Add the scaling to rlsf.forward.logits"
            )
        return cls(_with_adapter(base, config.lora, seed), tokenizer)

    # -- the model -----------------------------------------------------------------------------------------------------

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The language model itself, with the active adapter's layers inside."""
        return self.model.get_base_model()

    @property
    def device(self) -> torch.device:
        return self.causal_lm.device

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def has_reference(self) -> bool:
        return REFERENCE in self.model.peft_config

    def parameters(self, adapter: str = POLICY) -> list[nn.Parameter]:
        """The weights of one adapter, in a fixed order."""
        return [parameter for name, parameter in self.model.named_parameters() if _adapter_of(name) == adapter]

    def parameter_names(self, adapter: str = POLICY) -> list[str]:
        """Of the same weights in the same order: path of the module and kind, such as
        `model.layers.0.self_attn.q_proj.lora_A`, the same for every adapter."""
        ending = f".{adapter}.weight"
        return [
            name.removeprefix("base_model.").removeprefix("model.").removesuffix(ending)
            for name, _ in self.model.named_parameters()
            if _adapter_of(name) == adapter
        ]

    @contextmanager
    def using(self, adapter: str) -> Iterator[None]:
        """Run forward passes through `adapter` within the block. No other takes gradients; frozen ones never do."""
        if adapter == BASE:
            with self.model.disable_adapter():
                yield
            return
        previous = self.model.active_adapter
        self._activate(adapter)
        try:
            yield
        finally:
            self._activate(previous)

    def _activate(self, adapter: str) -> None:
        if adapter not in self.model.peft_config:
            hint = ": call freeze_reference() first" if adapter == REFERENCE else ""
            raise ModelError(f"the policy has no adapter {adapter!r}{hint}")
        self.model.set_adapter(adapter, inference_mode=adapter in FROZEN)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Dropout on within the block."""
        self.model.train()
        try:
            yield
        finally:
            self.model.eval()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout off within the block, be it inside `training` or not."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in backward passes: less memory, a third more time, and no shared prompts."""
        self.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})

    # -- what it thinks of tokens --------------------------------------------------------------------------------------

    def logprobs(
        self, rollouts: Sequence[Rollout], *, adapter: str = POLICY, temperature: float | None = None
    ) -> list[list[float]]:
        """Log-probability (nats) of each completion token of each rollout, without gradient.

        Args:
            temperature: divides the logits; None takes the one the rollouts were sampled at (1 for greedy ones).
        """
        temperature = sampling_temperature(rollouts) if temperature is None else temperature
        return self.score_tokens(_sequences(rollouts), adapter=adapter, temperature=temperature)

    def score_tokens(
        self, sequences: Sequence[TokenPair], *, adapter: str = POLICY, temperature: float = 1.0
    ) -> list[list[float]]:
        """Log-probability (nats) of each completion token given (prompt ids, completion ids); an engine must agree."""
        return [row["logprob"].tolist() for row in self._statistics(sequences, adapter, temperature, ())]

    def token_stats(
        self, rollouts: Sequence[Rollout], *, adapter: str = POLICY, temperature: float | None = None
    ) -> list[TokenStats]:
        """The distribution at every completion token, without gradient; `temperature` as in `logprobs`."""
        temperature = sampling_temperature(rollouts) if temperature is None else temperature
        rows = self._statistics(_sequences(rollouts), adapter, temperature, ("entropy", "self_certainty", "top_gap"))
        return [TokenStats(**row) for row in rows]

    def likelihood(
        self, questions: Sequence[Prompt], continuations: Sequence[str], which: Which = "policy"
    ) -> np.ndarray:
        """Log-probability (nats, temperature 1) of each continuation of each question: (questions, continuations).

        NaN for a question that does not fit the model's context. Until the reference is frozen, the policy stands
        for it.

        Raises:
            ModelError: a continuation has no tokens.
        """
        endings = [tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in continuations]
        if not all(endings):
            raise ModelError(f"a continuation has no tokens: {list(continuations)}")
        limit = getattr(self.causal_lm.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
        encoded = [encode_prompt(self.tokenizer, question) for question in questions]
        fitting = [index for index, ids in enumerate(encoded) if len(ids) + max(map(len, endings)) <= limit]
        adapter = REFERENCE if which == "reference" and self.has_reference else POLICY
        rows = self.score_tokens([(encoded[index], end) for index in fitting for end in endings], adapter=adapter)
        table = np.full((len(questions), len(endings)), np.nan)
        table[fitting] = np.array([sum(row) for row in rows]).reshape(len(fitting), len(endings))
        return table

    @torch.no_grad()
    def _statistics(
        self, sequences: Sequence[TokenPair], adapter: str, temperature: float, statistics: Sequence[Statistic]
    ) -> list[dict[str, np.ndarray]]:
        rows: list[dict[str, np.ndarray]] = []
        temperature = temperature or 1.0  # greedy decoding has no distribution of its own
        with self.using(adapter):
            for indices in forward.micro_batches(sequences, self.micro_batch_tokens):
                part = [sequences[index] for index in indices]
                batch = forward.collate(part, self.pad_id, self.device)
                values = forward.token_statistics(self.causal_lm, batch, temperature=temperature, statistics=statistics)
                arrays = {name: value.cpu().numpy() for name, value in values.items()}
                rows += [
                    {name: array[row, : len(completion)] for name, array in arrays.items()}
                    for row, (_, completion) in enumerate(part)
                ]
        return rows

    # -- adapters ------------------------------------------------------------------------------------------------------

    def freeze_reference(self) -> None:
        """Make the reference a copy of the policy as it is now."""
        self.copy_adapter(POLICY, REFERENCE)

    def copy_adapter(self, source: str, target: str) -> None:
        """Make `target` the same as `source`; it is added where there is none."""
        if target not in self.model.peft_config:
            self.add_adapter(target, seed=0)
        for before, after in zip(self.parameters(source), self.parameters(target), strict=True):
            after.data.copy_(before.data)

    def add_adapter(self, name: str, *, seed: int) -> None:
        """Another adapter of the policy's shape, freshly initialised from `seed`; the policy stays the active one."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model.add_adapter(name, copy(self.model.peft_config[POLICY]))
        self.model.train(self.model.training)  # PEFT leaves the new adapter's dropout on
        self._activate(POLICY)

    def adapter_state(self, adapter: str = POLICY) -> dict[str, Tensor]:
        """The adapter's tensors by their names in PEFT's file format."""
        return get_peft_model_state_dict(self.model, adapter_name=adapter, save_embedding_layers=False)

    def adapter_digest(self, adapter: str = POLICY) -> str:
        """SHA-256 of the adapter's names and bytes: equal exactly when the adapters are."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.adapter_state(adapter).items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save_adapter(self, folder: str | Path, adapter: str = POLICY) -> None:
        """Write adapter_config.json and adapter_model.safetensors, as peft and vLLM read them.

        The folder appears whole or not at all; one that is there already is replaced.
        """
        folder = Path(folder)
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.adapter_state(adapter).items()}
        content = save(tensors, metadata={"format": "pt"})
        (temporary / _WEIGHTS).write_bytes(content)  # save_file would not raise OSError when the disk is full
        config = copy(self.model.peft_config[adapter])
        config.inference_mode = True
        if not isinstance(config.target_modules, str):  # a pattern
            config.target_modules = sorted(config.target_modules)  # a set's order differs from process to process
        config.save_pretrained(temporary)
        for path in (*temporary.iterdir(), temporary):
            fsync(path)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)

    def load_adapter(self, folder: str | Path, adapter: str = POLICY) -> None:
        """Read back what `save_adapter` wrote, bit for bit.

        Raises:
            ModelError: the files are missing, broken, or do not fit this model and its LoRA settings.
        """
        folder = Path(folder)
        try:
            tensors = load_file(folder / _WEIGHTS)
            saved = PeftLoraConfig.from_pretrained(folder)
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(f"{folder}: cannot read the adapter: {error}") from error
        if adapter not in self.model.peft_config:
            self.add_adapter(adapter, seed=0)
        config = self.model.peft_config[adapter]
        if _scale(saved) != _scale(config) or _shapes(tensors) != _shapes(self.adapter_state(adapter)):
            raise ModelError(
                f"{folder}: the adapter ({_scale(saved)}) does not fit this model and its settings ({_scale(config)}): "
                "load it with the model and model.lora it was trained with"
            )
        set_peft_model_state_dict(self.model, tensors, adapter_name=adapter)

    def save(self, folder: str | Path) -> None:
        """The policy and those that it is compared with."""
        folder = Path(folder)
        self.save_adapter(folder / POLICY)
        for name in FROZEN:
            if name in self.model.peft_config:
                self.save_adapter(folder / name, name)

    def load(self, folder: str | Path) -> None:
        """Read back what `save` wrote, bit for bit. Raises ModelError as `load_adapter` does."""
        folder = Path(folder)
        self.load_adapter(folder / POLICY)
        for name in FROZEN:
            if (folder / name).exists():
                self.load_adapter(folder / name, name)


def sampling_temperature(rollouts: Sequence[Rollout]) -> float:
    """The one temperature at which all rollouts were sampled, 1 for greedy ones (and for none).

    Raises:
        ModelError: they differ, so no single distribution describes them.
    """
    temperatures = {rollout.sampling.temperature for rollout in rollouts}
    if len(temperatures) > 1:
        raise ModelError(
            f"rollouts sampled at temperatures {sorted(temperatures)} cannot share a batch: keep sampling.temperature "
            "the same for the whole run"
        )
    return (temperatures.pop() if temperatures else 1.0) or 1.0


def _sequences(rollouts: Sequence[Rollout]) -> list[TokenPair]:
    return [(rollout.prompt_ids, rollout.completion_ids) for rollout in rollouts]


def _with_adapter(base: PreTrainedModel, lora: LoraConfig, seed: int) -> PeftModel:
    targets = lora.target_modules
    if "lm_head" in ([targets] if isinstance(targets, str) else targets):
        raise ModelError("model.lora.target_modules: TRL cannot train an adapter on lm_head; leave it out")
    config = PeftLoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        use_rslora=lora.use_rslora,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = get_peft_model(base, config, adapter_name=POLICY).eval()
        except ValueError as error:
            raise ModelError(f"model.lora.target_modules: {error}") from error
    embeddings = sorted({name.split(".lora_")[0] for name, _ in model.named_parameters() if "lora_embedding" in name})
    if embeddings:
        raise ModelError(
            f"model.lora.target_modules: {embeddings[0].split('.')[-1]} is an embedding, and engines serve adapters on "
            "linear layers alone; leave it out"
        )
    return model


def _adapter_of(parameter: str) -> str | None:
    """The adapter a parameter belongs to: PEFT names them ...lora_A.ADAPTER.weight. None for the base model's."""
    parts = parameter.split(".")
    return next((name for kind, name in pairwise(parts) if kind.startswith("lora_")), None)


def _scale(config: PeftLoraConfig) -> str:
    return f"r={config.r}, alpha={config.lora_alpha:g}" + (", use_rslora" if config.use_rslora else "")


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
