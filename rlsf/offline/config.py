"""What `rlsf score` and `rlsf signals` are told. Imports neither torch nor vllm."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from reward.config import AnswerConfig, MajorityConfig, RewardConfig, VerifierConfig
from rlsf.config.load import load_config, load_section, read_document
from rlsf.config.schema import FileSource, ModelConfig, RunConfig, TaskConfig, check_wording
from rollouts.config import AutoEngineConfig, EngineConfig, SamplingConfig, Section

TASK = "file"
"""Name of the one task that the rows of a file belong to."""


class ScoreConfig(Section):
    """How completions from a file are read and scored."""

    reward: RewardConfig = MajorityConfig()
    model: ModelConfig | None = None
    """Whose tokens and probabilities the reward reads, and who is asked where the policy judges; loaded only if the
    reward needs it. None names no model."""
    engine: EngineConfig = AutoEngineConfig()
    """Generates where the reward asks the model questions."""
    sampling: SamplingConfig = SamplingConfig()
    """How the completions were drawn: `temperature` where a row has none of its own, and `stop`."""
    system: str | None = None
    """As in a task: the system message, the wording of the user's message, and whether the chat template is used."""
    template: str = "{prompt}"
    chat: bool = True
    answer: AnswerConfig = AnswerConfig()
    verifier: VerifierConfig = VerifierConfig()
    seed: int = Field(0, ge=0)
    """Of rewards that draw samples."""
    iteration: int = Field(0, ge=0)
    """Score as a run would in this iteration, where weights follow a schedule."""

    @model_validator(mode="after")
    def _check(self) -> "ScoreConfig":
        check_wording(self.system, self.template, self.chat)
        return self

    @classmethod
    def of_run(cls, config: RunConfig) -> "ScoreConfig":
        """As a run with this config would score its first task."""
        task = config.tasks[0]
        return cls(
            **{name: getattr(config, name) for name in ("reward", "model", "engine", "sampling", "seed")},
            **{name: getattr(task, name) for name in ("system", "template", "chat", "answer", "verifier")},
        )

    @property
    def task(self) -> TaskConfig:
        """The same as a task of a run."""
        return TaskConfig(
            name=TASK,
            source=FileSource(path=""),
            system=self.system,
            template=self.template,
            chat=self.chat,
            answer=self.answer,
            verifier=self.verifier,
        )


class SignalsConfig(Section):
    """Which signals are measured."""

    signals: dict[str, RewardConfig] = Field(min_length=1)
    """By the name that tables and plots give them."""


def load_score_config(path: Path, overrides: Sequence[str] = ()) -> ScoreConfig:
    """From a file of its own, or from the config of a run, of which the first task counts.

    Raises:
        ConfigError: as `load_section`.
    """
    document = read_document(path).value
    if isinstance(document, dict) and "tasks" in document:
        return ScoreConfig.of_run(load_config(path, overrides))
    return load_section(path, ScoreConfig, overrides)
