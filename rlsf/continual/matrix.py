"""The matrix of scores of a run: every task on its test split after every segment of the stream."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlsf.continual.metrics import MATRIX_METRICS, stability_gap
from rlsf.evaluation.statistics import Estimate, wilson
from rlsf.policy import BASE
from rlsf.run_dir import read_jsonl
from rollouts.types import Prompt

if TYPE_CHECKING:
    from rlsf.run import Run
    from rlsf.tasks import Task

RESAMPLES = 2000
KL_PROMPTS = 32
"""Test prompts per task on which the distance from the untouched model is measured, one completion each."""


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores by row and task. Every row of a task is of the same prompts in the same order."""

    tasks: tuple[str, ...]
    rows: tuple[str, ...]
    """What each row comes after: `base`, the untouched model, then the task that led each segment."""
    shares: Mapping[tuple[int, str], np.ndarray]
    """By row and task: for each test prompt, the share of samples that were right."""
    learned: tuple[int | None, ...]
    """By task, the row after the segment in which it was first trained; None for one that never was."""
    taught: tuple[int | None, ...] = ()
    """By task, the row after the segment in which it first took part, be it beside another that led; empty where that
    is the same as `learned`."""
    samples: int = 1
    """Per test prompt."""

    def values(self) -> np.ndarray:
        """R, (rows, tasks); NaN where nothing was measured."""
        return self._means({key: shares.mean() for key, shares in self.shares.items()})

    def estimate(self, row: int, task: str) -> Estimate | None:
        """R[row, task] with Wilson's interval over prompts; None where it was not measured."""
        shares = self.shares.get((row, task))
        return None if shares is None else wilson(shares.tolist(), self.samples)

    def metrics(self, *, seed: int) -> dict[str, Estimate | None]:
        """Each metric of `rlsf.continual.metrics` with a percentile bootstrap interval over prompts (the same in
        every row, so that differences between rows are paired); None where it is not defined."""
        found = {name: metric(self.values(), self._rows_for(name)) for name, metric in MATRIX_METRICS.items()}
        draws = self._resampled(seed)
        return {name: self._estimate(value, draws[name]) for name, value in found.items()}

    def _estimate(self, value: float, draws: Sequence[float]) -> Estimate | None:
        if np.isnan(value):
            return None
        low, high = np.quantile(draws, [0.025, 0.975])
        return Estimate(value, float(low), float(high), sum(self._prompts(task) for task in self.tasks))

    def _resampled(self, seed: int) -> dict[str, list[float]]:
        rng = np.random.default_rng(seed)
        draws: dict[str, list[float]] = {name: [] for name in MATRIX_METRICS}
        for _ in range(RESAMPLES):
            chosen = {task: rng.integers(self._prompts(task), size=self._prompts(task)) for task in self.tasks}
            matrix = self._means(
                {(row, task): shares[chosen[task]].mean() for (row, task), shares in self.shares.items()}
            )
            for name, metric in MATRIX_METRICS.items():
                draws[name].append(metric(matrix, self._rows_for(name)))
        return draws

    def _rows_for(self, metric: str) -> tuple[int | None, ...]:
        """`learned`; but what was trained beside another task before it led has nothing that could be forward transfer
        alone."""
        if metric != "FWT" or not self.taught:
            return self.learned
        return tuple(led if led == first else None for led, first in zip(self.learned, self.taught, strict=True))

    def _means(self, cells: Mapping[tuple[int, str], float]) -> np.ndarray:
        matrix = np.full((len(self.rows), len(self.tasks)), np.nan)
        for (row, task), value in cells.items():
            matrix[row, self.tasks.index(task)] = value
        return matrix

    def _prompts(self, task: str) -> int:
        return next(len(shares) for (_, name), shares in self.shares.items() if name == task)


def read_matrix(run: "Run") -> ScoreMatrix | None:
    """That of a run whose final table is written; None where no task can be graded."""
    tasks = tuple(task.name for task in run.graded_tasks)
    if not tasks:
        return None
    labels = [("base", "base")]
    for segment in run.stream.segments:
        last = segment.last >= run.state.iteration
        labels.append((segment.task, "final" if last else f"iter_{segment.last:06d}"))
        if last:
            break
    shares = {
        (row, task): np.array([outcome.share for outcome in run.load_evaluation(label, task).outcomes])
        for row, (_, label) in enumerate(labels)
        for task in tasks
        if run.has_evaluation(label, task)
    }
    learned = tuple(first_led(run, task, len(labels)) for task in tasks)
    taught = tuple(first_trained(run, task, len(labels)) for task in tasks)
    rows = tuple(name for name, _ in labels)
    return ScoreMatrix(tasks, rows, shares, learned, taught, run.config.evaluation.final_samples)


def first_led(run: "Run", task: str, rows: int) -> int | None:
    """The first segment that a task leads; for one that leads none, the first in which it takes part. None where the
    run did not get that far.

    Args:
        rows: of the matrix: the segments that the run got to, and one.
    """
    leads = [segment.number for segment in run.stream.segments if segment.task == task]
    if leads:
        return leads[0] if leads[0] < rows else None
    return first_trained(run, task, rows)


def first_trained(run: "Run", task: str, rows: int) -> int | None:
    """The first segment in which a task takes part; None where the run did not get that far."""
    for segment in run.stream.segments[: rows - 1]:
        if any(task in run.stream.schedule.shares(i) for i in range(segment.first, segment.last + 1)):
            return segment.number
    return None


def describe_stream(run: "Run") -> dict[str, Any] | None:
    """For summary.json: the matrix and what follows from it; None where no task can be graded."""
    matrix = read_matrix(run)
    if matrix is None:
        return None
    metrics = matrix.metrics(seed=run.seed("bootstrap", "stream"))
    curves = validation_curves(run, matrix)
    return {
        "stream": run.config.stream.kind,
        "tasks": list(matrix.tasks),
        "rows": list(matrix.rows),
        "matrix": [[None if np.isnan(value) else float(value) for value in row] for row in matrix.values()],
        "intervals": [
            [_interval(matrix.estimate(row, task)) for task in matrix.tasks] for row in range(len(matrix.rows))
        ],
        "learned": list(matrix.learned),
        "metrics": {name: asdict(estimate) if estimate else None for name, estimate in metrics.items()},
        "stability_gap": _known(stability_gap(list(curves.values()))),
        "curves": curves,
        "kl_from_base": _read_kl(run.kl_path("final")),
    }


def validation_curves(run: "Run", matrix: ScoreMatrix) -> dict[str, list[float]]:
    """Of each task that was trained before the last segment: its pass@1 on validation prompts, from the end of the
    segment in which it was first trained to the end of the run."""
    metrics = list(read_jsonl(run.directory.metrics))
    curves = {}
    for task, row in zip(matrix.tasks, matrix.learned, strict=True):
        if row is not None and row < len(matrix.rows) - 1:
            start, name = run.stream.segments[row - 1].last, f"validation/{task}/pass@1"
            curves[task] = [line[name] for line in metrics if line["iteration"] >= start and name in line]
    return curves


def kl_terms(run: "Run", task: "Task", prompts: Sequence[Prompt]) -> np.ndarray:
    """Of every token of one completion per prompt: r − 1 − log r with r = base / π, π being what the engine serves.
    Their mean is the k3 estimate of KL(π ‖ untouched model) in nats per token
    (http://joschu.net/blog/kl-approx.html)."""
    sampling = replace(run.sampling(task), n=1)
    groups = run.engine.generate(prompts, sampling, seed=run.seed("kl", task.name))
    rollouts = [group[0] for group in groups if group[0].completion_ids]
    if not rollouts:
        return np.zeros(0)
    rows = run.policy.logprobs(rollouts, adapter=BASE, temperature=sampling.temperature)
    log_ratio = np.concatenate(rows) - np.concatenate([rollout.logprobs for rollout in rollouts])
    return np.exp(log_ratio) - 1 - log_ratio


def _interval(estimate: Estimate | None) -> tuple[float, float] | None:
    return None if estimate is None else (estimate.low, estimate.high)


def _read_kl(path: Path) -> dict[str, float] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
