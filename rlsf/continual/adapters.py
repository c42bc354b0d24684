"""An adapter for each task: kept on disk, merged or picked when held-out prompts are answered."""

from collections.abc import Sequence
from pathlib import Path

import torch

from rlsf.config.strategies import AdaptersConfig
from rlsf.errors import ModelError
from rlsf.files import clear_os_errors
from rlsf.policy import POLICY, REFERENCE, Policy

_MERGED = "merged"
_PRUNING = ("ties", "dare_linear", "dare_ties", "magnitude_prune")


class AdapterBank:
    """The adapters of the tasks so far, one folder each."""

    def __init__(self, config: AdaptersConfig, policy: Policy, folder: Path, *, seed: int) -> None:
        """`seed`: of what `dare_*` leaves out."""
        self._seed = seed
        self._config = config
        self._policy = policy
        self._folder = folder

    def folder_of(self, task: str) -> Path:
        """Where the adapter of a task is kept."""
        return self._folder / "tasks" / task

    @property
    def merged(self) -> Path:
        """Where the last merge is kept."""
        return self._folder / "merged"

    def begin(self, task: str, known: Sequence[str]) -> bool:
        """Make the policy the adapter that `task` goes on with: its own where it is one of `known`, else what `init`
        says. Returns whether the policy was changed."""
        if task in known:
            self._policy.load_adapter(self.folder_of(task))
            return True
        if self._config.init == "start" and known:
            self._policy.copy_adapter(REFERENCE, POLICY)
            return True
        return False

    def keep(self, task: str) -> None:
        """Write the policy down as the adapter of `task`."""
        with clear_os_errors(self.folder_of(task)):
            self._policy.save_adapter(self.folder_of(task))

    def key_for(self, task: str) -> str:
        """Equal for tasks that are answered by the same adapter."""
        return task if self._config.use == "own" else ""

    def serve(self, task: str, known: Sequence[str]) -> None:
        """Make the policy what answers held-out prompts of `task`; one that no adapter was trained for is answered with
        the one that the loop began with."""
        if self._config.use == "own":
            if task in known:
                self._policy.load_adapter(self.folder_of(task))
            else:
                self._policy.copy_adapter(REFERENCE, POLICY)
        else:
            self._merge(known)

    def _merge(self, known: Sequence[str]) -> None:
        """peft merges into a new adapter, whose weights the policy then takes over.

        Raises:
            ModelError: peft cannot merge them so.
        """
        names = [f"task_{number}" for number in range(len(known))]
        model = self._policy.model
        try:
            for name, task in zip(names, known, strict=True):
                self._policy.load_adapter(self.folder_of(task), name)
            with torch.random.fork_rng():
                torch.manual_seed(self._seed)
                model.add_weighted_adapter(
                    names,
                    [self._weight(len(known))] * len(known),
                    _MERGED,
                    combination_type=self._config.combination,
                    density=self._config.density if self._config.combination in _PRUNING else None,
                )
            self._policy.copy_adapter(_MERGED, POLICY)
            with clear_os_errors(self.merged):
                self._policy.save_adapter(self.merged)
        except ValueError as error:
            raise ModelError(f"continual.adapters.combination: {self._config.combination}: {error}") from error
        finally:
            for name in [*names, _MERGED]:
                if name in model.peft_config:
                    model.delete_adapter(name)

    def _weight(self, tasks: int) -> float:
        if self._config.weight is not None:
            return self._config.weight
        return 1.0 if self._config.combination in ("ties", "dare_ties") else 1 / tasks
