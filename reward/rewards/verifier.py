"""The grade against the reference. Uses labels: not self-feedback."""

from collections.abc import Mapping

from reward.base import RolloutReward, prompt_of
from reward.types import Need, RewardContext, RewardError, Score
from reward.verifiers import Verifier
from rollouts.types import Rollout


class VerifierReward(RolloutReward):
    """1 for a right answer, 0 for a wrong one or none; with `partial_credit`, the verifier's grade in [0,
    1]."""

    name = "verifier"
    needs: frozenset[Need] = frozenset({"reference"})

    def __init__(self, verifiers: Mapping[str, Verifier] | Verifier, *, partial_credit: bool = False) -> None:
        """`verifiers`: one for all prompts, or one by task name."""
        self._verifiers = verifiers
        self._partial_credit = partial_credit

    def _score_one(self, rollout: Rollout, context: RewardContext) -> Score:
        prompt = prompt_of(rollout, context)
        try:
            grade = self._verifier(prompt.task).grade(rollout, prompt)
        except RewardError as error:
            raise RewardError(f"rollout {rollout.id!r}: {error}") from error
        value = grade.value if self._partial_credit else float(grade.correct)
        return Score(value, {self.name: value}, grade.evidence)

    def _verifier(self, task: str) -> Verifier:
        if not isinstance(self._verifiers, Mapping):
            return self._verifiers
        if task not in self._verifiers:
            raise RewardError(
                f"the verifier reward has no verifier for task {task!r}; it has: {', '.join(self._verifiers)}"
            )
        return self._verifiers[task]
