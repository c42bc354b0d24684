"""Runs the policy on held-out prompts and grades what it says."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from reward.rewards.majority import count_votes
from rlsf.evaluation.grading import Grader
from rlsf.evaluation.statistics import Estimate, paired_bootstrap, pass_at_k, wilson
from rollouts.types import Engine, Prompt, Rollout, SamplingParams


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one prompt."""

    prompt_id: str
    answers: tuple[str | None, ...]
    """Of each sample, those that mean the same spelled alike; None where there is none."""
    correct: tuple[bool, ...]
    greedy: bool | None
    """Whether the greedy completion is right; None where it was not asked for."""
    tokens: int
    """Generated for this prompt, greedy completion included."""
    truncated: int
    """Samples cut off at max_tokens."""

    @property
    def share(self) -> float:
        return sum(self.correct) / len(self.correct)

    @property
    def majority(self) -> float:
        """Probability that the most frequent answer is right, ties broken at random; 0 without an answer.

        Votes for one answer may be written in ways that are graded differently (0.5 and 1/2 where a decimal is asked
        for): the answer is then right with the share of them that is.
        """
        winners = count_votes(self.answers).winners
        right = [correct for answer, correct in zip(self.answers, self.correct, strict=True) if answer in winners]
        return sum(right) / len(right) if right else 0.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Outcomes of one task's split under one policy version."""

    task: str
    split: str
    policy_version: int
    outcomes: tuple[Outcome, ...]

    @property
    def samples(self) -> int:
        return len(self.outcomes[0].correct)

    @property
    def tokens(self) -> int:
        return sum(outcome.tokens for outcome in self.outcomes)

    def pass_at_1(self) -> Estimate:
        return wilson([outcome.share for outcome in self.outcomes], self.samples)

    def pass_at_n(self) -> Estimate:
        n = self.samples
        return wilson([pass_at_k(n, sum(outcome.correct), n) for outcome in self.outcomes])

    def majority(self) -> Estimate:
        return wilson([outcome.majority for outcome in self.outcomes])

    def greedy(self) -> Estimate | None:
        if self.outcomes[0].greedy is None:
            return None
        return wilson([float(bool(outcome.greedy)) for outcome in self.outcomes])

    def truncated(self) -> float:
        """Share of samples cut off at max_tokens."""
        return sum(outcome.truncated for outcome in self.outcomes) / (len(self.outcomes) * self.samples)

    def metrics(self) -> dict[str, float]:
        """For the tracker."""
        name = f"{self.split}/{self.task}"
        values = {
            f"{name}/pass@1": self.pass_at_1().value,
            f"{name}/pass@{self.samples}": self.pass_at_n().value,
            f"{name}/majority@{self.samples}": self.majority().value,
            f"{name}/truncated": self.truncated(),
        }
        greedy = self.greedy()
        if greedy is not None:
            values[f"{name}/greedy"] = greedy.value
        return values

    def summary(self) -> dict[str, Any]:
        """For summary.json."""
        greedy = self.greedy()
        return {
            "policy_version": self.policy_version,
            "prompts": len(self.outcomes),
            "samples_per_prompt": self.samples,
            "pass@1": asdict(self.pass_at_1()),
            "greedy": asdict(greedy) if greedy else None,
            f"majority@{self.samples}": asdict(self.majority()),
            f"pass@{self.samples}": asdict(self.pass_at_n()),
            "truncated": self.truncated(),
        }

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Evaluation":
        outcomes = tuple(
            Outcome(**{**row, "answers": tuple(row["answers"]), "correct": tuple(row["correct"])})
            for row in data["outcomes"]
        )
        return cls(data["task"], data["split"], data["policy_version"], outcomes)


@dataclass(frozen=True, slots=True)
class Change:
    """The paired difference of two evaluations on the same prompts."""

    pass_at_1: Estimate
    greedy: Estimate | None

    @classmethod
    def between(cls, before: Evaluation, after: Evaluation, *, seed: int) -> "Change":
        """Raises ValueError where the two were not measured on the same prompts in the same order."""
        if [row.prompt_id for row in before.outcomes] != [row.prompt_id for row in after.outcomes]:
            raise ValueError(f"{before.task}: the two evaluations do not cover the same prompts")
        greedy = None
        if before.greedy() is not None and after.greedy() is not None:
            greedy = paired_bootstrap(
                [float(bool(row.greedy)) for row in before.outcomes],
                [float(bool(row.greedy)) for row in after.outcomes],
                seed=seed,
            )
        shares = paired_bootstrap(
            [row.share for row in before.outcomes], [row.share for row in after.outcomes], seed=seed
        )
        return cls(shares, greedy)


def evaluate(
    engine: Engine,
    grader: Grader,
    split: str,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    *,
    samples: int,
    greedy: bool,
    seed: int,
) -> Evaluation:
    """Samples and grades; `sampling.temperature` and `max_tokens` are those of training, `n` is replaced by `samples`.

    Raises:
        ValueError: no prompts.
        EngineError: from the engine.
    """
    if not prompts:
        raise ValueError(f"{grader.task}: no {split} prompts to evaluate on")
    sampled = engine.generate(prompts, replace(sampling, n=samples), seed=seed)
    greedy_rollouts: list[list[Rollout]] = [[] for _ in prompts]
    if greedy:
        greedy_rollouts = engine.generate(prompts, replace(sampling, n=1, temperature=0.0), seed=seed)
    outcomes = tuple(
        _outcome(grader, prompt, group, decoded)
        for prompt, group, decoded in zip(prompts, sampled, greedy_rollouts, strict=True)
    )
    return Evaluation(grader.task, split, engine.version, outcomes)


def _outcome(grader: Grader, prompt: Prompt, group: Sequence[Rollout], decoded: Sequence[Rollout]) -> Outcome:
    return Outcome(
        prompt_id=prompt.id,
        answers=tuple(grader.answers(group)),
        correct=tuple(grader.is_correct(rollout, prompt) for rollout in group),
        greedy=grader.is_correct(decoded[0], prompt) if decoded else None,
        tokens=sum(len(rollout.completion_ids) for rollout in [*group, *decoded]),
        truncated=sum(rollout.truncated for rollout in group),
    )
