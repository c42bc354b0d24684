"""The contract between a reward and whoever calls it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from reward.config.writers import FrozenWriterConfig, LocalWriterConfig
from rollouts.types import Engine, Prompt, Rollout, SamplingParams

Need = Literal["engine", "writers", "token_stats", "likelihood", "answer_tokens", "reference"]
Which = Literal["policy", "reference"]
"""The policy that wrote the rollouts, or the frozen reference."""


class RewardError(RuntimeError):
    """A reward raised, or returned something that is no reward. The message names the rollout that broke it."""


class NoQuestionFitsError(RewardError):
    """Not one of the questions put to a model fits its context."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a rollout earned, and why."""

    value: float | None
    """The reward; None is "no opinion" and is left out of the group's statistics."""
    components: Mapping[str, float] = field(default_factory=dict)
    """The named parts that `value` was made of, before weights."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Votes, critique, judge's words, parsed answer, grade: whatever a person needs to see why. JSON-serialisable."""
    unasked: bool = False
    """Whether the value is that of a completion which states no answer, so that nobody was asked about it."""


@dataclass(frozen=True, slots=True)
class TokenStats:
    """The policy's own distribution at each completion token, at the sampling temperature: arrays of shape (T,),
    in nats where nothing else is said."""

    logprob: np.ndarray
    """log p of the token that was sampled."""
    entropy: np.ndarray
    """−Σ p log p."""
    self_certainty: np.ndarray
    """KL(uniform ‖ p) = logsumexp(z) − mean(z) − log V (Intuitor, arXiv 2505.19590, eq. 2)."""
    top_gap: np.ndarray
    """Largest minus second largest probability, in [0, 1] (CoT-decoding, arXiv 2402.10200, eq. 1)."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a writer answered to one question, once."""

    text: str
    truncated: bool = False
    """Cut off at `max_tokens`."""
    tokens: int = 0
    """Generated for it."""
    failure: str | None = None
    """Why there is no reply (a timeout, a refused connection); `text` is empty then."""
    rollout: Rollout | None = None
    """The reply with its tokens, where an engine of ours wrote it."""


class Writer(Protocol):
    """Answers questions in words: judgements, critiques, revisions."""

    def ask(
        self, questions: Sequence[Prompt], sampling: SamplingParams, *, seed: int, json_schema: Mapping[str, Any] | None
    ) -> list[list[Reply] | None]:
        """`sampling.n` replies to each question (one where the temperature is 0); None for a question that does not
        fit the context.

        Args:
            json_schema: what each reply should look like. A writer that can constrain its output does; others ignore
                it, so readers must check.

        Raises:
            NoQuestionFitsError: not one does.
            RewardError: the writer is out of reach for good.
            EngineError: the engine is dead.
        """
        ...


@dataclass(frozen=True)
class Lesson:
    """Something besides the scores that a reward found worth learning from: one more scored group."""

    kind: Literal["critique", "revision", "judgement"]
    prompt: Prompt
    """Without labels."""
    rollouts: tuple[Rollout, ...]
    """Answers to `prompt`, with `prompt_ids` as it is rendered."""
    scores: tuple[Score, ...]
    on_policy: bool
    """Whether the policy sampled every rollout from exactly this prompt. Where it did not (a revision was written with
    the critique in sight), the log-probabilities are not those of sampling it: such a group makes preference pairs and
    SFT targets, and no policy gradient."""


def _ignore_number(name: str, number: float) -> None:
    pass


def _ignore_lesson(lesson: Lesson) -> None:
    pass


def raise_error(error: RewardError) -> None:
    """A `RewardContext.none_fits` for which it is an error."""
    raise error


@dataclass(frozen=True)
class RewardContext:
    """What a reward may use. The caller fills in only what the reward declares in `needs`; the rest is None."""

    prompts: Mapping[str, Prompt]
    """By prompt id. Without labels unless the reward needs `reference`."""
    extract: Callable[[Rollout], str | None]
    """The task's answer in a rollout; None where it has none (truncated, or nothing that looks like an answer)."""
    iteration: int = 0
    seed: int = 0
    """Derive every random choice from it."""
    engine: Engine | None = None
    """Serves the policy that wrote the rollouts: for judging and reflecting."""
    writers: Callable[[FrozenWriterConfig | LocalWriterConfig], Writer] | None = None
    """Models beside the engine: the frozen copy of the policy, and others on this machine."""
    token_stats: Callable[[Sequence[Rollout], Which], list[TokenStats]] | None = None
    """Teacher-forced statistics. Asked for twice, they are computed once."""
    likelihood: Callable[[Sequence[Prompt], Sequence[str], Which], np.ndarray] | None = None
    """(questions, continuations): log-probability (nats, temperature 1) of each continuation of each question; NaN for
    a question that does not fit the model's context."""
    answer_tokens: Callable[[Rollout], tuple[int, int] | None] | None = None
    """First and one past the last completion token of the answer that `extract` finds; None where it has none."""
    equivalent: Callable[[Sequence[str]], list[int]] | None = None
    """A cluster number for each of some distinct answers to one prompt: equal numbers for answers that mean the same.
    None: answers are the same where `extract` spells them alike."""
    count: Callable[[str, float], None] = _ignore_number
    """Adds to a named counter of this round of scoring: replies asked for, replies that could not be read, tokens
    spent. They become metrics."""
    log_metric: Callable[[str, float], None] = _ignore_number
    """A number about this round of scoring, for metrics.jsonl and the trackers; what is logged several times is
    averaged."""
    teach: Callable[[Lesson], None] = _ignore_lesson
    """Hands over something to learn from besides the scores."""
    none_fits: Callable[[NoQuestionFitsError], object] = raise_error
    """Told where not one of the questions that a reward puts to a model fits its context. Where this returns, they are
    left out like single ones that do not fit."""


class Reward(Protocol):
    """Scores groups of rollouts. All rollouts of a group answer the same prompt."""

    name: str
    needs: frozenset[Need]

    def score(self, groups: Sequence[Sequence[Rollout]], context: RewardContext) -> list[list[Score]]:
        """One score per rollout, in the same shape as `groups`.

        Raises:
            RewardError: with the id of the rollout that broke it.
        """
        ...
