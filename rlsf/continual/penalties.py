"""Penalties on the adapter's weights: L2 and EWC pull them to where the last task left them, O-LoRA keeps the blocks of
different tasks apart."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlsf.config.strategies import EwcConfig, L2Config, OrthogonalConfig


class L2Penalty:
    """½ · coef · ‖θ − θ*‖²."""

    def __init__(self, config: L2Config, parameters: Sequence[nn.Parameter]) -> None:
        self._config = config
        self._parameters = parameters
        self._anchor: list[Tensor] = []

    def consolidate(self) -> None:
        """A task has ended: from now on its weights are the anchor."""
        self._anchor = _copies(self._parameters)

    def __call__(self) -> Tensor | None:
        """None until a task has ended."""
        if not self._anchor:
            return None
        pairs = zip(self._parameters, self._anchor, strict=True)
        return 0.5 * self._config.coef * sum_of([((now - then) ** 2).sum() for now, then in pairs])

    def state_dict(self) -> dict[str, Any]:
        return {"anchor": self._anchor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._anchor = _like(state["anchor"], self._parameters)


class EwcPenalty:
    """½ · coef · Σ F (θ − θ*)², with F ← decay · F + F_task when a task ends (online EWC, arXiv 1805.06370, eq. 9)."""

    def __init__(self, config: EwcConfig, parameters: Sequence[nn.Parameter]) -> None:
        self._config = config
        self._parameters = parameters
        self._anchor: list[Tensor] = []
        self.fisher: list[Tensor] = []
        """By weight tensor; empty until a task has ended."""

    def consolidate(self, fisher: Sequence[Tensor]) -> None:
        """A task has ended, with this diagonal of its Fisher information."""
        if self._config.normalize:
            mean = sum_of([part.sum() for part in fisher]) / sum(part.numel() for part in fisher)
            fisher = [part / mean for part in fisher] if mean > 0 else fisher
        before = self.fisher or [torch.zeros_like(part) for part in fisher]
        self.fisher = [self._config.decay * old + new for old, new in zip(before, fisher, strict=True)]
        self._anchor = _copies(self._parameters)

    def __call__(self) -> Tensor | None:
        """None until a task has ended."""
        if not self.fisher:
            return None
        triples = zip(self.fisher, self._parameters, self._anchor, strict=True)
        return 0.5 * self._config.coef * sum_of([(f * (now - then) ** 2).sum() for f, now, then in triples])

    def state_dict(self) -> dict[str, Any]:
        return {"anchor": self._anchor, "fisher": self.fisher}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._anchor = _like(state["anchor"], self._parameters)
        self.fisher = _like(state["fisher"], self._parameters)


class OrthogonalBlocks:
    """The rank of the adapter in blocks, one per task: rows of A and columns of B. Only the current block moves; the
    earlier ones keep acting, so that one adapter serves all tasks."""

    def __init__(self, config: OrthogonalConfig, parameters: Sequence[nn.Parameter], names: Sequence[str]) -> None:
        self._config = config
        self._parameters = parameters
        self._is_a = [name.endswith("lora_A") for name in names]
        self._rank = next(p.shape[0] for p, is_a in zip(parameters, self._is_a, strict=True) if is_a)
        self._block_of: dict[str, int] = {}
        """By task, in the order in which they came."""
        self._task = ""

    @property
    def blocks(self) -> int:
        """How many there are."""
        return self._rank // self._config.rank

    @property
    def block(self) -> int:
        """That of the current task; 0 before the first."""
        return self._block_of.get(self._task, 0)

    def begin(self, task: str) -> bool:
        """Go on with a task's own block; one that is new gets the next, and the last block where all are taken. Returns
        whether it has the block to itself."""
        self._task = task
        if task not in self._block_of:
            self._block_of[task] = min(len(self._block_of), self.blocks - 1)
        return list(self._block_of.values()).count(self.block) == 1

    def __call__(self) -> Tensor | None:
        """coef · Σ over weight matrices and blocks i of other tasks of ‖A_i A_tᵀ‖² (Frobenius; arXiv 2310.14152, eq. 7,
        with squares for absolute values). With `normalize` rows are taken at length 1, so that the penalty does not
        fall when A_t shrinks. None where no other task has a block."""
        others = sorted({block for block in self._block_of.values() if block != self.block})
        if not others or self._config.coef == 0:
            return None
        rows = self._rows(self.block)
        other_rows = [row for block in others for row in self._rows(block)]
        overlaps = []
        for parameter, is_a in zip(self._parameters, self._is_a, strict=True):
            if is_a:
                earlier, current = parameter[other_rows].detach(), parameter[rows]
                if self._config.normalize:
                    earlier, current = F.normalize(earlier, dim=1), F.normalize(current, dim=1)
                overlaps.append(((earlier @ current.T) ** 2).sum())
        return self._config.coef * sum_of(overlaps)

    def rates(self) -> list[Tensor]:
        """1 in the current block, 0 elsewhere; (rank, 1) for A and (1, rank) for B."""
        mask = torch.zeros(self._rank)
        mask[self._rows(self.block)] = 1.0
        return [
            (mask[:, None] if is_a else mask[None, :]).to(parameter.device)
            for parameter, is_a in zip(self._parameters, self._is_a, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"blocks": self._block_of, "task": self._task}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._block_of, self._task = dict(state["blocks"]), state["task"]

    def _rows(self, block: int) -> list[int]:
        return list(range(block * self._config.rank, (block + 1) * self._config.rank))


def sum_of(values: Sequence[Tensor]) -> Tensor:
    """Of scalars."""
    return torch.stack(list(values)).sum()


def _copies(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _like(tensors: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [tensor.to(parameter.device) for tensor, parameter in zip(tensors, parameters, strict=bool(tensors))]
