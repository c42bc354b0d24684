"""PPO's own parts: advantages, the critic, the KL controller."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rlsf.algorithms.critic import VALUE, clipped_value_errors
from rlsf.algorithms.gae import AdaptiveKl, generalised_advantages, token_rewards, whiten
from rlsf.algorithms.ppo import Ppo, explained_variance, token_kl
from rlsf.algorithms.samples import with_reference
from rlsf.config.algorithms import PpoConfig
from tests.tiny_policy import make_groups, make_policy, perturb, share_of


def test_advantages_match_a_hand_computation():
    """γ = 0.9, λ = 0.5: δ = (−0.1 + 0.9·0.4 − 0.5, 0 + 0.9·0.2 − 0.4, 1 − 0.2) = (−0.24, −0.22, 0.8);
    A₂ = 0.8, A₁ = −0.22 + 0.45·0.8 = 0.14, A₀ = −0.24 + 0.45·0.14 = −0.177."""
    rewards = token_rewards(1.0, np.array([-0.1, 0.0, 0.0]))
    np.testing.assert_allclose(rewards, [-0.1, 0, 1])
    got = generalised_advantages(rewards, np.array([0.5, 0.4, 0.2]), gamma=0.9, lam=0.5)
    np.testing.assert_allclose(got, [-0.177, 0.14, 0.8])


def test_advantages_at_the_ends_of_lambda():
    """λ = 1 is return minus value, λ = 0 the one-step error."""
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=5), rng.normal(size=5)
    returns = [sum(0.8**k * rewards[t + k] for k in range(5 - t)) for t in range(5)]
    np.testing.assert_allclose(generalised_advantages(rewards, values, 0.8, 1.0), returns - values)
    following = np.append(values[1:], 0)
    np.testing.assert_allclose(generalised_advantages(rewards, values, 0.8, 0.0), rewards + 0.8 * following - values)


def test_whitening_is_over_all_tokens():
    rows = whiten([np.array([1.0, 2.0]), np.array([6.0])])
    np.testing.assert_allclose(np.concatenate(rows), (np.array([1, 2, 6]) - 3) / np.sqrt(14 / 3), rtol=1e-6)
    assert [len(row) for row in rows] == [2, 1]


def test_the_kl_coefficient_moves_towards_its_target_by_at_most_a_fifth():
    kl = AdaptiveKl(0.1, target=2.0, horizon=100)
    kl.update(20.0, rollouts=50)  # error clipped to 0.2
    assert kl.coef == pytest.approx(0.1 * (1 + 0.2 * 0.5))
    kl.update(1.8, rollouts=50)  # error −0.1
    assert kl.coef == pytest.approx(0.11 * (1 - 0.1 * 0.5))
    kl.update(0.0, rollouts=10_000)  # a batch far larger than the horizon moves it no further than −20%
    assert kl.coef == pytest.approx(0.11 * (1 - 0.1 * 0.5) * 0.8)
    fixed = AdaptiveKl(0.1, target=None, horizon=100)
    fixed.update(20.0, rollouts=50)
    assert fixed.coef == 0.1


def test_value_errors_are_clipped_towards_the_old_values():
    """Old value 0, clip 0.2. Inside: ½(0.1 − 1)². Outside, nearer the return: the clipped one counts, ½(0.2 − 1)²."""
    errors = clipped_value_errors(torch.tensor([0.1, 0.9, -0.9]), torch.zeros(3), torch.ones(3), clip=0.2)
    torch.testing.assert_close(errors, torch.tensor([0.405, 0.32, 1.805]))


def test_explained_variance():
    returns = np.array([0.0, 1.0, 2.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(np.ones(3), returns) == 0
    assert explained_variance(-returns, returns) == -3


@pytest.fixture
def ppo(tmp_path: Path) -> tuple[Ppo, object]:
    policy = make_policy()
    policy.freeze_reference()
    config = PpoConfig(learning_rate=1e-2, value_learning_rate=1e-2, value_epochs=2, kl_target=0.5, kl_horizon=20)
    return Ppo(config, policy, total_steps=50, seed=0, dump_dir=tmp_path), policy


def test_each_loss_reaches_its_own_adapter_alone(ppo, monkeypatch):
    algorithm, policy = ppo
    perturb(policy, adapter=VALUE)  # else its A matrices have no gradient in the first step
    reached: dict[str, set[str]] = {"policy": set(), "critic": set()}

    def spy(name):
        def backward(loss):
            loss.backward()
            named = [*policy.model.named_parameters(), *algorithm._critic._head.named_parameters("head")]
            reached[name] |= {n.split(".")[-2] for n, p in named if p.grad is not None and p.grad.abs().sum() > 0}

        return backward

    monkeypatch.setattr(algorithm._learner._loss._trainer.accelerator, "backward", spy("policy"))
    fit = algorithm._critic.fit
    monkeypatch.setattr(algorithm._critic, "fit", lambda *a, **k: fit(*a, **{**k, "backward": spy("critic")}))
    algorithm.update(make_groups(policy, share_of(7)), iteration=1, seed=0)
    assert reached == {"policy": {"default"}, "critic": {"value", "head"}}


def test_the_critic_learns_and_the_controller_reacts(ppo):
    algorithm, policy = ppo
    history = []
    for iteration in range(1, 13):
        groups = make_groups(policy, lambda r: float(r.prompt_ids[0] % 2), iteration=iteration, prompts=6, seed=0)
        history.append(algorithm.update(groups, iteration=iteration, seed=iteration).metrics)
    assert history[0]["train/value/mean"] == 0
    assert history[0]["train/value/explained_variance"] == 0
    assert history[-1]["train/value/explained_variance"] > 0.3
    assert history[-1]["train/value/loss"] < history[0]["train/value/loss"]
    assert len({metrics["train/kl_coef"] for metrics in history}) > 6


def test_the_penalty_is_the_gap_to_the_reference_at_each_token(ppo):
    algorithm, policy = ppo
    perturb(policy)
    groups = make_groups(policy, lambda r: 1.0, prompts=1, n=2)  # so large that no advantage's sign is lost below
    rollouts = [e.rollout for e in groups[0].experiences]
    gaps = [
        np.subtract(r.logprobs, reference)
        for r, reference in zip(rollouts, policy.logprobs(rollouts, adapter="reference"), strict=True)
    ]
    result = algorithm.update(groups, iteration=1, seed=0)
    assert result.metrics["train/kl_per_completion"] == pytest.approx(np.mean([gap.sum() for gap in gaps]), rel=1e-4)
    # the critic starts at 0, so the unwhitened advantages are Σ_k λ^k of what is still to come
    rewards = [token_rewards(1.0, -0.02 * gap) for gap in gaps]
    advantages = [
        [sum(0.95 ** (k - t) * row[k] for k in range(t, len(row))) for t in range(len(row))] for row in rewards
    ]
    assert min(map(min, advantages)) > 0
    expected = np.abs(np.concatenate(advantages)).mean()
    assert result.priorities[groups[0].id] == pytest.approx(expected, rel=1e-3)


def test_the_controller_looks_at_fresh_rollouts_alone(ppo):
    """Replayed ones tell where an older policy stood."""
    algorithm, policy = ppo
    perturb(policy)
    fresh = make_groups(policy, lambda r: 1.0, iteration=2, prompts=1, n=2, seed=1)
    alone = np.mean([token_kl(e).sum() for group in with_reference(policy, fresh) for e in group.experiences])
    perturb(policy, scale=3.0)
    replayed = make_groups(policy, lambda r: 1.0, iteration=1, prompts=3, n=2, seed=2)
    result = algorithm.update([*fresh, *replayed], iteration=2, seed=0)
    assert result.metrics["train/kl_per_completion"] == pytest.approx(alone, rel=1e-4)


def test_groups_without_any_reward_are_skipped(ppo):
    algorithm, policy = ppo
    groups = make_groups(policy, lambda r: None)
    result = algorithm.update(groups, iteration=1, seed=0)
    assert result.metrics["train/skipped_groups"] == len(groups)
    assert set(result.priorities.values()) == {0.0}
