"""What goes into an engine and what comes out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NotRequired, Protocol, TypedDict

FinishReason = Literal["stop", "length"]


LOWER_THE_RATE = (
    "lower the learning rate in the run's config.yaml and resume; where the newest checkpoint is ruined already, write "
    "the name of an earlier one into `latest`"
)
"""How to mend weights that went astray, ready to end a message."""


class EngineError(RuntimeError):
    """An engine could not start, generate, or take over an adapter. The message says what to do about it."""


class PromptTooLongError(EngineError):
    """Prompts that leave no room for a completion within the context."""

    def __init__(self, message: str, prompt_ids: Sequence[str]) -> None:
        super().__init__(message)
        self.prompt_ids = tuple(prompt_ids)


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str
    name: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question to the model.

    `reference` and `grading` are labels: only verifiers, the evaluation and the canary may see them.
    """

    id: str
    """Unique within a run, and stable across runs of the same data."""
    task: str
    """Name of the task in the stream."""
    content: str | tuple[Message, ...]
    """Messages are rendered with the model's chat template; a plain string is continued as it stands."""
    reference: str | None = None
    """The right answer, where the data has one."""
    grading: Mapping[str, Any] = field(default_factory=dict)
    """What a verifier needs besides the reference: reasoning-gym's entry, unit tests, a JSON schema."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Other columns of the row. Everyone may see these."""

    def without_labels(self) -> "Prompt":
        """The same prompt as a self-feedback reward gets to see it."""
        return replace(self, reference=None, grading={})

    @property
    def text(self) -> str:
        """The words a person would read: the last user message, or the plain string."""
        if isinstance(self.content, str):
            return self.content
        users = [message["content"] for message in self.content if message["role"] == "user"]
        return users[-1] if users else self.content[-1]["content"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How completions are drawn. Kept with every rollout: a log-probability means nothing without it."""

    temperature: float = 1.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    max_tokens: int = 256
    """Per completion; one that reaches it without a stop is truncated (`finish_reason == "length"`)."""
    n: int = 1
    """Completions per prompt."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; they stay in its text and tokens."""
    json_schema: str | None = None
    """JSON text of a schema that completions must keep to. Only engines that say `constrains_output` hold them to it.
    What was sampled so is never trained on: its log-probabilities are not those of the model."""

    @property
    def is_untruncated(self) -> bool:
        """Whether behaviour log-probabilities are those of the full softmax at this temperature."""
        return self.temperature > 0 and self.top_p == 1.0 and self.top_k == 0 and self.json_schema is None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion, with the exact tokens that were sampled. Never re-tokenise `text`."""

    id: str
    prompt_id: str
    group_id: str
    """Shared by the `n` completions that were sampled for one prompt in one call."""
    prompt_ids: tuple[int, ...]
    """Token ids of the rendered prompt."""
    completion_ids: tuple[int, ...]
    """Token ids of the completion, the end-of-sequence token included where it was sampled."""
    text: str
    """The decoded completion, special tokens left out."""
    logprobs: tuple[float, ...]
    """Behaviour log-probability (nats) of each completion token under the sampling distribution, temperature
    included; for greedy decoding, under temperature 1."""
    finish_reason: FinishReason
    policy_version: int
    """Version of the adapter that sampled it; 0 is the untouched model."""
    sampling: SamplingParams

    @property
    def truncated(self) -> bool:
        """Cut off at `max_tokens`: it has no answer and casts no vote."""
        return self.finish_reason == "length"


class Engine(Protocol):
    """Generates rollouts with the base model plus one LoRA adapter at a known version."""

    @property
    def version(self) -> int:
        """The adapter version that the engine itself says it serves; 0 before the first sync."""
        ...

    @property
    def max_model_len(self) -> int:
        """Tokens that prompt and completion may have together."""
        ...

    @property
    def description(self) -> str:
        """One line for people: engine, sync mode, device."""
        ...

    @property
    def constrains_output(self) -> bool:
        """Whether completions keep to `SamplingParams.json_schema`; otherwise it is ignored."""
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams, *, seed: int) -> list[list[Rollout]]:
        """`sampling.n` completions for each prompt, in the order of `prompts`. The same seed, prompts and version give
        the same rollouts on the `transformers` engine.

        Raises:
            EngineError: a prompt does not fit the context (the message names its id), or the engine is dead.
        """
        ...

    def score_tokens(
        self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], *, temperature: float = 1.0
    ) -> list[list[float]]:
        """Log-probability (nats) of each completion token given (prompt ids, completion ids): teacher forcing.

        Delivery checks use it, so it must go through the same weights that `generate` uses.
        """
        ...

    def sync(self, adapter_dir: Path, version: int) -> None:
        """Serve the PEFT adapter saved in `adapter_dir` from now on, as `version`.

        Raises:
            EngineError: the adapter cannot be read or does not fit the model, or the engine did not take it.
        """
        ...

    def close(self) -> None:
        """Free the engine's memory and processes. Safe to call twice."""
        ...
