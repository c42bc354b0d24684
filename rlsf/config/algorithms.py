"""How the policy learns from scored groups."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rollouts.config import Section

MAX_RATE = 1e3
"""No rate near it trains anything; far above it AdamW's arithmetic breaks."""


class OptimizerConfig(Section):
    """Shared by every algorithm. Moments and schedule live for the whole run."""

    learning_rate: float = Field(1e-4, ge=0, le=MAX_RATE)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up; linear and cosine fall to 0 just after the last planned step. The plan counts every iteration;
    one whose groups carry no signal takes no step."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the rate rises; the first is taken at 0."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's, on adapter weights."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    """AdamW's moment decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    epochs: int = Field(1, ge=1)
    """Passes over each iteration's batch."""
    minibatches: int = Field(1, ge=1)
    """Optimizer steps per pass; groups are never torn apart."""
    micro_batch_tokens: int = Field(8192, ge=64)
    """Tokens per forward pass; bounds memory, does not change the gradient."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""


class GrpoConfig(OptimizerConfig):
    """Group-relative policy optimisation (DeepSeekMath, arXiv 2402.03300); TRL's GRPOTrainer computes the loss."""

    kind: Literal["grpo"] = "grpo"
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    """How token losses are averaged."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What divides reward minus group mean: the sample deviation of the group, of the batch, or nothing."""
    kl_coef: float = Field(0.0, ge=0)
    """Weight of the k3 KL to the reference (the model at the start of the loop)."""
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.2, gt=0)
    """Ratios are clipped to [1 − clip_low, 1 + clip_high]."""
    dual_clip: float = Field(2.0, gt=1)
    """Largest ratio where the advantage is negative, at least 1 + clip_high: beyond it a stale or mismatched token
    gives no gradient (dual-clip PPO, arXiv 1912.09729; TRL calls it `delta`)."""

    @model_validator(mode="after")
    def _check(self) -> "GrpoConfig":
        _check_dual_clip(self.dual_clip, self.clip_high)
        return self


class PpoConfig(OptimizerConfig):
    """Proximal policy optimisation (arXiv 1707.06347) with a critic adapter on the same frozen base."""

    kind: Literal["ppo"] = "ppo"
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16)."""
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.2, gt=0)
    value_clip: float = Field(0.2, gt=0)
    """New values stay this close to the old ones in the clipped value loss."""
    value_learning_rate: float = Field(1e-3, gt=0, le=MAX_RATE)
    """Of the critic's adapter and head."""
    value_epochs: int = Field(1, ge=1)
    """Passes of the critic per pass of the policy."""
    whiten_advantages: bool = True
    """Shift and scale the batch's token advantages to mean 0, deviation 1."""
    kl_coef: float = Field(0.02, ge=0)
    """Weight of the per-token k1 KL to the reference, subtracted from the reward."""
    kl_target: float | None = Field(None, gt=0)
    """Nats per completion; adapts kl_coef towards it (arXiv 1909.08593, eq. 6-7). None keeps it fixed."""
    kl_horizon: int = Field(1000, ge=1)
    """Rollouts over which the adaptive coefficient moves."""
    dual_clip: float = Field(2.0, gt=1)
    """As in GRPO: the largest ratio where the advantage is negative."""

    @model_validator(mode="after")
    def _check(self) -> "PpoConfig":
        _check_dual_clip(self.dual_clip, self.clip_high)
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target: an adaptive coefficient cannot start from kl_coef 0; raise kl_coef")
        return self


class DpoConfig(OptimizerConfig):
    """Direct preference optimisation (arXiv 2305.18290) on pairs from the buffer; TRL's DPOTrainer has the loss."""

    kind: Literal["dpo"] = "dpo"
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """For `robust` only: the share of pairs in the wrong order, which that loss corrects for (arXiv 2403.00409)."""
    beta: float = Field(0.1, gt=0)
    """Strength of the pull to the reference (the model at the start of the loop)."""
    pairs: Literal["best_worst", "all"] = "best_worst"
    """Per group: the best over the worst, or every pair of different rewards."""
    min_margin: float = Field(0.0, ge=0)
    """Pairs whose rewards differ by no more than this are left out."""
    max_pairs_per_group: int = Field(4, ge=1)
    """With `all`: at most this many, those with the largest margins; of equal margins those of unused rollouts."""

    @model_validator(mode="after")
    def _check(self) -> "DpoConfig":
        if self.label_smoothing and self.loss != "robust":
            raise ValueError(f"label_smoothing: the loss {self.loss!r} does not use it; only robust does")
        if self.loss == "robust" and self.label_smoothing == 0:
            raise ValueError(
                "label_smoothing: with `robust` it is the share of pairs in the wrong order and must be above 0 (at 0 "
                "the loss is `sigmoid`)"
            )
        return self


def _check_dual_clip(dual_clip: float, clip_high: float) -> None:
    if dual_clip < 1 + clip_high:
        raise ValueError(
            f"dual_clip: {dual_clip} is below 1 + clip_high ({1 + clip_high:g}), so it would cut the ratios of good "
            "answers too; raise it"
        )


AlgorithmConfig = Annotated[GrpoConfig | PpoConfig | DpoConfig, Field(discriminator="kind")]
