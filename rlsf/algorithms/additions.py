"""What strategies against forgetting may add to any algorithm's update. By default: nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from rlsf.experience import Experience


@dataclass(frozen=True, slots=True)
class SampleWeight:
    """How much one sample counts."""

    learning: float = 1.0
    """Factor of its advantages."""
    retention: float = 0.0
    """Weight of the squared distance of each of its tokens' log-probabilities from those under the reference."""


@dataclass(frozen=True, slots=True)
class PartWeights:
    """Of the losses over groups of earlier tasks and over those of the task being trained, each averaged by itself."""

    source: float
    target: float


class Additions:
    """Hooks of the update. An implementation overrides what it needs."""

    needs_reference: bool = False
    """Whether `weigh` asks for retention, so that samples need log-probabilities under the reference."""
    part_weights: PartWeights | None = None
    """None averages over all samples together, wherever they come from."""

    def penalties(self) -> Iterator[Tensor]:
        """Further terms of the loss, for each optimizer step anew. Each is differentiated as it comes, before the next
        is asked for, so that no two of them are in memory together."""
        yield from ()

    def rates(self) -> Sequence[Tensor] | None:
        """For each of the adapter's weight tensors, in the order of `Policy.parameters`, what its learning rate is
        multiplied with: broadcastable to its shape, 0 where nothing may move. None multiplies with nothing."""
        return None

    def weigh(self, experiences: Sequence[Experience]) -> Mapping[str, SampleWeight]:
        """Weights of an update's samples by rollout id; those that are not named count as they are."""
        return {}


NOTHING = Additions()
