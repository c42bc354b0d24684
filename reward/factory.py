"""From a config section to a reward that scores."""

from collections.abc import Mapping

from reward.base import BaseReward
from reward.config import (
    AnswerConfig,
    FunctionConfig,
    JudgeConfig,
    LengthPenaltyConfig,
    MajorityConfig,
    RewardConfig,
    SelfCertaintyConfig,
    VerifierConfig,
    VerifierRewardConfig,
    WeightedSumConfig,
)
from reward.rewards.function import FunctionReward, load_function
from reward.rewards.judge import JudgeReward
from reward.rewards.length_penalty import LengthPenaltyReward
from reward.rewards.majority import MajorityReward
from reward.rewards.self_certainty import SelfCertaintyReward
from reward.rewards.verifier import VerifierReward
from reward.rewards.weighted_sum import Component, WeightedSumReward
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
            return SelfCertaintyReward()
        case JudgeConfig():
            return JudgeReward(config)
        case LengthPenaltyConfig():
            return LengthPenaltyReward(config)
        case FunctionConfig():
            return FunctionReward(load_function(config.path), needs_reference=config.needs_reference)
        case WeightedSumConfig():
            return WeightedSumReward(
                {
                    name: Component(make_reward(part.reward, graders=graders), part.weight, part.normalize)
                    for name, part in config.components.items()
                }
            )


def _verifiers(
    config: VerifierRewardConfig, graders: Mapping[str, Verifier] | Verifier
) -> Mapping[str, Verifier] | Verifier:
    if config.verifier is None:
        return graders
    if isinstance(graders, Mapping):
        return {task: make_verifier(config.verifier, grader.answer) for task, grader in graders.items()}
    return make_verifier(config.verifier, graders.answer)
