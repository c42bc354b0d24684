"""How far the policy has moved from the ones that sampled, for fresh and replayed tokens apart."""

from collections import defaultdict

import torch
from torch import Tensor

from rlsf.algorithms.samples import TokenTensors


class TokenDiagnostics:
    """Sums over the tokens of an update, all passes together.

    With w = π/b the ratio of a token's probability under the current policy and under the one that sampled it:
    `ratio_mean` is E[w]; `ess` (Σw)² / (n·Σw²), the effective share of the tokens (Kong 1992); `kl_behaviour`
    E[w − 1 − log w], the k3 estimate of KL(b ‖ π) (http://joschu.net/blog/kl-approx.html); `policy/kl` the same of
    r = ref/π, an estimate of KL(π ‖ ref), over fresh tokens alone: replayed ones were not drawn from π.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], float] = defaultdict(float)
        self._counts: dict[tuple[str, str], float] = defaultdict(float)

    @torch.no_grad()
    def add(
        self,
        tokens: TokenTensors,
        logprobs: Tensor,
        entropy: Tensor,
        *,
        clip: tuple[float, float] | None = None,
        dual_clip: float | None = None,
    ) -> None:
        """Count one micro-batch.

        Args:
            logprobs, entropy: (B, T), of the current policy.
            clip: ratios that the loss clips to [1 − low, 1 + high].
            dual_clip: ratio above which the loss takes no gradient where the advantage is negative.
        """
        mask = tokens.batch.completion_mask.bool()
        # In double precision: the square of a ratio leaves the range of single precision at 44 nats.
        log_ratio = logprobs.detach().double() - tokens.behaviour
        values = {
            "ratio": log_ratio.exp(),
            "ratio_squared": (2 * log_ratio).exp(),
            "kl_behaviour": log_ratio.exp() - 1 - log_ratio,
            "policy/entropy": entropy,
        }
        if tokens.reference is not None:
            log_reference = tokens.reference - logprobs.detach().double()
            values["policy/kl"] = log_reference.exp() - 1 - log_reference
        if clip is not None:
            low = (log_ratio.exp() < 1 - clip[0]) & (tokens.advantages < 0)
            high = (log_ratio.exp() > 1 + clip[1]) & (tokens.advantages > 0)
            values["clip_fraction"] = (low | high).float()
        if dual_clip is not None:
            values["dual_clip_fraction"] = ((log_ratio.exp() > dual_clip) & (tokens.advantages < 0)).float()
        for part, rows in (("fresh", tokens.fresh), ("replayed", ~tokens.fresh)):
            chosen = mask & rows[:, None]
            for name, value in values.items():
                self._sums[part, name] += float(value[chosen].double().sum())
                self._counts[part, name] += float(chosen.sum())

    def metrics(self) -> dict[str, float]:
        """Means per token; what no token was counted for is left out."""
        result: dict[str, float] = {}
        for part in ("fresh", "replayed"):
            ratio, squared = self._mean("ratio", part), self._mean("ratio_squared", part)
            if ratio is None or squared is None:
                continue
            result |= {f"train/{part}/ratio_mean": ratio, f"train/{part}/ess": ratio**2 / squared if squared else 0.0}
            for name in ("kl_behaviour", "clip_fraction", "dual_clip_fraction"):
                value = self._mean(name, part)
                if value is not None:
                    result[f"train/{part}/{name}"] = value
        for name in ("policy/entropy", "policy/kl"):
            value = self._mean(name, "fresh")
            if value is not None:
                result[name] = value
        return result

    def _mean(self, name: str, part: str) -> float | None:
        count = self._counts[part, name]
        return self._sums[part, name] / count if count else None
