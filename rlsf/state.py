"""What the loop itself has to remember between iterations; everything else is in the parts' own checkpoints."""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter


@dataclass
class LoopState:
    """Saved as state.json in every checkpoint."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    iteration: int = 0
    """Last one finished; 0 is the preparation."""
    policy_version: int = 0
    """Of the adapter that the engine serves; 0 is the untouched model."""
    served_iteration: int = 0
    """In which the adapter was trained that is served now: an earlier one after the guard went back."""
    prepared: bool = False
    task: str = ""
    """That the strategies against forgetting take for the current one."""
    tasks: list[str] = field(default_factory=list)
    """Those that have begun, the current one included, in the order in which they first came."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What the detector of a hidden task remembers."""
    routes: dict[str, Any] = field(default_factory=dict)
    """Which adapters of tasks are kept, and prompts by which held-out ones find that of their task."""
    ended: list[int] = field(default_factory=list)
    """Lengths of the segments so far, where one ended before its budget was spent; empty where none did."""
    convergence: list[float] = field(default_factory=list)
    """Values since the segment began of the metric that may end it."""
    reference_since: int = 0
    """First iteration whose reference log-probabilities are those of the reference as it is now."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Generated so far, by phase."""
    steps: int = 0
    """Optimizer steps so far, those of the warm start left out."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Spent so far, by phase, over all sittings of the run."""
    validated_tasks: int = 0
    """Tasks in the last validation: where more have joined since, its score cannot be compared with the next."""
    best_value: float | None = None
    best_iteration: int | None = None
    evaluations_since_best: int = 0
    stop_reason: str | None = None
    preflight: list[dict[str, Any]] = field(default_factory=list)
    reward: dict[str, Any] = field(default_factory=dict)
    """Running statistics of the reward."""
    delivery: dict[str, Any] = field(default_factory=dict)
    """What the last delivery check saw."""
    guard: dict[str, Any] = field(default_factory=dict)
    """What the guard remembers."""
    tracking: dict[str, Any] = field(default_factory=dict)
    """Ids with which the trackers continue the same run."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "LoopState":
        """Raises ValueError where a key is unknown or of another type."""
        return TypeAdapter(cls).validate_python(data)
