"""Weights & Biases: one run per run directory, continued on resume; rollouts as increments of one table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb

from rlsf.config.schema import RunConfig
from rlsf.experience import Group
from rlsf.samples import sample_rows

COLUMNS = ("iteration", "task", "prompt", "completion", "reward", "components", "evidence", "policy_version")


class WandbBackend:
    def __init__(self, config: RunConfig, directory: Path, ids: dict[str, Any]) -> None:
        settings = config.tracking.wandb
        self._rows = settings.rollout_rows
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            tags=settings.tags or None,
            name=config.name,
            id=ids.get("wandb"),
            resume="allow",
            mode=settings.mode,
            dir=str(directory),
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True),
        )
        ids["wandb"] = self._run.id
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        # INCREMENTAL: each log adds rows; a plain table would be overwritten at every step.
        self._table = wandb.Table(columns=list(COLUMNS), log_mode="INCREMENTAL")

    def log(self, iteration: int, metrics: dict[str, float]) -> None:
        self._run.log({"iteration": iteration, **metrics})

    def log_rollouts(self, iteration: int, groups: Sequence[Group]) -> None:
        rows = [row for group in groups for row in sample_rows(group)][: self._rows]
        if not rows:
            return
        for row in rows:
            cells = {**row, "components": json.dumps(row["components"]), "evidence": json.dumps(row["evidence"])}
            self._table.add_data(*[cells[column] for column in COLUMNS])
        self._run.log({"iteration": iteration, "rollouts": self._table})

    def finish(self, summary: dict[str, Any] | None) -> None:
        if summary is not None:
            self._run.summary["result"] = summary["tasks"]
        self._run.finish(exit_code=0 if summary is not None else 1)
