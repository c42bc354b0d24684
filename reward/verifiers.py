"""Grades an answer against what is known to be right. Verifiers see labels; a self-feedback reward must never
hold one."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from reward.answers import answer_in_rollout, canonical_answer
from reward.config import AnswerConfig, VerifierConfig
from reward.expressions import same_expression, stated_number
from reward.numerals import bare_number, canonical_number, number_value
from reward.types import RewardError
from rollouts.types import Prompt, Rollout


@dataclass(frozen=True, slots=True)
class Grade:
    """What an answer is worth."""

    value: float
    """In [0, 1]; between the two only where the verifier gives partial credit."""
    correct: bool
    """Whether it counts as right in an accuracy."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """The answer, the reference, and what the verifier made of them. JSON-serialisable."""


class Verifier(Protocol):
    """Grades answers to prompts that carry labels."""

    @property
    def answer(self) -> AnswerConfig:
        """Where the answers stand that it grades."""
        ...

    def grade(self, answer: Rollout | str | None, prompt: Prompt) -> Grade:
        """A rollout is graded by the answer in it, as written; a string is an answer found already; None, and
        a rollout without an answer, is wrong.

        Raises:
            RewardError: the prompt lacks the label that this verifier needs, or the label cannot be read.
        """
        ...


def make_verifier(config: VerifierConfig, answer: AnswerConfig) -> Verifier:
    """The verifier that the config names, for answers that stand where `answer` says."""
    match config.kind:
        case "exact":
            return ExactVerifier(answer)
        case "numeric":
            return NumericVerifier(answer, config.tolerance)
        case "math":
            return MathVerifier(answer)
        case "reasoning_gym":
            return ReasoningGymVerifier(answer)
        case "auto":
            return AutoVerifier(answer, config.tolerance)


class AnswerVerifier(ABC):
    """What all verifiers share: find the answer, and grade none as wrong."""

    def __init__(self, answer: AnswerConfig) -> None:
        self._answer = answer

    @property
    def answer(self) -> AnswerConfig:
        return self._answer

    def grade(self, answer: Rollout | str | None, prompt: Prompt) -> Grade:
        if isinstance(answer, Rollout):
            answer = answer_in_rollout(answer, self.answer)
        if not answer:
            return Grade(0.0, False, {"answer": None})
        return self._grade(answer, prompt)

    @abstractmethod
    def _grade(self, answer: str, prompt: Prompt) -> Grade: ...


class ExactVerifier(AnswerVerifier):
    """Equal canonical spellings: 12 and 12.0 agree, "Paris" and " paris" too."""

    def _grade(self, answer: str, prompt: Prompt) -> Grade:
        reference = _reference(prompt, "exact")
        correct = canonical_answer(answer, self.answer) == canonical_answer(reference, self.answer)
        return Grade(float(correct), correct, {"answer": answer, "reference": reference})


class NumericVerifier(AnswerVerifier):
    """Equal numbers. Integers must be equal exactly; otherwise |answer − reference| ≤ tolerance ·
    |reference|, or ≤ tolerance where the reference itself is smaller than that. A fraction must be the
    reference's own: 7/2 is no answer to "what is 7/2?"."""

    def __init__(self, answer: AnswerConfig, tolerance: float = 1e-6) -> None:
        super().__init__(answer)
        self.tolerance = tolerance

    def _grade(self, answer: str, prompt: Prompt) -> Grade:
        reference = _reference(prompt, "numeric")
        right, written = stated_number(reference), bare_number(answer)
        given = None if written is None else canonical_number(written)
        if right is None:
            raise RewardError(
                f"prompt {prompt.id!r}: the reference {reference!r} is no number; use verifier kind exact, math or auto"
            )
        correct = given is not None and self._equal(given, right)
        return Grade(float(correct), correct, {"answer": answer, "number": given, "reference": reference})

    def _equal(self, given: str, right: str) -> bool:
        if "/" in given or given == right:
            return given == right
        a, b = number_value(given), number_value(right)
        if a.denominator == b.denominator == 1:
            return a == b
        limit = self.tolerance * abs(b) if abs(b) > self.tolerance else self.tolerance
        return abs(a - b) <= limit


class MathVerifier(AnswerVerifier):
    """math-verify's equality of expressions (LaTeX or plain), for answers that are finished; see
    `expressions.same_expression`."""

    def _grade(self, answer: str, prompt: Prompt) -> Grade:
        reference = _reference(prompt, "math")
        verdict = same_expression(reference, answer)
        if verdict.equal is None:
            raise RewardError(f"prompt {prompt.id!r}: math-verify cannot read the reference {reference!r}")
        evidence: dict[str, Any] = {"answer": answer, "reference": reference, "parsed": verdict.parsed}
        if verdict.note:
            evidence["note"] = verdict.note
        return Grade(float(verdict.equal), verdict.equal, evidence)


class ReasoningGymVerifier(AnswerVerifier):
    """The data set's own scorer. `Prompt.grading` holds `dataset` (its name), `entry` (the problem as
    generated, as JSON), and `params` where the data set's config was not the default.

    An answer with the canonical spelling of the entry's own answer gets full marks whatever its spelling, so
    that answers that count as one vote get one grade. Where a data set has no scorer of its own,
    reasoning-gym gives credit to any text that contains the answer; that credit is not passed on: every
    longer number would earn it.
    """

    def _grade(self, answer: str, prompt: Prompt) -> Grade:
        dataset, entry = prompt.grading.get("dataset"), prompt.grading.get("entry")
        if not isinstance(dataset, str) or not isinstance(entry, Mapping):
            raise RewardError(
                f"prompt {prompt.id!r}: the reasoning_gym verifier needs `dataset` and `entry` in its grading; "
                "it works on prompts from a reasoning_gym source that kept their labels"
            )
        oracle = entry.get("answer")
        evidence: dict[str, Any] = {"answer": answer, "reference": oracle, "scorer": dataset}
        if isinstance(oracle, str) and canonical_answer(answer, self.answer) == canonical_answer(oracle, self.answer):
            return Grade(1.0, True, evidence)
        scorer = _gym_dataset(dataset, json.dumps(dict(prompt.grading.get("params", {})), sort_keys=True))
        if type(scorer).score_answer is _default_score_answer():
            return Grade(0.0, False, evidence)
        try:
            value = float(scorer.score_answer(answer, entry))
        except Exception as error:
            # Some scorers raise on an answer they cannot parse. If the entry's own answer goes through, the scorer
            # works and the answer is at fault: wrong, for a reason the evidence states.
            try:
                scorer.score_answer(oracle if oracle is not None else "", entry)
            except Exception:
                raise RewardError(
                    f"prompt {prompt.id!r}: reasoning-gym's scorer of {dataset!r} failed on its own entry: {error!r}"
                ) from error
            return Grade(0.0, False, evidence | {"note": f"unreadable to the scorer: {error!r}"})
        if not 0.0 <= value <= 1.0:
            raise RewardError(
                f"prompt {prompt.id!r}: reasoning-gym's scorer of {dataset!r} gave {value}, not in [0, 1]"
            )
        return Grade(value, value >= 1.0, evidence | {"score": value})


class AutoVerifier(AnswerVerifier):
    """reasoning_gym where the prompt comes from it; else numeric where the reference is a number and the
    answer may be one; else exact."""

    def __init__(self, answer: AnswerConfig, tolerance: float = 1e-6) -> None:
        super().__init__(answer)
        self._gym = ReasoningGymVerifier(answer)
        self._numeric = NumericVerifier(answer, tolerance)
        self._exact = ExactVerifier(answer)

    def _grade(self, answer: str, prompt: Prompt) -> Grade:
        if "dataset" in prompt.grading:
            return self._gym.grade(answer, prompt)
        if self.answer.kind not in ("text", "choice") and stated_number(_reference(prompt, "auto")) is not None:
            return self._numeric.grade(answer, prompt)
        return self._exact.grade(answer, prompt)


def _reference(prompt: Prompt, verifier: str) -> str:
    if prompt.reference is None:
        raise RewardError(f"prompt {prompt.id!r} has no reference answer; the {verifier} verifier needs one")
    return prompt.reference


def _default_score_answer() -> Any:
    from reasoning_gym.dataset import ProceduralDataset

    return ProceduralDataset.score_answer


@cache
def _gym_dataset(name: str, params: str) -> Any:
    """A data set made for its scorer alone: no problem is generated. `params` is JSON, so that it can be a
    cache key."""
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(name, **json.loads(params))
    except (ValueError, TypeError, AssertionError) as error:
        raise RewardError(f"reasoning-gym data set {name!r} with {params}: {error}") from error
