"""An engine that counts what it generates."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlsf.forward import TokenPair
from rollouts.types import Engine, Prompt, Rollout, SamplingParams


class MeteredEngine:
    """Passes everything on to another engine and reports the tokens of each `generate`, whoever calls it."""

    def __init__(self, engine: Engine, count: Callable[[int], None]) -> None:
        self._engine = engine
        self._count = count

    @property
    def version(self) -> int:
        return self._engine.version

    @property
    def max_model_len(self) -> int:
        return self._engine.max_model_len

    @property
    def description(self) -> str:
        return self._engine.description

    @property
    def constrains_output(self) -> bool:
        return self._engine.constrains_output

    def __getattr__(self, name: str) -> Any:
        """What only some engines have: `dtype`, `fingerprint`."""
        return getattr(self._engine, name)

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams, *, seed: int) -> list[list[Rollout]]:
        groups = self._engine.generate(prompts, sampling, seed=seed)
        self._count(sum(len(rollout.completion_ids) for group in groups for rollout in group))
        return groups

    def score_tokens(self, sequences: Sequence[TokenPair], *, temperature: float = 1.0) -> list[list[float]]:
        return self._engine.score_tokens(sequences, temperature=temperature)

    def sync(self, adapter_dir: Path, version: int) -> None:
        self._engine.sync(adapter_dir, version)

    def close(self) -> None:
        self._engine.close()
