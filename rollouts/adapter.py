"""A PEFT LoRA adapter on disk: reading, fingerprint, and W + s·B·A. Needs torch and safetensors alone."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rollouts.types import EngineError

# Settings of a PEFT LoRA config that change what the adapter computes beyond W + s·B·A.
_UNSUPPORTED = {
    "use_dora": "DoRA rescales each row by a learned magnitude",
    "use_qalora": "QALoRA pools the adapter's input",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "a bias on the adapter",
    "modules_to_save": "whole modules trained beside the adapter",
    "rank_pattern": "ranks that differ between modules",
    "alpha_pattern": "scales that differ between modules",
    "layer_replication": "replicated layers",
    "fan_in_fan_out": "transposed weights",
    "alora_invocation_tokens": "activated LoRA",
    "target_parameters": "adapters on bare parameters",
    "trainable_token_indices": "trained token embeddings",
}
# Initialisations that also change the base weights, so that the saved adapter alone is not the trained model.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class LoraAdapter:
    """Adapter tensors by module name in the base model (`model.layers.0.self_attn.q_proj`)."""

    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    """A of shape (r, in) and B of shape (out, r)."""
    scaling: float
    """alpha / r, or alpha / √r with rank stabilisation (arXiv 2312.03732)."""

    @property
    def rank(self) -> int:
        return next(iter(self.pairs.values()))[0].shape[0]

    @property
    def fingerprint(self) -> str:
        """sha256 over scaling, module names, shapes, types and bytes."""
        digest = hashlib.sha256(f"{self.scaling!r}".encode())
        for name in sorted(self.pairs):
            for tensor in self.pairs[name]:
                digest.update(f"|{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def merge(weight: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor], scaling: float) -> torch.Tensor:
    """W + s·B·A in float32, shape (out, in), on the weight's device (LoRA, arXiv 2106.09685, eq. 3)."""
    a, b = (tensor.to(weight.device, torch.float32) for tensor in pair)
    return torch.addmm(weight.float(), b, a, alpha=scaling)


def linear_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of the weight of every linear layer that an adapter may target, by module name in the base model.

    An output layer that shares its weight with the input embeddings is left out: changing it would change both.
    """
    embeddings = model.get_input_embeddings().weight  # type: ignore[operator]
    return {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module.weight is not embeddings
    }


def check_fit(adapter: LoraAdapter, shapes: Mapping[str, tuple[int, ...]], where: Path | str) -> None:
    """Refuse an adapter that targets modules or shapes that the base model does not have.

    Args:
        shapes: shape of the weight of each module of the base model, by module name.

    Raises:
        EngineError: names the first module that does not fit.
    """
    for name, (a, b) in adapter.pairs.items():
        if name not in shapes:
            raise EngineError(
                f"adapter {where} targets {name}, which is no linear layer of the base model with a weight of its own "
                "that this engine can serve; train the adapter on this base model, without the output layer"
            )
        if (b.shape[0], a.shape[1]) != tuple(shapes[name]):
            raise EngineError(
                f"adapter {where} does not fit {name}: it adds a ({b.shape[0]}, {a.shape[1]}) matrix to a weight of "
                f"shape {tuple(shapes[name])}; train the adapter on this base model"
            )


def read_adapter(adapter_dir: Path | str) -> LoraAdapter:
    """Read what `PeftModel.save_pretrained` wrote.

    Raises:
        EngineError: a file is missing or broken, or the adapter is no plain LoRA.
    """
    import safetensors
    import safetensors.torch

    adapter_dir = Path(adapter_dir)
    try:
        config = json.loads((adapter_dir / "adapter_config.json").read_text())
        tensors = safetensors.torch.load_file(adapter_dir / "adapter_model.safetensors")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise EngineError(
            f"cannot read the adapter in {adapter_dir}: {error}; it needs the adapter_config.json and "
            "adapter_model.safetensors that PeftModel.save_pretrained writes"
        ) from error
    _refuse_unsupported(config, adapter_dir)
    return LoraAdapter(pair_up(tensors, adapter_dir), lora_scaling(config))


def lora_scaling(config: Mapping[str, Any]) -> float:
    """The factor s of W + s·B·A, from the fields of a PEFT LoRA config."""
    rank, alpha = config["r"], config["lora_alpha"]
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _refuse_unsupported(config: Mapping[str, Any], adapter_dir: Path) -> None:
    reason = next((text for key, text in _UNSUPPORTED.items() if config.get(key)), None)
    initialisation = config.get("init_lora_weights")
    if config.get("peft_type") != "LORA":
        reason = f"its type is {config.get('peft_type')}"
    elif config.get("bias", "none") != "none":
        reason = "trained biases of the base model"
    elif isinstance(initialisation, str) and initialisation.lower().startswith(_CHANGES_BASE):
        reason = f"its initialisation {initialisation!r} also changes the base weights"
    if reason is not None:
        raise EngineError(
            f"the adapter in {adapter_dir} is no plain LoRA ({reason}); engines serve W + s·B·A only: train without "
            "that"
        )


def pair_up(tensors: Mapping[str, torch.Tensor], where: Path | str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Group a PEFT state dict into (A, B) per module.

    Raises:
        EngineError: a tensor that belongs to no (A, B) pair of a linear layer, or none at all.
    """
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, half = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        if half not in ("lora_A", "lora_B") or tensor.dim() != 2:
            raise EngineError(f"the adapter {where} holds {key}, which is no LoRA matrix of a linear layer")
        halves.setdefault(module, {})[half] = tensor
    lone = next((module for module, pair in halves.items() if len(pair) != 2), None)
    if lone is not None:
        raise EngineError(f"the adapter {where} lacks one of lora_A and lora_B for {lone}; save it again")
    if not halves:
        raise EngineError(f"the adapter {where} holds no tensors; save it again")
    return {module: (pair["lora_A"], pair["lora_B"]) for module, pair in halves.items()}
