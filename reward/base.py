"""What every reward of this package shares: it gets no more than it declares, and nothing but scores comes
out."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from reward.types import Need, Reward, RewardContext, RewardError, Score
from rollouts.types import Prompt, Rollout

Groups = Sequence[Sequence[Rollout]]

SERVICES: tuple[Need, ...] = ("engine", "writers", "token_stats", "likelihood", "answer_tokens")
"""Of a context, which a reward gets if it declares them."""
LARGEST = 1e9
"""Of a reward's size: beyond it, squares and sums over a run would lose what smaller rewards say."""


class BaseReward(ABC):
    """A `Reward` with the checks done. Subclasses write `_score`; most of them are without state."""

    name: str
    needs: frozenset[Need] = frozenset()

    def score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        """See `Reward.score`."""
        scores = self._score(groups, restrict(context, self))
        check_scores(self.name, groups, scores)
        return scores

    @abstractmethod
    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]: ...

    def state(self) -> dict[str, Any]:
        """What a resumed run must restore, as JSON. Empty for a reward without memory."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take over what `state` returned."""


class RolloutReward(BaseReward):
    """A reward that looks at one rollout at a time."""

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        return [[self._score_one(rollout, context) for rollout in group] for group in groups]

    @abstractmethod
    def _score_one(self, rollout: Rollout, context: RewardContext) -> Score: ...


def check_scores(name: str, groups: Groups, scores: Sequence[Sequence[Score]]) -> None:
    """Raises RewardError where a score is missing, is not finite, or has evidence that is no JSON."""
    if [len(group) for group in scores] != [len(group) for group in groups]:
        raise RewardError(f"reward {name!r} did not return one score per rollout, in the shape of the groups")
    for group, group_scores in zip(groups, scores, strict=True):
        for rollout, score in zip(group, group_scores, strict=True):
            _check(name, rollout, score)


def restrict(context: RewardContext, reward: Reward) -> RewardContext:
    """The context with only what `reward` declares; labels go only to those that declare `reference`.

    Raises:
        RewardError: the context lacks what the reward needs.
    """
    for need in SERVICES:
        if need in reward.needs and getattr(context, need) is None:
            raise RewardError(f"reward {reward.name!r} needs {need!r}, which the context does not provide")
    prompts = context.prompts
    if "reference" not in reward.needs:
        prompts = {key: prompt.without_labels() for key, prompt in prompts.items()}
    kept: dict[str, Any] = {need: getattr(context, need) if need in reward.needs else None for need in SERVICES}
    return replace(context, prompts=prompts, **kept)


def prompt_of(rollout: Rollout, context: RewardContext) -> Prompt:
    """Raises RewardError where the context lacks the rollout's prompt."""
    try:
        return context.prompts[rollout.prompt_id]
    except KeyError:
        raise RewardError(f"rollout {rollout.id!r}: its prompt {rollout.prompt_id!r} is not in the context") from None


def _check(name: str, rollout: Rollout, score: Score) -> None:
    for part, value in {"value": score.value, **score.components}.items():
        if value is not None and not abs(value) <= LARGEST:
            raise RewardError(
                f"reward {name!r} gave rollout {rollout.id!r} a {part} of {value}; a reward must be finite, and no "
                f"larger than {LARGEST:g}"
            )
    try:
        json.dumps(score.evidence, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise RewardError(f"reward {name!r}: the evidence for rollout {rollout.id!r} is no JSON: {error}") from error
