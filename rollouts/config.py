"""Config sections of this package. Imports neither torch nor vllm, so that a config is checked in no time."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollouts.types import SamplingParams

MAX_COMPLETIONS = 65_536
"""Per prompt: enough for any estimate, and few enough that a slip of the finger is told from a wish."""

_NUMBERS = (int, int | None, float, float | None)


class Section(BaseModel):
    """Base of every config section: unknown keys are errors, values cannot be changed afterwards."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, data: Any) -> Any:
        """Python counts True as 1."""
        for key, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(key)
            if field is not None and isinstance(value, bool) and field.annotation in _NUMBERS:
                raise ValueError(f"{key}: found {str(value).lower()}; expected a number")
        return data


class SamplingConfig(Section):
    """How completions are drawn."""

    temperature: float = Field(1.0, ge=0)
    """Divides the logits; 0 is greedy. Kept at 1 unless the base model is too random to vote."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling. Must be 1 for training rollouts: a truncated softmax biases every ratio."""
    top_k: int = Field(0, ge=0)
    """Keep the k likeliest tokens; 0 is off. Must be 0 for training rollouts, for the same reason."""
    max_tokens: int = Field(256, ge=1)
    """Longest completion, in tokens. A completion cut off here has no answer."""
    n: int = Field(8, ge=1, le=MAX_COMPLETIONS)
    """Completions per prompt: the group that votes and is compared."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end a completion."""

    def params(self) -> SamplingParams:
        """The same values as the engines take them."""
        return SamplingParams(**self.model_dump())


class TransformersEngineConfig(Section):
    """Hugging Face generate: needs nothing else installed, and is bit-reproducible on a CPU."""

    kind: Literal["transformers"] = "transformers"
    sync: Literal["auto", "merge", "adapter"] = "auto"
    """`adapter` keeps LoRA apart (auto); `merge` folds it into the weights, which decodes faster."""
    max_batch: int = Field(64, ge=1)
    """Completions decoded at once; bounds memory."""
    max_model_len: int | None = Field(None, ge=2)
    """Longest prompt plus completion, in tokens; None is the model's own limit."""


class VllmEngineConfig(Section):
    """vLLM inside this process."""

    kind: Literal["vllm"] = "vllm"
    sync: Literal["auto", "merge", "adapter"] = "auto"
    """`merge` folds the adapter into vLLM's weights (auto on a CPU: faster decoding, but a sync takes
    seconds instead of a tenth of one);
    `adapter` serves it as a LoRA request (auto on a GPU)."""
    max_model_len: int | None = Field(None, ge=2)
    """Longest prompt plus completion, in tokens; None is the model's own limit. Smaller saves cache memory."""
    max_num_seqs: int = Field(64, ge=1)
    """Sequences decoded at once."""
    gpu_memory_utilization: float = Field(0.4, gt=0, le=1)
    """Share of the GPU's memory for vLLM; the trainer needs the rest. No effect on a CPU."""
    cpu_kvcache_gib: int = Field(2, ge=1)
    """GiB of key-value cache on a CPU. No effect on a GPU."""
    enforce_eager: bool = True
    """Skip compilation: on two cores it takes minutes and gains little."""
    threads: int | None = Field(None, ge=1)
    """CPU threads for vLLM; None takes as many as torch uses."""


class AutoEngineConfig(Section):
    """vLLM where it imports, else transformers; `rlsf doctor` says which and why."""

    kind: Literal["auto"] = "auto"
    max_model_len: int | None = Field(None, ge=2)
    """Longest prompt plus completion, in tokens; None is the model's own limit."""


EngineConfig = Annotated[AutoEngineConfig | VllmEngineConfig | TransformersEngineConfig, Field(discriminator="kind")]


class DeliveryConfig(Section):
    """The check after every sync that the engine serves the weights that were sent."""

    probe_tokens: int = Field(64, ge=8)
    """Tokens of the fixed probe on which engine and trainer are compared."""
    tolerance: float | None = Field(None, gt=0)
    """Largest difference of a log-probability (nats) between engine and trainer on any probe token. None goes by the
    engine's precision: 5e-3 in float32, which stays below 1e-4 on a CPU; in bfloat16 single tokens lie up to half a nat
    apart with the right weights, so there the rms over the probe is held to 0.25 instead (0.03 in float16)."""
