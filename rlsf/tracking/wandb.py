"""Weights & Biases: one run per run directory, continued on resume; rollouts as increments of one table.

wandb cannot take back what was logged, and a killed run loses what wandb had not yet written. So a resumed run logs the
earlier iterations that are missing once more (all of them offline, where nobody knows which are missing). `iteration`,
not wandb's own step, is the x-axis: a point logged twice lies on itself.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from rlsf.config.schema import RunConfig
from rlsf.errors import ConfigError
from rlsf.experience import Group
from rlsf.samples import sample_rows

NOT_FIGURES = ("iteration", "task", "policy_version")
COLUMNS = ("iteration", "task", "prompt", "completion", "reward", "components", "evidence", "policy_version")


class WandbBackend:
    def __init__(
        self, config: RunConfig, directory: Path, ids: dict[str, Any], history: Sequence[Mapping[str, Any]]
    ) -> None:
        """`history` has the rows of the iterations that are done: `iteration` and figures by name."""
        settings = config.tracking.wandb
        self._rows = settings.rollout_rows
        try:
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
        except wandb.Error as error:
            raise ConfigError(
                f"tracking.wandb: {error}. Log in with `wandb login` or WANDB_API_KEY, or set tracking.wandb.mode to "
                "offline or disabled"
            ) from error
        ids["wandb"] = self._run.id
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        # INCREMENTAL: each log adds rows; a plain table would be overwritten at every step.
        self._table = wandb.Table(columns=list(COLUMNS), log_mode="INCREMENTAL")
        self._catch_up(history)

    def _catch_up(self, history: Sequence[Mapping[str, Any]]) -> None:
        known = self._run.summary.get("iteration")  # of the server; nothing offline
        for row in history:
            if known is None or row["iteration"] > known:
                self.log(row["iteration"], {name: value for name, value in row.items() if name not in NOT_FIGURES})

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
