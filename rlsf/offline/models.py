"""The model that a reward demands, loaded as far as it demands it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reward.equivalence import Embed
from rlsf.config.schema import ModelConfig
from rlsf.display import Display
from rlsf.offline.demands import Demands
from rlsf.seeds import derive_seed
from rollouts.config import EngineConfig
from rollouts.types import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlsf.policy import Policy


@dataclass(frozen=True, slots=True)
class Models:
    """What is loaded; None what is not."""

    tokenizer: "PreTrainedTokenizerBase | None" = None
    policy: "Policy | None" = None
    engine: Engine | None = None

    def embed(self) -> Embed | None:
        """For a `Grader`; None where no policy is loaded."""
        if self.policy is None:
            return None
        from rlsf.embedding import policy_embedder

        return policy_embedder(self.policy)


@dataclass(frozen=True, slots=True)
class Adapters:
    """Folders of a run's adapters."""

    policy: Path | None = None
    """None is the base model."""
    reference: Path | None = None
    """None: the policy stands for it."""


@contextmanager
def open_models(
    model: ModelConfig | None,
    engine: EngineConfig,
    demands: Demands,
    display: Display,
    *,
    seed: int,
    adapters: Adapters = Adapters(),
) -> Iterator[Models]:
    """Within the block, the parts of `model` that `demands` name; it may be None where they name none.

    Raises:
        ModelError, EngineError: one of them cannot be loaded.
    """
    with ExitStack() as parts:
        loaded = Models()
        if demands.any:
            assert model is not None
            with display.phase("load"):
                loaded = _load(model, demands, adapters, seed)
        if demands.engine:
            assert model is not None and loaded.policy is not None
            with display.phase("start engine"):
                started = _start(model, engine, loaded.policy, adapters.policy)
            parts.callback(started.close)
            loaded = replace(loaded, engine=started)
        yield loaded


def _load(model: ModelConfig, demands: Demands, adapters: Adapters, seed: int) -> Models:
    from rlsf.models import load_tokenizer, resolve_model

    path = resolve_model(model.source)
    if not (demands.policy or demands.logprobs or demands.engine):
        return Models(load_tokenizer(path, model.chat_template))
    from rlsf.policy import REFERENCE, Policy

    policy = Policy.create(path, model, seed=derive_seed(seed, "lora"))
    if adapters.policy is not None:
        policy.load_adapter(adapters.policy)
    if adapters.reference is not None:
        policy.load_adapter(adapters.reference, REFERENCE)
    return Models(policy.tokenizer, policy)


def _start(model: ModelConfig, config: EngineConfig, policy: "Policy", adapter: Path | None) -> Engine:
    from rlsf.evaluation.command import check_served
    from rlsf.models import resolve_model
    from rollouts.factory import create_engine

    engine = create_engine(
        config,
        resolve_model(model.source),
        tokenizer=policy.tokenizer,
        lora_rank=model.lora.r,
        dtype=policy.causal_lm.dtype,
        device=policy.device,
    )
    if adapter is not None:
        try:
            engine.sync(adapter, version=1)
            check_served(engine, adapter)
        except BaseException:
            engine.close()
            raise
    return engine
