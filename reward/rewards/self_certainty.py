"""How far the policy's own predictions are from uniform (Intuitor, arXiv 2505.19590)."""

import numpy as np

from reward.base import BaseReward, Groups
from reward.types import Need, RewardContext, RewardError, Score


class SelfCertaintyReward(BaseReward):
    """Mean over the completion's tokens of KL(uniform ‖ p), in nats (eq. 2). No opinion on an empty
    completion."""

    name = "self_certainty"
    needs: frozenset[Need] = frozenset({"token_stats"})

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        assert context.token_stats is not None
        rollouts = [rollout for group in groups for rollout in group]
        stats = context.token_stats(rollouts)
        if len(stats) != len(rollouts):
            raise RewardError(f"token_stats returned {len(stats)} entries for {len(rollouts)} rollouts")
        scores = []
        for rollout, stat in zip(rollouts, stats, strict=True):
            certainty = np.asarray(stat.self_certainty, dtype=np.float64)
            if certainty.shape != (len(rollout.completion_ids),):
                raise RewardError(
                    f"rollout {rollout.id!r}: token_stats cover {certainty.shape} tokens, the completion has "
                    f"{len(rollout.completion_ids)}"
                )
            scores.append(_score(certainty))
        remaining = iter(scores)
        return [[next(remaining) for _ in group] for group in groups]


def _score(certainty: np.ndarray) -> Score:
    if certainty.size == 0:
        return Score(None, {}, {"tokens": 0})
    value = float(certainty.mean())
    evidence = {
        "tokens": certainty.size,
        "least_certain_token": int(certainty.argmin()),
        "least": float(certainty.min()),
    }
    return Score(value, {"self_certainty": value}, evidence)
