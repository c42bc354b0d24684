"""Finds the answer in a rollout and grades it, as one task's config says."""

from reward.answers import make_extractor
from reward.verifiers import make_verifier
from rlsf.config.schema import TaskConfig
from rollouts.types import Prompt, Rollout


class Grader:
    """Sees labels: only the evaluation, the canary and verifier rewards may hold one."""

    def __init__(self, config: TaskConfig) -> None:
        self.task = config.name
        self.extract = make_extractor(config.answer)
        self.verifier = make_verifier(config.verifier, config.answer)

    def is_correct(self, rollout: Rollout, prompt: Prompt) -> bool:
        """A rollout without an answer is wrong."""
        return self.verifier.grade(rollout, prompt).correct

    def grades(self, prompt: Prompt, answer: str) -> bool:
        """The same for an answer that no rollout gave."""
        return self.verifier.grade(answer, prompt).correct
