"""One tracker that forwards to those that the config asks for."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from rlsf.config.schema import RunConfig
from rlsf.experience import Group
from rlsf.run_dir import RunDir, read_jsonl


class Backend(Protocol):
    """Takes the figures of one iteration after the other. Raises RunDirError where it cannot write them."""

    def log(self, iteration: int, metrics: dict[str, float]) -> None: ...

    def log_rollouts(self, iteration: int, groups: Sequence[Group]) -> None: ...

    def finish(self, summary: dict[str, Any] | None) -> None: ...


class Tracker:
    """Forwards everything to each backend; with none it does nothing."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = list(backends)

    def log(self, iteration: int, metrics: dict[str, float]) -> None:
        for backend in self._backends:
            backend.log(iteration, metrics)

    def log_rollouts(self, iteration: int, groups: Sequence[Group]) -> None:
        for backend in self._backends:
            backend.log_rollouts(iteration, groups)

    def finish(self, summary: dict[str, Any] | None = None) -> None:
        """Flush and close. `summary` is None where the run ended early. After the first call it does nothing.

        Raises:
            RunDirError: what was logged last cannot be written. All backends are closed nevertheless.
        """
        backends, self._backends = self._backends, []
        with ExitStack() as stack:
            for backend in reversed(backends):
                stack.callback(backend.finish, summary)


def create_tracker(config: RunConfig, directory: RunDir, ids: dict[str, Any], *, iteration: int) -> Tracker:
    """Backends as `tracking` says.

    Args:
        directory: of the run.
        ids: remembered between sittings, so that a resumed run continues as the same one; filled in here.
        iteration: the last one that counts. A killed run may have lost what a backend had not yet written, and may
            have logged iterations that will be done again.

    Raises:
        ConfigError: wandb cannot be used as configured.
    """
    backends: list[Backend] = []
    if config.tracking.tensorboard:
        from rlsf.tracking.tensorboard import TensorBoardBackend

        backends.append(TensorBoardBackend(directory.path / "tensorboard", purge_after=iteration))
    if config.tracking.wandb.mode != "disabled":
        from rlsf.tracking.wandb import WandbBackend

        rows = (*read_jsonl(directory.metrics), *read_jsonl(directory.timings))
        history = [row for row in rows if row["iteration"] <= iteration]
        backends.append(WandbBackend(config, directory.path, ids, history))
    return Tracker(backends)
