"""The trainer's model over one batch of rollouts: whoever asks, each adapter runs over them once."""

from collections.abc import Sequence

import numpy as np

from reward.types import TokenStats, Which
from rlsf.policy import POLICY, REFERENCE, Policy
from rollouts.types import Rollout


class TokenPass:
    """Remembers what the forward pass of each adapter said about each rollout.

    Signals that need the whole vocabulary (self-certainty, entropy, the top-two gap) share the policy's pass; where
    they look at the reference, theirs yields the reference log-probabilities for training as well.
    """

    def __init__(self, policy: Policy, temperature: float) -> None:
        """`temperature`: at which the rollouts were sampled; it divides the logits."""
        self._policy = policy
        self._temperature = temperature
        self._known: dict[tuple[Which, str], TokenStats] = {}

    def stats(self, rollouts: Sequence[Rollout], which: Which = "policy") -> list[TokenStats]:
        """One entry per rollout. Until the reference is frozen, the policy stands for it."""
        missing = {rollout.id: rollout for rollout in rollouts if (which, rollout.id) not in self._known}
        if missing:
            adapter = REFERENCE if which == "reference" and self._policy.has_reference else POLICY
            found = self._policy.token_stats(list(missing.values()), adapter=adapter, temperature=self._temperature)
            self._known |= {(which, id): stats for id, stats in zip(missing, found, strict=True)}
        return [self._known[which, rollout.id] for rollout in rollouts]

    def reference_logprobs(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """Log-probability (nats) of each completion token under the reference: from `stats` where it has them."""
        if self._policy.has_reference and all(("reference", rollout.id) in self._known for rollout in rollouts):
            return [self._known["reference", rollout.id].logprob for rollout in rollouts]
        rows = self._policy.logprobs(rollouts, adapter=REFERENCE, temperature=self._temperature)
        return [np.asarray(row) for row in rows]
