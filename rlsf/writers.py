"""Models beside the engine that rewards put questions to: the frozen copy of the policy, and others on this machine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from transformers import GenerationConfig

from reward.asking import EngineWriter
from reward.config import FrozenWriterConfig, LocalWriterConfig
from reward.types import Reply, RewardError, Writer
from rlsf.errors import ModelError
from rlsf.models import load_tokenizer, resolve_model
from rlsf.models.loading import choose_dtype, quiet_transformers
from rlsf.policy import POLICY, REFERENCE, Policy
from rollouts import decoding
from rollouts.base import assemble
from rollouts.config import TransformersEngineConfig
from rollouts.prompts import encode_prompts, end_token_ids
from rollouts.transformers_engine import TransformersEngine
from rollouts.types import EngineError, Prompt, Rollout, SamplingParams

_MAX_BATCH = 64
"""Completions that the frozen copy decodes at once."""


class Writers:
    """What `RewardContext.writers` is: from a config to the one writer that it describes.

    Args:
        max_model_len: longest question plus reply of the frozen copy, in tokens.
        count: told how many tokens were generated.
    """

    def __init__(self, policy: Policy, max_model_len: int, count: Callable[[int], None]) -> None:
        self._policy = policy
        self._count = count
        self._frozen = Metered(EngineWriter(FrozenCopy(policy, max_model_len)), count)
        self._locals: dict[LocalWriterConfig, Metered] = {}
        self._models = ExitStack()

    def __call__(self, config: FrozenWriterConfig | LocalWriterConfig) -> Writer:
        if isinstance(config, FrozenWriterConfig):
            return self._frozen
        if config not in self._locals:
            local = self._models.enter_context(closing(LocalWriter(config, self._policy)))
            self._locals[config] = Metered(local, self._count)
        return self._locals[config]

    def close(self) -> None:
        """Free the other models' memory. Safe to call twice."""
        self._models.close()


class Metered:
    """Passes questions on to another writer and reports the tokens that it generated."""

    def __init__(self, writer: Writer, count: Callable[[int], None]) -> None:
        self._writer = writer
        self._count = count

    def ask(
        self, questions: Sequence[Prompt], sampling: SamplingParams, *, seed: int, json_schema: Mapping[str, Any] | None
    ) -> list[list[Reply] | None]:
        """See `Writer.ask`."""
        answers = self._writer.ask(questions, sampling, seed=seed, json_schema=json_schema)
        self._count(sum(reply.tokens for replies in answers for reply in replies or ()))
        return answers


class FrozenCopy:
    """Generates with the trainer's own model under the reference adapter; before there is one (in a run's preparation),
    under the policy's, which the reference will be a copy of. Its rollouts are of version 0."""

    constrains_output = False

    def __init__(self, policy: Policy, max_model_len: int) -> None:
        self._policy = policy
        self._max_model_len = max_model_len

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams, *, seed: int) -> list[list[Rollout]]:
        """See `rollouts.Engine`."""
        policy = self._policy
        model, tokenizer = policy.causal_lm, policy.tokenizer
        encoded = encode_prompts(tokenizer, prompts, sampling, self._max_model_len)
        end_ids = end_token_ids(tokenizer, model.generation_config)
        with policy.using(REFERENCE if policy.has_reference else POLICY), _no_settings_of_its_own(model):
            groups = decoding.sample_groups(
                model, tokenizer, encoded, sampling, end_ids, seed=seed, max_batch=_MAX_BATCH
            )
        return assemble(tokenizer, prompts, encoded, groups, sampling=sampling, version=0, seed=seed)


class LocalWriter:
    """Another model, loaded when it is first asked, on the policy's device.

    Raises:
        RewardError: it cannot be loaded.
    """

    def __init__(self, config: LocalWriterConfig, policy: Policy) -> None:
        self._config = config
        self._policy = policy
        self._engine: TransformersEngine | None = None

    def ask(
        self, questions: Sequence[Prompt], sampling: SamplingParams, *, seed: int, json_schema: Mapping[str, Any] | None
    ) -> list[list[Reply] | None]:
        """See `Writer.ask`."""
        if self._engine is None:
            self._engine = self._load()
        writer = EngineWriter(self._engine, context_key="max_model_len of the local model")
        return writer.ask(questions, sampling, seed=seed, json_schema=json_schema)

    def _load(self) -> TransformersEngine:
        config, device = self._config, self._policy.device
        settings = TransformersEngineConfig(max_batch=config.max_batch, max_model_len=config.max_model_len)
        try:
            path = resolve_model(config.source)
            tokenizer = load_tokenizer(path, config.chat_template)
            with quiet_transformers():
                return TransformersEngine(
                    path, settings, tokenizer, device=device, dtype=choose_dtype(config.dtype, device)
                )
        except (ModelError, EngineError) as error:
            words = str(error).removeprefix("model.source: ")
            raise RewardError(f"the local model {config.source!r} that a reward asks: {words}") from error

    def close(self) -> None:
        """Free its memory."""
        if self._engine is not None:
            self._engine.close()


@contextmanager
def _no_settings_of_its_own(model: Any) -> Iterator[None]:
    """`generate` fills whatever a call leaves open from the model's own settings: a repetition penalty, say."""
    settings, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = settings
