"""Rollouts with vLLM 0.32 in this process, on a CPU or a GPU."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rollouts.adapter import check_fit, linear_shapes, read_adapter
from rollouts.base import Completion, Lifeline, assemble
from rollouts.config import VllmEngineConfig
from rollouts.prompts import encode_prompts, end_token_ids
from rollouts.types import EngineError, Prompt, Rollout, SamplingParams
from rollouts.vllm_process import borrowed_process, import_vllm, on_cpu, unchanged_process
from rollouts.vllm_worker import Served

# Ranks that vLLM's LoRA kernels are built for.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# vLLM's default on a CPU is 128, so that most prompts would fill no block and a group would never share its prompt.
_CPU_BLOCK = 32


class VllmEngine:
    """Implements `rollouts.Engine` with vLLM.

    The same seed, prompts and version give the same rollouts on a CPU: the prefix cache is emptied before each call, so
    that nothing depends on the calls before. GPU kernels promise no such thing.

    Args:
        model_path: folder or hub id of the base model, with its tokenizer.
        tokenizer: with the chat template to use; None loads the model's.
        lora_rank: largest rank that will be synced; only `sync: adapter` sets memory aside for it.
        dtype: of weights and activations.

    Raises:
        EngineError: vLLM is not installed, or cannot start on this model.
    """

    def __init__(
        self,
        model_path: str | Path,
        config: VllmEngineConfig,
        tokenizer: Any = None,
        *,
        lora_rank: int = 16,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._vllm = import_vllm(config.cpu_kvcache_gib)
        self._config = config
        self._dtype = dtype
        self._mode = sync_mode(config)
        try:
            self._tokenizer = tokenizer if tokenizer is not None else AutoTokenizer.from_pretrained(str(model_path))
            self._linear_shapes = _served_shapes(str(model_path), self._mode)
        except (OSError, ValueError) as error:
            raise EngineError(
                f"cannot load the model {model_path}: {error}; give a folder or hub id of a causal language model"
            ) from error
        self._end_ids = end_token_ids(self._tokenizer, _generation_config(model_path))
        self._lifeline = Lifeline("vLLM")
        self._lora_request: Any = None
        self._lora_count = 0
        self._owns_distributed = not torch.distributed.is_initialized()
        self._llm: Any = self._start(str(model_path), lora_rank)
        # One token of the context is kept free: scoring a full sequence still samples one token.
        self._max_model_len: int = self._llm.model_config.max_model_len - 1

    def _start(self, model_path: str, lora_rank: int) -> Any:
        config = self._config
        options: dict[str, Any] = {}
        if on_cpu():
            options["block_size"] = _CPU_BLOCK
        else:
            options["gpu_memory_utilization"] = config.gpu_memory_utilization
        if self._mode == "adapter":
            options |= {
                "enable_lora": True,
                "max_loras": 1,
                "max_cpu_loras": 2,
                "max_lora_rank": _served_rank(lora_rank),
                "lora_target_modules": sorted({name.rpartition(".")[2] for name in self._linear_shapes}),
            }
        try:
            with unchanged_process(), borrowed_process(config.threads):
                return self._vllm.LLM(
                    model=model_path,
                    dtype=str(self._dtype).removeprefix("torch."),
                    max_model_len=_engine_context(model_path, config.max_model_len),
                    max_num_seqs=config.max_num_seqs,
                    enforce_eager=config.enforce_eager,
                    distributed_executor_backend="uni",
                    worker_extension_cls="rollouts.vllm_worker.RolloutsWorker",
                    logprobs_mode="processed_logprobs",
                    generation_config="vllm",  # no sampling defaults from the model
                    enable_prefix_caching=True,
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                    # JSON without white space: small models fill a reply with it
                    structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
                    seed=0,
                    **options,
                )
        except Exception as error:
            raise EngineError(
                f"vLLM cannot start on {model_path} ({type(error).__name__}: {error}); lower engine.max_model_len, "
                "engine.max_num_seqs or the cache size if memory is short, or set engine.kind to transformers"
            ) from error

    @property
    def sync_mode(self) -> str:
        return self._mode

    @property
    def version(self) -> int:
        """The adapter version that vLLM's worker says it serves."""
        return self._served().version

    @property
    def fingerprint(self) -> str | None:
        """sha256 of the adapter tensors that vLLM's worker loaded (`LoraAdapter.fingerprint`); None at version 0."""
        return self._served().fingerprint

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self._max_model_len

    @property
    def dtype(self) -> str:
        """Of weights and activations: "float32", "bfloat16" or "float16"."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def description(self) -> str:
        device = "cpu" if on_cpu() else torch.cuda.get_device_name()
        return f"vllm {self._vllm.__version__}, sync {self._mode}, {device}, {self.dtype}"

    @property
    def constrains_output(self) -> bool:
        return True

    def _served(self) -> Served:
        with self._lifeline("asking for its version"):
            answers = set(self._llm.collective_rpc("rollouts_served"))
            if len(answers) != 1:
                raise EngineError(
                    f"vLLM's workers serve different adapters: {sorted(answers, key=str)}; restart the engine"
                )
            return answers.pop()

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams, *, seed: int) -> list[list[Rollout]]:
        """See `rollouts.Engine`. The caller's random state is left as it was.

        Raises:
            EngineError: a prompt does not fit, vLLM refuses the sampling parameters, or the engine is dead.
        """
        version = self.version
        with self._lifeline("generating"), borrowed_process(self._config.threads):
            encoded = encode_prompts(self._tokenizer, prompts, sampling, self._max_model_len)
            self._reset_prefix_cache()
            self._llm.collective_rpc("rollouts_seed", args=(seed,))
            outputs = self._request(encoded, self._sampling_params(sampling))
            groups = [[_completion(output) for output in request.outputs] for request in outputs]
            if sampling.temperature == 0:
                groups = [group * sampling.n for group in groups]
            return assemble(self._tokenizer, prompts, encoded, groups, sampling=sampling, version=version, seed=seed)

    def score_tokens(
        self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], *, temperature: float = 1.0
    ) -> list[list[float]]:
        """See `rollouts.Engine`. Prompt log-probabilities never come from the prefix cache: vLLM computes them anew.

        Raises:
            EngineError: a sequence does not fit, or the engine is dead.
        """
        with self._lifeline("scoring tokens"), borrowed_process(self._config.threads):
            whole = [(*prompt, *completion) for prompt, completion in sequences]
            longest = max(map(len, whole), default=0)
            if longest > self._max_model_len:
                raise EngineError(
                    f"a sequence to score has {longest} tokens, more than the context of {self._max_model_len}; raise "
                    "engine.max_model_len"
                )
            self._llm.collective_rpc("rollouts_prompt_temperature", args=(temperature,))
            try:
                outputs = self._request(
                    whole, self._vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
                )
            finally:
                self._llm.collective_rpc("rollouts_prompt_temperature", args=(1.0,))
            return [
                [output.prompt_logprobs[at][ids[at]].logprob for at in range(len(prompt), len(ids))]
                for output, ids, (prompt, _) in zip(outputs, whole, sequences, strict=True)
            ]

    def sync(self, adapter_dir: Path, version: int) -> None:
        """See `rollouts.Engine`.

        Raises:
            EngineError: the adapter cannot be read, is no plain LoRA, or does not fit the model; the engine then keeps
                serving what it served.
        """
        with self._lifeline("loading an adapter"), borrowed_process(self._config.threads):
            check_fit(read_adapter(adapter_dir), self._linear_shapes, adapter_dir)
            if self._mode == "merge":
                self._llm.collective_rpc("rollouts_merge", args=(str(adapter_dir), version))
            else:
                self._load(adapter_dir, version)
            self._reset_prefix_cache()

    def _load(self, adapter_dir: Path, version: int) -> None:
        """A new name and id each time: vLLM keeps adapters by id and its prefix cache by name."""
        from vllm.lora.request import LoRARequest

        self._lora_count += 1
        request = LoRARequest(f"v{version}-{self._lora_count}", self._lora_count, str(adapter_dir))
        last_id = self._lora_request.lora_int_id if self._lora_request is not None else None
        self._llm.collective_rpc("rollouts_load", args=(request, last_id, version))
        self._lora_request = request

    def close(self) -> None:
        """Free vLLM's memory. Later calls raise EngineError."""
        if not self._lifeline.close():
            return
        with unchanged_process():
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            if self._owns_distributed:  # else the process group is the trainer's
                from vllm.distributed import cleanup_dist_env_and_memory

                cleanup_dist_env_and_memory()
            gc.collect()

    def _sampling_params(self, sampling: SamplingParams) -> Any:
        from vllm.exceptions import VLLMError
        from vllm.sampling_params import StructuredOutputsParams

        schema = sampling.json_schema
        try:
            return self._vllm.SamplingParams(
                n=sampling.n if sampling.temperature > 0 else 1,  # vLLM refuses to decode greedily twice
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                stop=list(sampling.stop),
                include_stop_str_in_output=True,
                stop_token_ids=list(self._end_ids),
                logprobs=0,  # of the sampled token alone
                detokenize=bool(sampling.stop),
                structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
            )
        except (ValueError, VLLMError) as error:
            raise EngineError(f"vLLM refuses the sampling parameters: {error}") from error

    def _request(self, encoded: Sequence[Sequence[int]], params: Any) -> list[Any]:
        prompts = [{"prompt_token_ids": list(ids)} for ids in encoded]
        return self._llm.generate(prompts, params, use_tqdm=False, lora_request=self._lora_request) if prompts else []

    def _reset_prefix_cache(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM could not empty its prefix cache, so it may serve old weights; restart the engine")


def sync_mode(config: VllmEngineConfig) -> Literal["merge", "adapter"]:
    """The mode that `auto` stands for: vLLM's LoRA kernels are slow on a CPU. Call after `import_vllm`."""
    if config.sync != "auto":
        return config.sync
    return "merge" if on_cpu() else "adapter"


def _served_shapes(model_path: str, mode: str) -> dict[str, tuple[int, ...]]:
    """Linear layers that this engine can serve an adapter on."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_path))
    shapes = linear_shapes(model)
    if mode == "adapter":
        # vLLM would wrap the output layer even for adapters that leave it alone. On a CPU that copies a matrix of
        # vocabulary × rank for every row and step, and prompt log-probabilities crash.
        output = model.get_output_embeddings()
        shapes = {name: shape for name, shape in shapes.items() if model.get_submodule(name) is not output}
    return shapes


def _served_rank(rank: int) -> int:
    fitting = [served for served in _RANKS if served >= rank]
    if not fitting:
        raise EngineError(
            f"vLLM serves LoRA ranks up to {_RANKS[-1]}, not {rank}; lower model.lora.r or use engine.sync: merge"
        )
    return fitting[0]


def _engine_context(model_path: str, wanted: int | None) -> int | None:
    """One token more than asked for, where the model allows: see `VllmEngine`. None is the model's limit."""
    if wanted is None:
        return None
    limit = getattr(AutoConfig.from_pretrained(model_path).get_text_config(), "max_position_embeddings", None)
    return wanted if wanted == limit else wanted + 1


def _generation_config(model_path: str | Path) -> Any:
    try:
        return GenerationConfig.from_pretrained(str(model_path))
    except OSError:  # many models have none
        return None


def _completion(output: Any) -> Completion:
    ids = tuple(output.token_ids)
    logprobs = tuple(step[token].logprob for step, token in zip(output.logprobs, ids, strict=True))
    return Completion(ids, logprobs, "stop" if output.finish_reason == "stop" else "length")
