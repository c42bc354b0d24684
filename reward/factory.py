"""From a config section to a reward that scores."""

from collections.abc import Mapping

from reward.base import BaseReward
from reward.config import (
    AnswerConfig,
    ConfidenceConfig,
    FunctionConfig,
    GateConfig,
    JudgeConfig,
    LanguagePenaltyConfig,
    LengthControlledConfig,
    LengthPenaltyConfig,
    MajorityConfig,
    MetaJudgeConfig,
    MinimumConfig,
    PairwiseJudgeConfig,
    ProductConfig,
    PTrueConfig,
    ReflectionConfig,
    RepetitionPenaltyConfig,
    RewardConfig,
    RulesConfig,
    SelfCertaintyConfig,
    SemanticEntropyConfig,
    SequenceProbabilityConfig,
    TokenEntropyConfig,
    VerifierConfig,
    VerifierRewardConfig,
    WeightedSumConfig,
)
from reward.rewards.combination import Component, MinimumReward, ProductReward, WeightedSumReward
from reward.rewards.function import FunctionReward, load_function
from reward.rewards.gate import GateReward
from reward.rewards.judge import JudgeReward
from reward.rewards.language_penalty import LanguagePenaltyReward
from reward.rewards.length_controlled import LengthControlledReward
from reward.rewards.length_penalty import LengthPenaltyReward
from reward.rewards.majority import MajorityReward
from reward.rewards.meta_judge import MetaJudgeReward
from reward.rewards.p_true import PTrueReward
from reward.rewards.pairwise_judge import PairwiseJudgeReward
from reward.rewards.reflection import ReflectionReward
from reward.rewards.repetition_penalty import RepetitionPenaltyReward
from reward.rewards.rules import RulesReward
from reward.rewards.semantic_entropy import SemanticEntropyReward
from reward.rewards.token_signals import (
    ConfidenceReward,
    SelfCertaintyReward,
    SequenceProbabilityReward,
    TokenEntropyReward,
)
from reward.rewards.verifier import VerifierReward
from reward.verifiers import Verifier, make_verifier


def make_reward(config: RewardConfig, *, graders: Mapping[str, Verifier] | Verifier | None = None) -> BaseReward:
    """The reward that the config describes; what it needs is in its `needs`.

    Args:
        graders: for verifier rewards: how each task is graded, by task name, or one verifier for all. They
            also say where a task's answers stand, if the config names another verifier. None is the default
            verifier on numbers.

    Raises:
        RewardError: a reward function cannot be imported.
    """
    if graders is None:
        graders = make_verifier(VerifierConfig(), AnswerConfig())
    match config:
        case MajorityConfig():
            return MajorityReward(config)
        case VerifierRewardConfig():
            return VerifierReward(_verifiers(config, graders), partial_credit=config.partial_credit)
        case SelfCertaintyConfig():
            return SelfCertaintyReward(config)
        case ConfidenceConfig():
            return ConfidenceReward(config)
        case TokenEntropyConfig():
            return TokenEntropyReward(config)
        case SequenceProbabilityConfig():
            return SequenceProbabilityReward(config)
        case SemanticEntropyConfig():
            return SemanticEntropyReward(config)
        case PTrueConfig():
            return PTrueReward(config)
        case JudgeConfig():
            return JudgeReward(config)
        case PairwiseJudgeConfig():
            return PairwiseJudgeReward(config)
        case MetaJudgeConfig():
            return MetaJudgeReward(config)
        case ReflectionConfig():
            measure = None if config.measure is None else make_reward(config.measure, graders=graders)
            return ReflectionReward(config, measure)
        case LengthControlledConfig():
            return LengthControlledReward(config, make_reward(config.reward, graders=graders))
        case LengthPenaltyConfig():
            return LengthPenaltyReward(config)
        case RepetitionPenaltyConfig():
            return RepetitionPenaltyReward(config)
        case LanguagePenaltyConfig():
            return LanguagePenaltyReward(config)
        case RulesConfig():
            return RulesReward(config)
        case FunctionConfig():
            return FunctionReward(load_function(config.path), needs_reference=config.needs_reference)
        case WeightedSumConfig():
            return WeightedSumReward(
                {
                    name: Component(make_reward(part.reward, graders=graders), part.weight, part.normalize)
                    for name, part in config.components.items()
                }
            )
        case ProductConfig() | MinimumConfig():
            parts = {
                name: Component(make_reward(part.reward, graders=graders), normalize=part.normalize)
                for name, part in config.components.items()
            }
            return ProductReward(parts) if isinstance(config, ProductConfig) else MinimumReward(parts)
        case GateConfig():
            return GateReward(
                make_reward(config.condition, graders=graders),
                make_reward(config.reward, graders=graders),
                threshold=config.threshold,
                closed=config.closed,
            )


def _verifiers(
    config: VerifierRewardConfig, graders: Mapping[str, Verifier] | Verifier
) -> Mapping[str, Verifier] | Verifier:
    if config.verifier is None:
        return graders
    if isinstance(graders, Mapping):
        return {task: make_verifier(config.verifier, grader.answer) for task, grader in graders.items()}
    return make_verifier(config.verifier, graders.answer)
