"""A price on saying the same again."""

from collections import Counter
from typing import Any

from reward.base import RolloutReward
from reward.config import RepetitionPenaltyConfig
from reward.types import RewardContext, Score
from rollouts.types import Rollout


class RepetitionPenaltyReward(RolloutReward):
    """−s, where s = 1 − distinct n-grams / all n-grams of the completion: the share of those that occurred before.

    Demystifying Long CoT (arXiv 2502.03373, section 4.5 and appendix C.2), over a whole completion as in its authors'
    `get_repetition_penalty`. With `free_share` f it is −max(0, s − f) / (1 − f). Words are what stands between white
    space, case aside; a completion of no more than n units repeats nothing.
    """

    name = "repetition_penalty"

    def __init__(self, config: RepetitionPenaltyConfig | None = None) -> None:
        self._config = config or RepetitionPenaltyConfig()

    def _score_one(self, rollout: Rollout, context: RewardContext) -> Score:
        n, free = self._config.ngram, self._config.free_share
        units = rollout.completion_ids if self._config.unit == "tokens" else rollout.text.casefold().split()
        counts = Counter(zip(*(units[start:] for start in range(n)), strict=False))
        total = counts.total()
        repeated = total - len(counts)
        share = repeated / total if total else 0.0
        value = 0.0 - max(0.0, share - free) / (1 - free)  # 0.0 - x: no -0.0
        evidence: dict[str, Any] = {"ngrams": total, "repeated": repeated, "share": share}
        if repeated:
            ngram, times = counts.most_common(1)[0]
            evidence["most_repeated"] = {self._config.unit: list(ngram), "times": times}
        return Score(value, {self.name: value}, evidence)
