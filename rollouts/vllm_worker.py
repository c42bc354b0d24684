"""What runs inside vLLM's worker: mixed into it through `worker_extension_cls`, called through `collective_rpc`.

Depends on vLLM 0.32's V1 model runner: `model_runner.reload_weights`, `model_runner.sampler.compute_logprobs`, the
loader's `get_all_weights`, and `add_lora` / `remove_lora` of the worker.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from rollouts.adapter import LoraAdapter, merge, read_adapter
from rollouts.types import EngineError


@dataclass(frozen=True, slots=True)
class Served:
    """What a worker serves."""

    version: int
    fingerprint: str | None
    """sha256 of the adapter tensors it loaded (`LoraAdapter.fingerprint`); None for the untouched model."""


class RolloutsWorker:
    """Methods start with `rollouts_` because vLLM refuses names that its own worker has."""

    rollouts_now = Served(0, None)
    # Given by vLLM's worker.
    model_runner: Any
    vllm_config: Any

    def rollouts_served(self) -> Served:
        """What this worker serves now."""
        return self.rollouts_now

    def rollouts_seed(self, seed: int) -> None:
        """Seed sampling. A seed per request crashes the CPU sampler of vLLM 0.32."""
        torch.manual_seed(seed)

    def rollouts_prompt_temperature(self, temperature: float) -> None:
        """Divide the logits behind prompt log-probabilities; vLLM's own temperature is for sampled tokens only."""
        sampler = self.model_runner.sampler
        if temperature == 1.0:
            vars(sampler).pop("compute_logprobs", None)
        else:
            plain = type(sampler).compute_logprobs
            sampler.compute_logprobs = lambda logits: plain(logits / temperature)

    def rollouts_merge(self, adapter_dir: str, version: int) -> Served:
        """Reload every weight from the checkpoint, with W + s·B·A in place of the targeted ones.

        The checkpoint on disk is the kept base copy: merged weights never become the base of the next merge, and no
        second copy of the model stays in memory. vLLM's own loading path is used because the CPU backend repacks
        weights for its kernels, so that writing into the parameters does nothing.

        Raises:
            EngineError: the adapter cannot be read; the worker then still serves what it served.
        """
        adapter = read_adapter(adapter_dir)
        self.model_runner.reload_weights(weights_iterator=self._rollouts_merged(adapter))
        self.rollouts_now = Served(version, adapter.fingerprint)
        return self.rollouts_now

    def rollouts_load(self, request: Any, last_id: int | None, version: int) -> Served:
        """Load the adapter of a LoRARequest beside the base weights and drop the one before.

        Raises:
            EngineError: the adapter cannot be read, or its file changed while vLLM read it.
        """
        adapter = read_adapter(request.lora_path)
        if not self.add_lora(request):  # type: ignore[attr-defined]
            raise EngineError(f"vLLM did not load the adapter in {request.lora_path}")
        fingerprint = adapter.fingerprint
        if read_adapter(request.lora_path).fingerprint != fingerprint:
            self.remove_lora(request.lora_int_id)  # type: ignore[attr-defined]
            raise EngineError(
                f"the adapter in {request.lora_path} changed while it was being loaded; write it once, then sync"
            )
        if last_id is not None:
            self.remove_lora(last_id)  # type: ignore[attr-defined]
        self.rollouts_now = Served(version, fingerprint)
        return self.rollouts_now

    def _rollouts_checkpoint(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors of the base model as the checkpoint holds them."""
        from vllm.model_executor.model_loader import get_model_loader

        config = self.vllm_config
        loader = get_model_loader(config.load_config)
        yield from loader.get_all_weights(config.model_config, self.model_runner.get_model())

    def _rollouts_merged(self, adapter: LoraAdapter) -> Iterator[tuple[str, torch.Tensor]]:
        pending = set(adapter.pairs)
        for name, tensor in self._rollouts_checkpoint():
            module = name.removesuffix(".weight")
            if module in pending:
                pending.remove(module)
                tensor = merge(tensor, adapter.pairs[module], adapter.scaling)
            yield name, tensor
        if pending:
            raise RuntimeError(f"the checkpoint holds no weight of {min(pending)}, which the adapter targets")
