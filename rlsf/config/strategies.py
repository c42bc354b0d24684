"""What is done so that learning the next task does not cost the last one."""

from typing import Literal

from pydantic import Field, model_validator

from rlsf.config.clustering import IdentityConfig, KnownIdentity
from rollouts.config import Section


class L2Config(Section):
    """½ · coef · ‖θ − θ*‖² on the adapter's weights, θ* being those with which the last task ended."""

    coef: float = Field(1e-2, gt=0)
    """Weight in the loss."""


class EwcConfig(Section):
    """Elastic weight consolidation (arXiv 1612.00796) with one running Fisher matrix (online EWC, arXiv 1805.06370):
    ½ · coef · Σ F (θ − θ*)² on the adapter's weights."""

    coef: float = Field(10.0, gt=0)
    """Weight in the loss."""
    decay: float = Field(0.9, gt=0, le=1)
    """What is left of the earlier tasks' Fisher matrix when a task adds its own."""
    samples: int = Field(64, ge=1)
    """Completions on which a task's Fisher matrix is estimated: the last ones it added to the replay store."""
    normalize: bool = True
    """Divide each task's Fisher matrix by its mean, so that `coef` means the same for every model and task."""


class OrthogonalConfig(Section):
    """A block of the adapter's rank for each task; earlier blocks are frozen and go on acting, and the new one is kept
    orthogonal to them (O-LoRA, arXiv 2310.14152): coef · Σ ‖Â_i Â_tᵀ‖²."""

    rank: int = Field(4, ge=1)
    """Of a task's block. `model.lora.r` must be a multiple of it; with more tasks than blocks the last block is shared
    by the tasks that are left."""
    coef: float = Field(0.5, ge=0)
    """Weight in the loss. 0 keeps the blocks and leaves out the penalty."""
    normalize: bool = True
    """Compare directions alone (rows of length 1). Without it the penalty is the paper's, and falls just as well where
    the new block shrinks to nothing."""


class DistillConfig(Section):
    """KL divergence to the policy with which the last task ended, at every token of completions replayed from earlier
    tasks."""

    coef: float = Field(1.0, gt=0)
    """Weight in the loss."""
    groups: int = Field(16, ge=1)
    """Replayed groups per iteration, drawn from the store as `replay.draw` says, earlier tasks alone."""
    batch_size: int = Field(64, ge=1)
    """Of their completions, how many are compared in one optimizer step; they come in turn. A warm start takes many
    steps, and each of them costs as much as one on so many examples."""
    direction: Literal["forward", "reverse"] = "forward"
    """`forward` is KL(last ‖ policy), `reverse` KL(policy ‖ last)."""


class CppoConfig(Section):
    """Weights samples by how likely and how good they are, and holds on to the last policy where they are both (after
    CPPO, ICLR 2024). Needs `reference: last_task`, and PPO or GRPO."""

    spread: float = Field(0.5, gt=0)
    """Standard deviations from the batch's mean beyond which a reward or a likelihood counts as high or low."""
    more: float = Field(1.5, ge=1)
    """Weight where a sample should count more."""
    less: float = Field(0.5, ge=0, le=1)
    """Weight where it should count less."""
    coef: float = Field(0.1, ge=0)
    """Weight of retention: the squared distance of a token's log-probability from that under the last policy."""


class TransferConfig(Section):
    """source · L_s + target · L_t: the loss over groups of earlier tasks and the loss over those of this one, each
    averaged by itself, so that their weights do not depend on how many there are."""

    source: float = Field(0.5, ge=0)
    """Weight of the earlier tasks' loss."""
    target: float = Field(1.0, ge=0)
    """Weight of this task's."""

    @model_validator(mode="after")
    def _check(self) -> "TransferConfig":
        if self.source == self.target == 0:
            raise ValueError("transfer: source and target are both 0, so nothing would be learned")
        return self


class LayersConfig(Section):
    """Which layers of the adapter may move, and how fast."""

    freeze: tuple[int, ...] = ()
    """Layers that do not move, counted from 0; −1 is the last."""
    from_task: int = Field(2, ge=1)
    """The how-manieth task all of this begins with: the first one has nothing to lose."""
    decay: float = Field(1.0, gt=0, le=1)
    """Factor of the learning rate per layer below the last (arXiv 1801.06146, section 3.2)."""
    importance: float = Field(0.0, ge=0)
    """Layers that matter for earlier tasks move more slowly: their rate is divided by 1 + importance · F_l / F, where
    F_l is the layer's mean Fisher information over the earlier tasks and F that of all layers, anew for each task."""


class AdaptersConfig(Section):
    """An adapter for each task, and what becomes of them."""

    init: Literal["start", "last"] = "start"
    """A task begins with the adapter that the loop began with, or with that of the task before."""
    use: Literal["own", "merge", "route"] = "merge"
    """Whom held-out prompts are answered by: the adapter of their own task (which the model must be told); one adapter
    merged from all; or the adapter of the task whose training prompts a prompt resembles most."""
    combination: Literal["linear", "ties", "dare_linear", "dare_ties", "svd", "magnitude_prune"] = "linear"
    """How peft's `add_weighted_adapter` merges."""
    weight: float | None = Field(None, gt=0)
    """Of each adapter in the merge. None merges equal adapters into themselves: 1 for `ties` and `dare_ties`, 1 / tasks
    for `svd`, and 1 / tasks² for the others, which peft adds up as ΣA and ΣB, each with the root of the weight."""
    density: float = Field(0.5, gt=0, le=1)
    """Share of the weights that `ties`, `dare_*` and `magnitude_prune` keep."""


class ContinualConfig(Section):
    """Strategies against forgetting; all that are given are used together."""

    identity: IdentityConfig = KnownIdentity()
    """Whether the strategies and the replay store are told which task is on. Grading and evaluation always know."""
    reference: Literal["start", "last_task"] = "start"
    """What KL penalties and DPO compare with: the policy with which the loop began, or that with which the last task
    ended."""
    l2: L2Config | None = None
    ewc: EwcConfig | None = None
    orthogonal: OrthogonalConfig | None = None
    distill: DistillConfig | None = None
    cppo: CppoConfig | None = None
    transfer: TransferConfig | None = None
    layers: LayersConfig | None = None
    adapters: AdaptersConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> "ContinualConfig":
        if self.cppo is not None and self.reference != "last_task":
            raise ValueError("cppo: it holds on to the last task's policy; set reference: last_task")
        if self.adapters is not None and self.orthogonal is not None:
            raise ValueError(
                "adapters: orthogonal keeps a block of one adapter for each task already; take one of them"
            )
        held = [name for name in ("l2", "ewc", "distill") if getattr(self, name) is not None]
        if self.adapters is not None and self.adapters.init == "start" and held:
            raise ValueError(
                f"{held[0]}: it holds on to the last task's policy, and with adapters each task begins anew; set "
                "adapters.init: last, or leave it out"
            )
        if self.adapters is not None and self.reference == "last_task":
            raise ValueError("adapters: each begins with, or is compared with, the start; leave reference at start")
        if self.adapters is not None and self.adapters.use == "own" and self.identity.kind != "known":
            raise ValueError("adapters.use: own must be told the task, and identity hides it; take merge or route")
        return self
