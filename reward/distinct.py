"""Scoring each different answer once."""

from collections.abc import Callable, Sequence

from reward.base import Groups
from reward.types import RewardContext, Score
from rollouts.types import Rollout

SILENT = "nobody was asked: no completion of this prompt states an answer (answer.kind says where answers stand)"


def score_distinct(
    name: str, groups: Groups, context: RewardContext, score: Callable[[Sequence[Rollout]], Sequence[Score]]
) -> list[list[Score]]:
    """Scores of whole groups from those of the different completions in them: equal ones to one prompt are asked about
    once. A rollout without an answer earns 0 unasked, there being nothing to grade; where nobody in the group has one
    there is no opinion, since the setting that says where answers stand may be wrong. Counts the "unanswered".

    Args:
        name: of the component.
        score: one score per rollout; called once, if at all.
    """
    answered = {rollout.id for group in groups for rollout in group if context.extract(rollout) is not None}
    distinct: dict[tuple[str, str], Rollout] = {}
    for rollout in (rollout for group in groups for rollout in group if rollout.id in answered):
        distinct.setdefault(_key(rollout), rollout)
    if unanswered := sum(map(len, groups)) - len(answered):
        context.count("unanswered", unanswered)
    scored = dict(zip(distinct, score(list(distinct.values())), strict=True)) if distinct else {}
    silent = Score(None, {}, {"note": SILENT})
    unasked = Score(0.0, {name: 0.0}, {"note": "no answer to grade"}, unasked=True)
    return [
        [scored[_key(rollout)] if rollout.id in answered else unasked for rollout in group]
        if any(rollout.id in answered for rollout in group)
        else [silent] * len(group)
        for group in groups
    ]


def _key(rollout: Rollout) -> tuple[str, str]:
    return rollout.prompt_id, rollout.text
