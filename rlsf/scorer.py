"""Hands a reward what it declares, and nothing more."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reward.base import BaseReward
from reward.types import Lesson, NoQuestionFitsError, RewardContext, Score, raise_error
from rlsf.answer_tokens import answer_tokens
from rlsf.evaluation.grading import Grader
from rollouts.types import Engine, Prompt, Rollout

if TYPE_CHECKING:  # a reward that needs no model should not wait for torch
    from rlsf.policy import Policy
    from rlsf.token_pass import TokenPass
    from rlsf.writers import Writers


@dataclass(frozen=True)
class Scored:
    """What scoring a batch gave."""

    scores: list[list[Score]]
    counts: Mapping[str, float]
    """What the reward counted: replies asked for, replies that could not be read, tokens spent."""
    metrics: Mapping[str, float]
    """What the reward logged besides, averaged."""
    lessons: Sequence[Lesson]
    """What it found worth learning besides."""
    tokens: "TokenPass | None"
    """The forward passes that it took; None without a policy."""


class Scorer:
    """A reward and what it may need: labels, engine, writers, the trainer's model. A run has one, and so has
    `rlsf score`."""

    def __init__(
        self,
        reward: BaseReward,
        graders: Mapping[str, Grader],
        policy: "Policy | None",
        engine: Engine | None,
        *,
        count_tokens: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        """`policy` and `engine` may be missing where `reward` needs neither; where it does, it says so itself.

        Args:
            count_tokens: told how many tokens models beside the engine generate.
        """
        self.reward = reward
        self._graders = graders
        self._policy = policy
        self._engine = engine
        self._writers = _writers(policy, engine, count_tokens) if policy is not None and engine is not None else None

    def score(
        self,
        prompts: Sequence[Prompt],
        rollouts: Sequence[Sequence[Rollout]],
        *,
        task: str,
        temperature: float,
        iteration: int,
        seed: int,
        none_fits: Callable[[NoQuestionFitsError], object] = raise_error,
    ) -> Scored:
        """Scores one group per prompt, all of one task.

        Args:
            temperature: at which the rollouts were sampled.
            none_fits: see `RewardContext.none_fits`.

        Raises:
            RewardError: from the reward.
        """
        tokens = _token_pass(self._policy, temperature) if self._policy is not None else None
        counts: Counter[str] = Counter()
        logged: defaultdict[str, list[float]] = defaultdict(list)
        lessons: list[Lesson] = []
        context = self._context(prompts, task, iteration, seed, tokens, counts, logged, lessons)
        scores = self.reward.score(rollouts, replace(context, none_fits=none_fits))
        metrics = {name: sum(values) / len(values) for name, values in logged.items()}
        return Scored(scores, counts, metrics, lessons, tokens)

    def _context(
        self,
        prompts: Sequence[Prompt],
        task: str,
        iteration: int,
        seed: int,
        tokens: "TokenPass | None",
        counts: Counter[str],
        logged: defaultdict[str, list[float]],
        lessons: list[Lesson],
    ) -> RewardContext:
        grader, policy, needs = self._graders[task], self._policy, self.reward.needs
        visible = prompts if "reference" in needs else [prompt.without_labels() for prompt in prompts]

        def count(name: str, amount: float) -> None:
            counts[name] += amount  # type: ignore[assignment]

        return RewardContext(
            prompts={prompt.id: prompt for prompt in visible},
            extract=grader.extract,
            equivalent=grader.equivalent,
            iteration=iteration,
            seed=seed,
            engine=self._engine if "engine" in needs else None,
            writers=self._writers if "writers" in needs else None,
            token_stats=tokens.stats if tokens is not None else None,
            likelihood=policy.likelihood if policy is not None else None,
            answer_tokens=(lambda rollout: answer_tokens(policy.tokenizer, rollout, grader.answer_config))
            if policy is not None
            else None,
            count=count,
            log_metric=lambda name, value: logged[name].append(value),
            teach=lessons.append,
        )

    def close(self) -> None:
        """Free the writers' models."""
        if self._writers is not None:
            self._writers.close()


def _writers(policy: "Policy", engine: Engine, count_tokens: Callable[[int], None]) -> "Writers":
    from rlsf.writers import Writers

    return Writers(policy, engine.max_model_len, count_tokens)


def _token_pass(policy: "Policy", temperature: float) -> "TokenPass":
    from rlsf.token_pass import TokenPass

    return TokenPass(policy, temperature)
