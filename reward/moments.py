"""Mean and deviation of values that arrive batch by batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared deviations, merged batch by batch (Chan, Golub & LeVeque 1979)."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def merged(self, values: Sequence[float]) -> "Moments":
        if not values:
            return self
        batch = np.asarray(values, dtype=np.float64)
        count = self.count + batch.size
        delta = float(batch.mean()) - self.mean
        m2 = self.m2 + float(((batch - batch.mean()) ** 2).sum()) + delta**2 * self.count * batch.size / count
        return Moments(count, self.mean + delta * batch.size / count, m2)

    def standardize(self, value: float) -> float:
        """0 where the values differ by no more than rounding."""
        deviation = math.sqrt(self.m2 / (self.count - 1)) if self.count > 1 else 0.0
        if deviation <= 1e-9 * max(1.0, abs(self.mean)):
            return 0.0
        return (value - self.mean) / deviation
