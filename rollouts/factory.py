"""From a config section to an engine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rollouts.config import EngineConfig, TransformersEngineConfig, VllmEngineConfig
from rollouts.types import Engine, EngineError

if TYPE_CHECKING:
    import torch


class EngineChoice(NamedTuple):
    """Which engine a config stands for on this machine, and why."""

    kind: Literal["vllm", "transformers"]
    sync: Literal["merge", "adapter"]
    reason: str


def explain_choice(config: EngineConfig) -> EngineChoice:
    """What `create_engine` would build. Imports vllm, which takes seconds, but starts nothing.

    Raises:
        EngineError: the config asks for vLLM, which cannot be imported or finds no device.
    """
    if isinstance(config, TransformersEngineConfig):
        sync: Literal["merge", "adapter"] = "adapter" if config.sync == "auto" else config.sync
        return EngineChoice("transformers", sync, "asked for in the config")
    from rollouts.vllm_process import import_vllm, on_cpu

    try:
        vllm = import_vllm()
    except EngineError as error:
        if isinstance(config, VllmEngineConfig):
            raise
        return EngineChoice("transformers", "adapter", str(error))
    from rollouts.vllm_engine import sync_mode

    device = "a CPU, where merged weights decode faster than runtime LoRA" if on_cpu() else "a GPU"
    why = f"vLLM {vllm.__version__} imports and runs on {device}"
    return EngineChoice("vllm", sync_mode(_vllm_config(config)), why)


def create_engine(
    config: EngineConfig,
    model_path: str | Path,
    tokenizer: Any = None,
    *,
    lora_rank: int = 16,
    device: "str | torch.device" = "cpu",
    dtype: "torch.dtype | None" = None,
) -> Engine:
    """Start the engine that a config asks for.

    Args:
        tokenizer: with the chat template to use; None loads the model's.
        lora_rank: largest rank that will be synced.
        device: of the transformers engine; vLLM runs where its build runs.
        dtype: of weights and activations; None is float32 on a CPU, bfloat16 on a GPU.

    Raises:
        EngineError: the engine is not installed or cannot start.
    """
    import torch

    if dtype is None:
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    choice = explain_choice(config)
    if choice.kind == "vllm":
        from rollouts.vllm_engine import VllmEngine

        return VllmEngine(model_path, _vllm_config(config), tokenizer, lora_rank=lora_rank, dtype=dtype)
    from rollouts.transformers_engine import TransformersEngine

    return TransformersEngine(model_path, _transformers_config(config), tokenizer, device=device, dtype=dtype)


def _vllm_config(config: EngineConfig) -> VllmEngineConfig:
    if isinstance(config, VllmEngineConfig):
        return config
    return VllmEngineConfig.model_validate({"max_model_len": config.max_model_len})


def _transformers_config(config: EngineConfig) -> TransformersEngineConfig:
    if isinstance(config, TransformersEngineConfig):
        return config
    return TransformersEngineConfig.model_validate({"max_model_len": config.max_model_len})
