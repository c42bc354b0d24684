"""Proximal policy optimisation (arXiv 1707.06347) with per-token advantages from a critic."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlsf.algorithms.additions import NOTHING, Additions
from rlsf.algorithms.base import UpdateResult
from rlsf.algorithms.critic import Critic, ValueTarget
from rlsf.algorithms.gae import AdaptiveKl, generalised_advantages, token_rewards, whiten
from rlsf.algorithms.policy_gradient import PolicyGradient
from rlsf.algorithms.samples import Sample, with_reference
from rlsf.algorithms.update import load_state, refuse_bad_rewards, save_state, seeded
from rlsf.config.algorithms import PpoConfig
from rlsf.experience import Experience, Group
from rlsf.policy import Policy
from rlsf.preferences import opinions, reward_of


@dataclass(frozen=True, slots=True)
class _Estimate:
    """What the critic and the rewards say about one rollout, arrays of shape (T,)."""

    experience: Experience
    values: np.ndarray
    advantages: np.ndarray

    @property
    def target(self) -> ValueTarget:
        return ValueTarget(self.experience, self.values, self.values + self.advantages)


class Ppo:
    """The policy's adapter learns from advantages, the critic's from returns; neither sees the other's gradient.

    Ratios and KL penalties are taken against the policy that sampled, so replayed rollouts count as what they are.
    """

    def __init__(
        self,
        config: PpoConfig,
        policy: Policy,
        *,
        total_steps: int,
        seed: int,
        dump_dir: Path,
        additions: Additions = NOTHING,
    ) -> None:
        self.needs_reference = config.kl_coef > 0 or additions.needs_reference
        self._config = config
        self._policy = policy
        self._dump_dir = dump_dir
        self._kl = AdaptiveKl(config.kl_coef, config.kl_target, config.kl_horizon)
        # "dapo" divides by the tokens of the minibatch: the mean over tokens of PPO's surrogate
        self._learner = PolicyGradient(
            config,
            policy,
            loss="dapo",
            kl_coef=0.0,
            total_steps=total_steps,
            dump_dir=dump_dir,
            additions=additions,
        )
        self._critic = Critic(
            config, policy, total_steps=total_steps * config.value_epochs, seed=seed, dump_dir=dump_dir
        )

    def update(
        self, groups: Sequence[Group], *, iteration: int, seed: int, earlier: Collection[str] = ()
    ) -> UpdateResult:
        """See `Algorithm.update`. Equal rewards carry a signal too: they are compared with the critic's estimate."""
        refuse_bad_rewards(self._dump_dir, f"iteration {iteration}", groups)
        if self.needs_reference:
            groups = with_reference(self._policy, groups)
        kept = {group.id: members for group in groups if (members := opinions(group))}
        metrics = {"train/groups": float(len(kept)), "train/skipped_groups": float(len(groups) - len(kept))}
        if not kept:
            return UpdateResult(metrics, {group.id: 0.0 for group in groups})
        fresh = {group.id: group.iteration == iteration for group in groups}
        estimates = self._estimate(kept)
        metrics |= {"train/kl_coef": self._kl.coef} | _critic_metrics(estimates)
        with seeded(seed), self._policy.training():
            metrics |= self._learner.update(self._samples(estimates, fresh, earlier), iteration=iteration, seed=seed)
            targets = [[estimate.target for estimate in members] for members in estimates.values()]
            metrics |= self._critic.fit(targets, iteration=iteration, seed=seed, backward=self._learner.backward)
        metrics |= self._adapt_kl([e for name, members in kept.items() if fresh[name] for e in members])
        surprise = {
            name: float(np.abs(np.concatenate([estimate.advantages for estimate in members])).mean())
            for name, members in estimates.items()
        }
        return UpdateResult(metrics, {group.id: surprise.get(group.id, 0.0) for group in groups})

    def _estimate(self, kept: Mapping[str, Sequence[Experience]]) -> dict[str, list[_Estimate]]:
        values = iter(self._critic.values([experience for members in kept.values() for experience in members]))
        return {name: [self._estimate_one(e, next(values)) for e in members] for name, members in kept.items()}

    def _estimate_one(self, experience: Experience, values: np.ndarray) -> _Estimate:
        penalty = -self._kl.coef * token_kl(experience) if self.needs_reference else np.zeros(len(values))
        rewards = token_rewards(reward_of(experience), penalty)
        advantages = generalised_advantages(rewards, values, self._config.gamma, self._config.gae_lambda)
        return _Estimate(experience, values, advantages)

    def _samples(
        self, estimates: Mapping[str, Sequence[_Estimate]], fresh: Mapping[str, bool], earlier: Collection[str]
    ) -> list[list[Sample]]:
        rows = [estimate.advantages for members in estimates.values() for estimate in members]
        advantages = iter(whiten(rows) if self._config.whiten_advantages else rows)
        return [
            [Sample(estimate.experience, fresh[name], next(advantages), name in earlier) for estimate in members]
            for name, members in estimates.items()
        ]

    def _adapt_kl(self, fresh: Sequence[Experience]) -> dict[str, float]:
        """Fresh rollouts alone tell where the policy stands now."""
        if not fresh or not self.needs_reference:
            return {}
        kl = float(np.mean([token_kl(experience).sum() for experience in fresh]))
        self._kl.update(kl, len(fresh))
        return {"train/kl_per_completion": kl}

    def lower_rate(self, factor: float) -> None:
        self._learner.lower_rate(factor)

    def forget_moments(self) -> None:
        self._learner.forget_moments()

    def save(self, folder: Path) -> None:
        state = {"policy": self._learner.state_dict(), "critic": self._critic.save(folder), "kl_coef": self._kl.coef}
        save_state(folder, state)

    def load(self, folder: Path) -> None:
        state = load_state(folder)
        self._learner.load_state_dict(state["policy"])
        self._critic.load(folder, state["critic"])
        self._kl.coef = state["kl_coef"]


def _critic_metrics(estimates: Mapping[str, Sequence[_Estimate]]) -> dict[str, float]:
    """Of the critic before the update. The explained variance is left out where the returns do not vary."""
    targets = [estimate.target for members in estimates.values() for estimate in members]
    returns = np.concatenate([target.returns for target in targets])
    values = np.concatenate([target.old_values for target in targets])
    metrics = {"train/value/mean": float(values.mean())}
    if returns.var() > 0:
        metrics["train/value/explained_variance"] = explained_variance(values, returns)
    return metrics


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """1 − Var(R − V) / Var(R): 1 for a perfect critic, 0 for a constant one."""
    return float(1 - (returns - values).var() / returns.var())


def token_kl(experience: Experience) -> np.ndarray:
    """log b − log ref at each token, (T,): the k1 estimate of KL(b ‖ ref), b the policy that sampled."""
    assert experience.reference_logprobs is not None, "with_reference() has filled it in"
    return np.subtract(experience.rollout.logprobs, experience.reference_logprobs)
