"""What the buffer keeps: a rollout, its score, and what training on it later needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from reward.types import Score
from rollouts.types import Prompt, Rollout

LESSON = "lesson"
"""In the evidence of what `rlsf.lessons` made: of which kind it is."""


@dataclass(frozen=True, slots=True)
class Experience:
    """One scored rollout."""

    rollout: Rollout
    score: Score
    task: str
    iteration: int
    """In which it was generated, counted from 1."""
    reference_logprobs: tuple[float, ...] | None = None
    """log-probability (nats) of each completion token under the reference policy, at the sampling temperature; computed
    once. None where the algorithm needs none."""
    priority: float = 1.0
    """Non-negative; shared by the group."""


@dataclass(frozen=True, slots=True)
class Group:
    """The unit of storage, drawing and comparison: one prompt with its n experiences."""

    id: str
    prompt: Prompt
    """Without labels: they stay in the task data."""
    experiences: tuple[Experience, ...]

    @property
    def task(self) -> str:
        return self.experiences[0].task

    @property
    def is_lesson(self) -> bool:
        """Critiques, revisions or judgements that a reward found worth learning from, and not the policy's answers."""
        return LESSON in self.experiences[0].score.evidence

    @property
    def iteration(self) -> int:
        return self.experiences[0].iteration

    @property
    def policy_version(self) -> int:
        return self.experiences[0].rollout.policy_version

    @property
    def priority(self) -> float:
        return self.experiences[0].priority

    @property
    def rewards(self) -> list[float | None]:
        return [experience.score.value for experience in self.experiences]


def in_turn(groups: Sequence[Group]) -> list[Experience]:
    """Those that have a token: the first of each group, then the second of each, and so on."""
    answered = [[e for e in group.experiences if e.rollout.completion_ids] for group in groups]
    return [e for row in zip_longest(*answered) for e in row if e is not None]
