"""Rules with a price."""

import math

from reward.base import RolloutReward
from reward.config import RulesConfig
from reward.rules.checks import make_check
from reward.types import RewardContext, Score
from rollouts.types import Rollout


class RulesReward(RolloutReward):
    """Minus the sum of the penalties of the rules that a completion breaks; 0 where it keeps them all.

    Each rule is a component: minus its penalty where it is broken, else 0. The evidence says of each broken rule why,
    and what was found where (start and end in characters of the completion). A rule that cannot be decided, because an
    expression has no value or a pattern took too long, is broken: otherwise it would pay to write such completions.
    Such patterns are counted as "timed_out".

    Raises:
        RewardError: a file of words cannot be read.
    """

    name = "rules"

    def __init__(self, config: RulesConfig) -> None:
        self._rules = [(rule.name, rule.penalty, make_check(rule)) for rule in config.rules]

    def _score_one(self, rollout: Rollout, context: RewardContext) -> Score:
        components, broken = {}, {}
        for name, penalty, check in self._rules:
            breach = check(rollout, context)
            components[name] = 0.0 if breach is None else -penalty
            if breach is not None:
                broken[name] = {"penalty": penalty, "why": breach.why, "found": list(breach.found)}
        kept = [name for name in components if name not in broken]
        return Score(math.fsum(components.values()), components, {"broken": broken, "kept": kept})
