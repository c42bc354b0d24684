"""A price on drifting into another language."""

from collections import Counter
from typing import Any

from reward.base import RolloutReward, prompt_of
from reward.config import LanguagePenaltyConfig
from reward.excerpts import excerpt
from reward.scripts import script_of
from reward.types import RewardContext, Score
from rollouts.types import Rollout


class LanguagePenaltyReward(RolloutReward):
    """Minus the share of the completion's letters whose script is not wanted; 0 without letters.

    DeepSeek-R1 (arXiv 2501.12948, section 2.3.2) rewards the share of words in the target language. Scripts tell
    languages apart only where they are written differently, but need no model. Digits, signs and modifier letters do
    not count.
    """

    name = "language_penalty"

    def __init__(self, config: LanguagePenaltyConfig | None = None) -> None:
        self._config = config or LanguagePenaltyConfig()
        self._wanted = frozenset(script.upper() for script in self._config.scripts)

    def _score_one(self, rollout: Rollout, context: RewardContext) -> Score:
        wanted = self._wanted
        if self._config.same_as_prompt:
            scripts_asked = (script_of(character) for character in prompt_of(rollout, context).text)
            wanted |= {script for script in scripts_asked if script is not None}
        scripts = [script_of(character) for character in rollout.text]
        counts = Counter(script for script in scripts if script is not None)
        letters = counts.total()
        foreign = letters - sum(counts[script] for script in wanted)
        value = 0.0 - (foreign / letters if letters else 0.0)  # 0.0 - x: no -0.0
        evidence: dict[str, Any] = {"letters": dict(counts.most_common())}
        if foreign:
            start = next(i for i, script in enumerate(scripts) if script is not None and script not in wanted)
            evidence["first_unwanted"] = excerpt(rollout.text, start, start + 1)
        return Score(value, {self.name: value}, evidence)
