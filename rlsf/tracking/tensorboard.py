"""Curves and sample texts for TensorBoard."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from rlsf.experience import Group
from rlsf.files import clear_os_errors
from rlsf.samples import as_markdown

_default_report = threading.excepthook


class TensorBoardBackend:
    def __init__(self, directory: Path, *, purge_after: int) -> None:
        self._directory = directory
        threading.excepthook = _report  # the thread that writes hands its error to whoever logs next anyway
        with clear_os_errors(directory):
            self._writer = SummaryWriter(str(directory), purge_step=purge_after + 1)

    def log(self, iteration: int, metrics: dict[str, float]) -> None:
        with clear_os_errors(self._directory):
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, iteration)
            self._writer.flush()  # a kill would lose what is not on disk

    def log_rollouts(self, iteration: int, groups: Sequence[Group]) -> None:
        if groups:
            text = "\n\n".join(as_markdown(group) for group in groups[:4])
            with clear_os_errors(self._directory):
                self._writer.add_text("rollouts", text, iteration)

    def finish(self, summary: dict[str, Any] | None) -> None:
        with clear_os_errors(self._directory):
            self._writer.close()


def _report(arguments: threading.ExceptHookArgs) -> None:
    if type(arguments.thread).__name__ != "_AsyncWriterThread":
        _default_report(arguments)
