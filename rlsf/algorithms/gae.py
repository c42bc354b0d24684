"""Per-token rewards and advantages of one rollout. Plain numpy, one completion of T tokens at a time."""

import numpy as np


def token_rewards(score: float, penalty: np.ndarray) -> np.ndarray:
    """The penalty at every token, (T,), and the score on top of the last one's."""
    rewards = penalty.copy()
    rewards[-1] += score
    return rewards


def generalised_advantages(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """A_t = Σ_k (γλ)^k δ_{t+k} with δ_t = r_t + γ V_{t+1} − V_t and V_T = 0 (arXiv 1506.02438, eq. 16): (T,).

    Args:
        rewards: (T,), r_t for the token t.
        values: (T,), V_t of the state in which token t is chosen.
    """
    advantages = np.zeros(len(rewards))
    running, next_value = 0.0, 0.0
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * next_value - values[t]
        running = delta + gamma * lam * running
        advantages[t] = running
        next_value = values[t]
    return advantages


def whiten(rows: list[np.ndarray]) -> list[np.ndarray]:
    """All values of all rows shifted and scaled to mean 0 and (population) deviation 1."""
    values = np.concatenate(rows)
    return [(row - values.mean()) / (values.std() + 1e-8) for row in rows]


class AdaptiveKl:
    """Moves the penalty's coefficient towards a KL target (arXiv 1909.08593, eq. 6-7; its code scales by the horizon):

    coef ← coef · (1 + clip(KL/target − 1, −0.2, 0.2) · min(rollouts/horizon, 1)). Without a target it stays as it is.
    """

    def __init__(self, coef: float, target: float | None, horizon: int) -> None:
        self.coef = coef
        self._target = target
        self._horizon = horizon

    def update(self, kl: float, rollouts: int) -> None:
        """`kl` in nats per completion, measured over `rollouts` of them."""
        if self._target is not None:
            error = min(max(kl / self._target - 1, -0.2), 0.2)
            self.coef *= 1 + error * min(rollouts / self._horizon, 1.0)  # never below 0, however large the batch
