"""What became of reflecting on a group of rollouts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward.asking import clip
from reward.reflection.attempts import Attempt, Step
from reward.types import Score
from rollouts.types import Rollout

Content = tuple[str, bool]
"""What makes two completions of one prompt the same: text, and whether it was cut off."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt at an answer came to; all but the attempt is None where it came to nothing."""

    attempt: Attempt
    answer: str | None = None
    """Of the revision."""
    score: float | None = None
    """Of the revision, by the measure; None where it has no opinion, or where there is no measure."""
    gain: float | None = None
    """How much more that is than the answer's own score."""


@dataclass(frozen=True)
class Case:
    """A group and its revisions, answered alike and scored by one measure."""

    group: Sequence[Rollout]
    attempts: Mapping[Content, Sequence[Attempt]]
    """At each distinct completion that was reflected on."""
    answers: Mapping[str, str | None]
    """Of originals and revisions, by rollout id; equal answers are spelled alike."""
    scores: Mapping[str, Score]
    """The same by the measure; empty without one."""

    def outcomes(self, rollout: Rollout) -> list[Outcome] | None:
        """For a rollout of the group; None where it was not reflected on."""
        attempts = self.attempts.get(content_of(rollout))
        return None if attempts is None else [self._outcome(attempt, rollout) for attempt in attempts]

    def _outcome(self, attempt: Attempt, rollout: Rollout) -> Outcome:
        if attempt.revision is None:
            return Outcome(attempt)
        before, after = self.score(rollout), self.score(attempt.revision)
        gain = None if before is None or after is None else after - before
        return Outcome(attempt, self.answers[attempt.revision.id], after, gain)

    def score(self, rollout: Rollout) -> float | None:
        """By the measure, of an original or a revision."""
        score = self.scores.get(rollout.id)
        return None if score is None else score.value


def content_of(rollout: Rollout) -> Content:
    return rollout.text, rollout.truncated


def distinct(rollouts: Iterable[Rollout]) -> dict[Content, Rollout]:
    """The first rollout of each content."""
    found: dict[Content, Rollout] = {}
    for rollout in rollouts:
        found.setdefault(content_of(rollout), rollout)
    return found


def evidence_of(outcome: Outcome) -> dict[str, Any]:
    """What a person needs to see of an attempt."""
    attempt = outcome.attempt
    *earlier, last = [_evidence_of_step(step) for step in attempt.steps] or [{"note": "nobody has a comment on it"}]
    evidence: dict[str, Any] = {"earlier": earlier} if earlier else {}
    evidence |= last
    if attempt.failure is not None:
        return evidence | {"note": clip(attempt.failure)}
    known = {"answer": outcome.answer, "score": outcome.score, "gain": outcome.gain}
    return evidence | {name: value for name, value in known.items() if value is not None}


def _evidence_of_step(step: Step) -> dict[str, str]:
    words = {"comment" if step.is_comment else "critique": clip(step.critique.text)}
    return words if step.revision is None else words | {"revision": clip(step.revision.text)}
