"""Weights of samples by how likely and how good they are."""

from collections.abc import Sequence

import numpy as np

from rlsf.algorithms.additions import SampleWeight
from rlsf.config.strategies import CppoConfig
from rlsf.experience import Experience


def cppo_weights(config: CppoConfig, experiences: Sequence[Experience]) -> dict[str, SampleWeight]:
    """Weights of the samples of one update, by rollout id (after CPPO, ICLR 2024, openreview 86zAUE80pP).

    A sample's likelihood is the mean log-probability of its tokens under the policy that sampled it. With "high" and
    "low" beyond `spread` deviations from the mean over the batch:

    | likelihood | reward | what it is | learning | retention |
    | --- | --- | --- | --- | --- |
    | high | high | knowledge | more | more |
    | high | low | an ingrained mistake | more | less |
    | low | high | a lucky find | more | less |
    | low | low | noise | less | less |
    | else | | | 1 | 1 |

    Retention is multiplied with `coef`. Samples without a reward or a token are left out. The statistics are of this
    batch, never of the one before.
    """
    known = [e for e in experiences if e.score.value is not None and e.rollout.completion_ids]
    if not known:
        return {}
    likelihoods = _levels([float(np.mean(e.rollout.logprobs)) for e in known], config.spread)
    rewards = _levels([float(e.score.value or 0.0) for e in known], config.spread)
    return {
        e.rollout.id: _weight(config, likely, good) for e, likely, good in zip(known, likelihoods, rewards, strict=True)
    }


def _levels(values: Sequence[float], spread: float) -> list[int]:
    """1 where high, −1 where low, else 0; all 0 where the values do not differ."""
    array = np.array(values)
    if np.ptp(array) <= 1e-9 * np.abs(array).max():  # the deviation of equal numbers is seldom exactly 0
        return [0] * len(values)
    distances = (array - array.mean()) / array.std()
    return [int(d >= spread) - int(d <= -spread) for d in distances]


def _weight(config: CppoConfig, likely: int, good: int) -> SampleWeight:
    if 0 in (likely, good):
        return SampleWeight(1.0, config.coef)
    if likely < 0 and good < 0:
        return SampleWeight(config.less, config.less * config.coef)
    keep = config.more if likely > 0 and good > 0 else config.less
    return SampleWeight(config.more, keep * config.coef)
