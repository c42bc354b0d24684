"""The contract between the loop and an algorithm."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rlsf.algorithms.additions import NOTHING, Additions
from rlsf.config.algorithms import AlgorithmConfig
from rlsf.experience import Group

if TYPE_CHECKING:
    from rlsf.policy import Policy


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What one update did."""

    metrics: dict[str, float]
    """By name, all finite; values that the update had no data for are left out."""
    priorities: dict[str, float]
    """How much each group still has to teach, by group id, non-negative; 0 where it carried no signal."""


class Algorithm(Protocol):
    """Updates the policy's adapter in place. Optimizer moments and schedule live for the whole run."""

    needs_reference: bool
    """Whether experiences should carry reference log-probabilities. An update computes those that are missing."""

    def update(
        self, groups: Sequence[Group], *, iteration: int, seed: int, earlier: Collection[str] = ()
    ) -> UpdateResult:
        """Learn from fresh groups (`group.iteration == iteration`) and replayed ones, told apart in the metrics.

        The same groups, seed and state give the same adapter, bit for bit on a CPU.

        Args:
            earlier: ids of the groups that are of earlier tasks, wherever they come from; see `PartWeights`.

        Raises:
            TrainingError: a loss or gradient is not finite. That step is not taken, and its batch is saved in a file
                that the message names.
        """
        ...

    def lower_rate(self, factor: float) -> None:
        """Go on at `factor` times the learning rate."""
        ...

    def forget_moments(self) -> None:
        """The policy's weights were replaced: begin its optimizer's moments anew."""
        ...

    def save(self, folder: Path) -> None:
        """Everything besides the policy's own adapters that the next update depends on."""
        ...

    def load(self, folder: Path) -> None:
        """Go on exactly where `save` left off. The policy's adapters must have been loaded before."""
        ...


def create_algorithm(
    config: AlgorithmConfig,
    policy: "Policy",
    *,
    total_steps: int,
    seed: int,
    dump_dir: Path,
    additions: Additions = NOTHING,
) -> Algorithm:
    """The algorithm that `config.kind` names.

    Args:
        total_steps: optimizer steps planned for the run (iterations · epochs · minibatches); ends the schedule.
        seed: of the critic's adapter.
        dump_dir: where the batch of a loss that is not finite is written.
        additions: to the policy's updates; a critic's are left alone.
    """
    from rlsf.algorithms.dpo import Dpo
    from rlsf.algorithms.grpo import Grpo
    from rlsf.algorithms.ppo import Ppo

    match config.kind:
        case "grpo":
            return Grpo(config, policy, total_steps=total_steps, dump_dir=dump_dir, additions=additions)
        case "ppo":
            return Ppo(config, policy, total_steps=total_steps, seed=seed, dump_dir=dump_dir, additions=additions)
        case "dpo":
            return Dpo(config, policy, total_steps=total_steps, dump_dir=dump_dir, additions=additions)
