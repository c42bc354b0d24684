"""An adapter for each task: kept on disk, merged or picked when held-out prompts are answered."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from scipy.spatial import cKDTree

from rlsf.clustering.memory import Context
from rlsf.clustering.projection import fit_projection
from rlsf.config.strategies import AdaptersConfig
from rlsf.errors import ModelError
from rlsf.files import clear_os_errors, remove
from rlsf.policy import POLICY, REFERENCE, Policy

REMEMBERED = 128
"""Prompts per task that held-out ones are compared with."""
DIMENSIONS = 16
"""Principal components they are compared in."""
_MERGED = "merged"
_PRUNING = ("ties", "dare_linear", "dare_ties", "magnitude_prune")


class AdapterBank:
    """The adapters of the tasks so far, one folder each."""

    def __init__(self, config: AdaptersConfig, policy: Policy, folder: Path, *, seed: int) -> None:
        """`seed`: of what `dare_*` leaves out."""
        self._seed = seed
        self._seen: dict[str, Context] = {}
        """By task: prompts it was trained on, where held-out ones are routed by them."""
        self._config = config
        self._policy = policy
        self._folder = folder
        self._kept: dict[str, int] = {}
        """By task: the iteration after which its adapter was kept."""
        self._aside = ""
        """The task whose adapter the policy held before others were served; empty where none are."""

    @property
    def routes(self) -> bool:
        """Whether held-out prompts go to the adapter of the task that they resemble."""
        return self._config.use == "route"

    def remember(self, task: str, points: np.ndarray) -> None:
        """(N, H) embeddings of prompts that `task` is trained on."""
        context = self._seen.setdefault(task, Context(task, np.zeros((0, points.shape[1]), dtype=np.float32)))
        context.remember(points, REMEMBERED, self._seed)

    def route(self, points: np.ndarray) -> list[str]:
        """For each of (N, H) embeddings of prompts the task whose prompts they lie nearest to; empty names for all
        where nothing was remembered yet."""
        contexts = list(self._seen.values())
        if not contexts:
            return [""] * len(points)
        project = fit_projection(np.concatenate([context.points for context in contexts]), DIMENSIONS)
        distances = np.stack([cKDTree(project(context.points)).query(project(points))[0] for context in contexts])
        return [contexts[index].name for index in distances.argmin(axis=0)]

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {"kept": self._kept, "seen": {name: context.to_json() for name, context in self._seen.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; an empty one is that of a bank that has nothing yet."""
        self._kept = dict(state.get("kept", {}))
        self._seen = {name: Context.from_json(data) for name, data in state.get("seen", {}).items()}

    def folder_of(self, task: str) -> Path:
        """Where the adapter of a task is kept, as the last `keep` or the checkpoint left it."""
        if task == self._aside:
            return self._folder / "serving"
        return self._folder / "tasks" / task / f"iter_{self._kept[task]:06d}"

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

    def keep(self, task: str, iteration: int) -> None:
        """Write the policy down as the adapter that `task` has after `iteration`. Older ones stay until no checkpoint
        names them: a run that is resumed may go back to them."""
        self._kept[task] = iteration
        with clear_os_errors(self.folder_of(task)):
            self._policy.save_adapter(self.folder_of(task))

    def set_aside(self, task: str) -> None:
        """The policy, which is the adapter of `task`, is going to be others; `take_back` makes it the same again. Until
        then `task` is served with it as it is now."""
        self._aside = task
        folder = self.folder_of(task)
        with clear_os_errors(folder):
            self._policy.save_adapter(folder)

    def take_back(self) -> None:
        """Undo `set_aside`."""
        folder = self.folder_of(self._aside)
        self._policy.load_adapter(folder)
        self._aside = ""
        remove(folder)

    def key_for(self, task: str) -> str:
        """Equal for tasks that are answered by the same adapter."""
        return "" if self._config.use == "merge" else task

    def serve(self, task: str, known: Sequence[str]) -> None:
        """Make the policy what answers held-out prompts of `task`; one that no adapter was trained for is answered with
        the one that the loop began with."""
        if self._config.use == "merge":
            self._merge(known)
        elif task in known:
            self._policy.load_adapter(self.folder_of(task))
        else:
            self._policy.copy_adapter(REFERENCE, POLICY)

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
            self._undo_scaling()
            with clear_os_errors(self.merged):
                self._policy.save_adapter(self.merged)
        except ValueError as error:
            raise ModelError(f"continual.adapters.combination: {self._config.combination}: {error}") from error
        finally:
            for name in [*names, _MERGED]:
                if name in model.peft_config:
                    model.delete_adapter(name)

    def _undo_scaling(self) -> None:
        """peft works the adapters' scaling (alpha / r, or alpha / √r) into the weights that it merges; the policy's own
        would come on top."""
        for module in self._policy.model.modules():
            if isinstance(module, LoraLayer) and POLICY in module.scaling:
                module.lora_B[POLICY].weight.data.div_(module.scaling[POLICY])

    def _weight(self, tasks: int) -> float:
        """So that equal adapters are merged into themselves: `ties` and `dare_ties` average by themselves, `svd` adds
        up products B·A, and the others add up A and B each by itself with the root of the weight."""
        if self._config.weight is not None:
            return self._config.weight
        if self._config.combination in ("ties", "dare_ties"):
            return 1.0
        return 1 / tasks if self._config.combination == "svd" else 1 / tasks**2
