"""Config sections of this package, one per reward, discriminated by `kind`. Imports nothing heavy."""

from typing import Annotated

from pydantic import Field

from reward.config.answers import AnswerConfig, EquivalenceConfig, VerifierConfig
from reward.config.composition import (
    Component,
    GateConfig,
    MinimumConfig,
    Normalize,
    ProductConfig,
    WeightedComponent,
    WeightedSumConfig,
)
from reward.config.judges import (
    AskingSection,
    JudgeConfig,
    LengthControlledConfig,
    MetaJudgeConfig,
    PairwiseJudgeConfig,
)
from reward.config.labels import FunctionConfig, VerifierRewardConfig
from reward.config.penalties import LanguagePenaltyConfig, LengthPenaltyConfig, RepetitionPenaltyConfig
from reward.config.reflection import ReflectionConfig
from reward.config.rules import (
    DetectorRule,
    ExpressionRule,
    FormatRule,
    PatternRule,
    RuleConfig,
    RulesConfig,
    WordsRule,
)
from reward.config.section import RewardSection, all_rewards, uses_labels
from reward.config.tokens import (
    ConfidenceConfig,
    PTrueConfig,
    SelfCertaintyConfig,
    SequenceProbabilityConfig,
    TokenEntropyConfig,
    TokenSignalSection,
)
from reward.config.votes import MajorityConfig, SemanticEntropyConfig
from reward.config.writers import (
    FrozenWriterConfig,
    LocalWriterConfig,
    OpenAIWriterConfig,
    PolicyWriterConfig,
    WriterConfig,
)

RewardConfig = Annotated[
    MajorityConfig
    | SemanticEntropyConfig
    | SelfCertaintyConfig
    | ConfidenceConfig
    | TokenEntropyConfig
    | SequenceProbabilityConfig
    | PTrueConfig
    | JudgeConfig
    | PairwiseJudgeConfig
    | MetaJudgeConfig
    | ReflectionConfig
    | VerifierRewardConfig
    | FunctionConfig
    | RulesConfig
    | LengthPenaltyConfig
    | RepetitionPenaltyConfig
    | LanguagePenaltyConfig
    | LengthControlledConfig
    | WeightedSumConfig
    | ProductConfig
    | MinimumConfig
    | GateConfig,
    Field(discriminator="kind"),
]

for _section in (
    Component,
    WeightedComponent,
    WeightedSumConfig,
    ProductConfig,
    MinimumConfig,
    GateConfig,
    LengthControlledConfig,
    ReflectionConfig,
):
    _section.model_rebuild(force=True, _types_namespace={"RewardConfig": RewardConfig, **globals()})

__all__ = [
    "AnswerConfig",
    "AskingSection",
    "Component",
    "ConfidenceConfig",
    "DetectorRule",
    "EquivalenceConfig",
    "ExpressionRule",
    "FormatRule",
    "FrozenWriterConfig",
    "FunctionConfig",
    "GateConfig",
    "JudgeConfig",
    "LanguagePenaltyConfig",
    "LengthControlledConfig",
    "LengthPenaltyConfig",
    "LocalWriterConfig",
    "MajorityConfig",
    "MetaJudgeConfig",
    "MinimumConfig",
    "Normalize",
    "OpenAIWriterConfig",
    "PTrueConfig",
    "PairwiseJudgeConfig",
    "PatternRule",
    "PolicyWriterConfig",
    "ProductConfig",
    "ReflectionConfig",
    "RepetitionPenaltyConfig",
    "RewardConfig",
    "RewardSection",
    "RuleConfig",
    "RulesConfig",
    "SelfCertaintyConfig",
    "SemanticEntropyConfig",
    "SequenceProbabilityConfig",
    "TokenEntropyConfig",
    "TokenSignalSection",
    "VerifierConfig",
    "VerifierRewardConfig",
    "WeightedComponent",
    "WeightedSumConfig",
    "WordsRule",
    "WriterConfig",
    "all_rewards",
    "uses_labels",
]
