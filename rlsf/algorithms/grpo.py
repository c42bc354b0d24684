"""Group-relative policy optimisation (DeepSeekMath, arXiv 2402.03300; Dr. GRPO, 2503.20783; DAPO, 2503.14476)."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from rlsf.algorithms.additions import NOTHING, Additions
from rlsf.algorithms.base import UpdateResult
from rlsf.algorithms.policy_gradient import PolicyGradient
from rlsf.algorithms.samples import Sample, with_reference
from rlsf.algorithms.update import load_state, refuse_bad_rewards, save_state, seeded
from rlsf.config.algorithms import GrpoConfig
from rlsf.experience import Experience, Group
from rlsf.policy import Policy
from rlsf.preferences import opinions, reward_of

_STD_EPSILON = 1e-4
"""Added to the deviation, as TRL does."""


class Grpo:
    """Each rollout's advantage is its reward compared with its own group's."""

    def __init__(
        self, config: GrpoConfig, policy: Policy, *, total_steps: int, dump_dir: Path, additions: Additions = NOTHING
    ) -> None:
        self.needs_reference = config.kl_coef > 0 or additions.needs_reference
        self._config = config
        self._policy = policy
        self._dump_dir = dump_dir
        self._learner = PolicyGradient(
            config,
            policy,
            loss=config.loss,
            kl_coef=config.kl_coef,
            total_steps=total_steps,
            dump_dir=dump_dir,
            additions=additions,
        )

    def update(
        self, groups: Sequence[Group], *, iteration: int, seed: int, earlier: Collection[str] = ()
    ) -> UpdateResult:
        """See `Algorithm.update`. A group with fewer than two rewards, or with equal ones, carries no signal."""
        refuse_bad_rewards(self._dump_dir, f"iteration {iteration}", groups)
        if self.needs_reference:
            groups = with_reference(self._policy, groups)
        kept = {group.id: members for group in groups if (members := opinions(group))}
        fresh = {group.id: group.iteration == iteration for group in groups}
        rewards = {name: np.array([reward_of(e) for e in members]) for name, members in kept.items()}
        scaled = group_advantages(list(rewards.values()), self._config.scale_rewards)
        samples = [
            [
                Sample(e, fresh[name], np.full(len(e.rollout.completion_ids), advantage), name in earlier)
                for e, advantage in zip(kept[name], advantages, strict=True)
            ]
            for name, advantages in zip(kept, scaled, strict=True)
            if has_signal(kept[name])
        ]
        with seeded(seed), self._policy.training():
            metrics = self._learner.update(samples, iteration=iteration, seed=seed)
        metrics |= {
            "train/groups": float(len(samples)),
            "train/skipped_groups": float(len(groups) - len(samples)),
        }
        spread = {name: float(np.abs(values - values.mean()).mean()) for name, values in rewards.items()}
        return UpdateResult(metrics, {group.id: spread.get(group.id, 0.0) for group in groups})

    def lower_rate(self, factor: float) -> None:
        self._learner.lower_rate(factor)

    def forget_moments(self) -> None:
        self._learner.forget_moments()

    def save(self, folder: Path) -> None:
        save_state(folder, self._learner.state_dict())

    def load(self, folder: Path) -> None:
        self._learner.load_state_dict(load_state(folder))


def has_signal(members: Sequence[Experience]) -> bool:
    return len({reward_of(e) for e in members}) > 1


def group_advantages(rewards: Sequence[np.ndarray], scale: str) -> list[np.ndarray]:
    """(r − mean of the group) / (deviation + 1e-4), as TRL computes it.

    Args:
        rewards: (n_g,) of each group.
        scale: which deviation: of the "group", of the whole "batch", or "none" (nothing is divided). It is the sample
            deviation, over n − 1.
    """
    centred = [values - values.mean() for values in rewards]
    if scale == "none":
        return centred
    if scale == "batch":
        batch = _deviation(np.concatenate(rewards)) if rewards else 0.0
        return [values / (batch + _STD_EPSILON) for values in centred]
    return [c / (_deviation(r) + _STD_EPSILON) for c, r in zip(centred, rewards, strict=True)]


def _deviation(values: np.ndarray) -> float:
    """Of the sample; a single value has none."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
