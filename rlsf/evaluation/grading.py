"""Finds the answer in a rollout and grades it, as one task's config says."""

from collections.abc import Sequence

from reward.answers import make_extractor
from reward.equivalence import Embed, make_equivalent, spell_alike
from reward.verifiers import make_verifier
from rlsf.config.schema import TaskConfig
from rollouts.types import Prompt, Rollout


class Grader:
    """Sees labels: only the evaluation, the canary and verifier rewards may hold one."""

    def __init__(self, config: TaskConfig, embed: Embed | None = None) -> None:
        """`embed`: see `rlsf.embedding`; for tasks that take answers close in meaning for the same, and no others.

        Raises:
            RewardError: it is wanted, and missing.
        """
        self.task = config.name
        self.answer_config = config.answer
        self.extract = make_extractor(config.answer)
        self.equivalent = make_equivalent(config.answer.equivalence, embed)
        self.verifier = make_verifier(config.verifier, config.answer)

    def answers(self, group: Sequence[Rollout]) -> list[str | None]:
        """The answers of rollouts to one prompt, those that mean the same spelled alike; None where there is none."""
        return spell_alike([self.extract(rollout) for rollout in group], self.equivalent)

    def is_correct(self, rollout: Rollout, prompt: Prompt) -> bool:
        """A rollout without an answer is wrong."""
        return self.verifier.grade(rollout, prompt).correct

    def grades(self, prompt: Prompt, answer: str) -> bool:
        """The same for an answer that no rollout gave."""
        return self.verifier.grade(answer, prompt).correct
