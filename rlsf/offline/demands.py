"""What a reward asks of whoever scores with it. A run has it all; for a file it decides what is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reward.config import (
    AnswerConfig,
    ExpressionRule,
    FunctionConfig,
    LengthControlledConfig,
    LengthPenaltyConfig,
    MinimumConfig,
    ProductConfig,
    RepetitionPenaltyConfig,
    RewardConfig,
    RewardSection,
    RulesConfig,
    SequenceProbabilityConfig,
    WeightedSumConfig,
    all_rewards,
)
from reward.config.rules import VARIABLES
from reward.factory import make_reward
from reward.rewards.function import load_function, parameter_of
from reward.rules.expressions import Expression
from reward.types import Need
from rlsf.config.schema import ModelConfig
from rlsf.errors import ConfigError, DataError
from rlsf.offline.completions import CompletionGroup

_OF_THE_MODEL: Mapping[Need, str] = {
    "token_stats": "reads the model's probabilities",
    "likelihood": "reads the model's probabilities",
    "answer_tokens": "reads the model's probabilities",
    "engine": "asks the model questions",
    "writers": "asks models questions",
}


@dataclass(frozen=True, slots=True)
class Demands:
    """Which parts of a model scoring takes."""

    tokens: bool = False
    """The tokens of completions that came as text: a tokenizer."""
    logprobs: bool = False
    """Their behaviour log-probabilities, which only the model can tell where the completions came as text."""
    policy: bool = False
    engine: bool = False

    def __or__(self, other: "Demands") -> "Demands":
        return Demands(
            self.tokens or other.tokens,
            self.logprobs or other.logprobs,
            self.policy or other.policy,
            self.engine or other.engine,
        )

    @property
    def any(self) -> bool:
        return self.tokens or self.logprobs or self.policy or self.engine


def demands_of(config: RewardConfig, needs: frozenset[Need]) -> Demands:
    """`needs`: of the reward that `config` describes."""
    parts = [part for _, part in all_rewards(config)]
    return Demands(
        tokens=any(map(_counts_tokens, parts)),
        logprobs=any(map(_reads_logprobs, parts)),
        policy=bool(needs & _OF_THE_MODEL.keys()),
        engine=bool(needs & {"engine", "writers"}),
    )


def demands_of_answers(config: AnswerConfig) -> Demands:
    """Telling which answers mean the same may take the model's embeddings."""
    return Demands(policy=config.equivalence.kind == "embedding")


def check_answers(config: AnswerConfig, model: ModelConfig | None, mend: str) -> None:
    """Raises ConfigError where comparing answers takes a model and none is named; `mend` says how to name one."""
    if model is None and demands_of_answers(config).any:
        raise ConfigError(f"answer.equivalence: embedding takes a model, and none is named: {mend}")


def no_model_error(config: RewardConfig, key: str, mend: str) -> ConfigError:
    """What to say where `config` demands a model and none is named.

    Args:
        key: under which the reward stands.
        mend: how to name one.
    """
    for name, part in all_rewards(config, key):
        if _reads_logprobs(part):
            return ConfigError(f"{name}: {part.kind} reads the model's probabilities, and no model is named: {mend}")
        if _counts_tokens(part):
            return ConfigError(f"{name}: {part.kind} may count tokens, and no model is named to count them by: {mend}")
    reasons = [
        (name, part.kind, _OF_THE_MODEL[need])
        for name, part in all_rewards(config, key)
        if not isinstance(part, FunctionConfig)
        for need in sorted(make_reward(part).needs & _OF_THE_MODEL.keys())
    ]
    name, kind, why = reasons[-1]  # the innermost: what is made of others needs what they need
    return ConfigError(f"{name}: {kind} {why}, and no model is named: {mend}")


def check_references(config: RewardConfig, groups: Sequence[CompletionGroup], key: str) -> None:
    """Raises DataError, naming the first row, where the reward that stands under `key` sees references and there are
    rows without."""
    seeing = next((f"{name}: {part.kind}" for name, part in all_rewards(config, key) if part.sees_labels), None)
    bare = [group for group in groups if group.prompt.reference is None]
    if seeing is not None and bare:
        raise DataError(
            f"{bare[0].completions[0].where}: the row has no `reference`, and {seeing} compares with one; add the "
            f"column, or take a reward that needs no label ({len(bare)} of {len(groups)} groups have none)"
        )


def remembers(config: RewardConfig) -> bool:
    """Whether what the reward pays depends on what it has scored before."""
    return any(
        (isinstance(part, LengthControlledConfig) and part.method == "residual")
        or (
            isinstance(part, WeightedSumConfig | ProductConfig | MinimumConfig)
            and any(component.normalize in ("task", "running") for component in part.components.values())
        )
        for _, part in all_rewards(config)
    )


def _counts_tokens(part: RewardSection) -> bool:
    match part:
        case LengthPenaltyConfig() | LengthControlledConfig():
            return True
        case RepetitionPenaltyConfig():
            return part.unit == "tokens"
        case RulesConfig():
            conditions = [rule.holds for rule in part.rules if isinstance(rule, ExpressionRule)]
            return any("tokens" in Expression(condition, VARIABLES).names for condition in conditions)
        case FunctionConfig():
            return parameter_of(load_function(part.path), "completion_ids") is not None
    return False


def _reads_logprobs(part: RewardSection) -> bool:
    return isinstance(part, SequenceProbabilityConfig) and part.model == "policy"
