"""Clusters as figures, as a table and as a map."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.table import Table
from rich.text import Text

from rlsf.clustering.clusters import Clusters
from rlsf.clustering.grouping import NOISE
from rlsf.clustering.projection import check_points
from rlsf.figures import save_figure
from rlsf.replay.show import visible
from rollouts.types import Prompt

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

EXAMPLES = 3
COLOURS = "#0b6e99", "#d1802a", "#4f9a5b", "#a3456c", "#6d5fa8", "#b8a225", "#3fa7a0", "#8c5a3c", "#d16d8d", "#5b7fb9"
GREY = "#b9bcc2"
"""Of noise."""
MARKERS = "osD^vP*X<>hp"
IN_LEGEND = 20
"""Clusters or tasks; what comes after them is drawn, and not named."""


@dataclass(frozen=True, slots=True)
class ClusterReport:
    """One cluster, or the noise (label −1)."""

    label: int
    size: int
    """Points."""
    tasks: dict[str, int]
    """Points by task, the most frequent first."""
    reward: float | None
    """Mean over the points that have one, which is the success rate where rewards are 0 and 1; None where none has."""
    silhouette: float | None
    """Mean over its points, in [−1, 1] (Rousseeuw 1987): how much closer they are to each other than to the nearest
    other cluster. None for noise, and where there is no other cluster."""
    examples: tuple[str, ...]
    """The prompts nearest to its mean, each once."""


def describe(
    clusters: Clusters, points: np.ndarray, prompts: Sequence[Prompt], rewards: Sequence[float | None]
) -> list[ClusterReport]:
    """The clusters that any of (N, H) points belongs to, in the order of their numbers, noise last.

    Args:
        prompts: N, one per point; a prompt may come more than once.
        rewards: N, None where unknown.

    Raises:
        ValueError: there are not N of each, or a point is not finite.
    """
    if not len(points) == len(prompts) == len(rewards):
        raise ValueError(f"{len(points)} points, {len(prompts)} prompts and {len(rewards)} rewards do not go together")
    labels = clusters.assign(points)
    projected = clusters.project(points)
    silhouettes = silhouette_values(projected, labels)
    found = sorted({int(label) for label in labels}, key=lambda label: (label == NOISE, label))
    reports = []
    for label in found:
        own = np.flatnonzero(labels == label)
        known = [float(reward) for reward in (rewards[index] for index in own) if reward is not None]
        counts = Counter(prompts[index].task for index in own)
        reports.append(
            ClusterReport(
                label=label,
                size=len(own),
                tasks=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
                reward=float(np.mean(known)) if known else None,
                silhouette=None if label == NOISE or silhouettes is None else float(silhouettes[own].mean()),
                examples=_examples(projected, own, prompts),
            )
        )
    return reports


def silhouette_values(points: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    """(N,) silhouettes among the points that belong to clusters, NaN for noise; None where there is one cluster or
    none, or as many as points."""
    from sklearn.metrics import silhouette_samples

    inside = labels != NOISE
    if not 2 <= len(np.unique(labels[inside])) < inside.sum():
        return None
    values = np.full(len(labels), np.nan)
    values[inside] = silhouette_samples(points[inside], labels[inside])
    return values


def _examples(points: np.ndarray, own: np.ndarray, prompts: Sequence[Prompt]) -> tuple[str, ...]:
    distances = np.linalg.norm(points[own] - points[own].mean(axis=0), axis=1)
    texts = (prompts[index].text for index in own[np.argsort(distances, kind="stable")])
    return tuple(dict.fromkeys(texts))[:EXAMPLES]


def clusters_table(reports: Sequence[ClusterReport]) -> Table:
    """Clusters × tasks; of the example as much as there is room for."""
    tasks = sorted({task for report in reports for task in report.tasks})
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for title in ("cluster", "size", *map(visible, tasks), "reward", "silhouette"):
        table.add_column(Text(title), justify="right", no_wrap=True)
    table.add_column("nearest to its centre")  # the one column that may shrink: its cells are cut off
    for report in reports:
        example = " ".join(visible(report.examples[0]).split())
        table.add_row(
            "noise" if report.label == NOISE else str(report.label),
            str(report.size),
            *[str(report.tasks[task]) if task in report.tasks else "·" for task in tasks],
            *["–" if value is None else f"{value:.2f}" for value in (report.reward, report.silhouette)],
            Text(example, no_wrap=True, overflow="ellipsis"),
        )
    return table


def plot_map(
    points: np.ndarray,
    labels: np.ndarray,
    path: Path,
    *,
    tasks: Sequence[str] | None = None,
    method: Literal["pca", "tsne"] = "pca",
    seed: int = 0,
) -> None:
    """Draw (N, D) points in two dimensions, coloured by cluster, with a mark for each task; noise is grey. `path` is
    replaced whole; its suffix says the format. Needs no display.

    Args:
        labels: (N,), −1 for noise.
        tasks: N; None draws one mark for all.
        method: the first two principal components, or t-SNE (van der Maaten & Hinton 2008), which keeps neighbours
            together and says nothing about distances between clusters.

    Raises:
        OSError: it cannot be written.
        ValueError: a point is not finite.
    """
    from matplotlib.figure import Figure

    points = check_points(points)
    flat, names = _flat(points, method, seed)
    kinds = list(tasks) if tasks is not None else ["prompts"] * len(points)
    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    axes = figure.subplots()
    for label in sorted(set(labels.tolist())):
        for number, task in enumerate(sorted(set(kinds))):
            own = (labels == label) & (np.array(kinds, dtype=object) == task)
            axes.scatter(
                flat[own, 0], flat[own, 1], s=18, marker=MARKERS[number % len(MARKERS)], color=_colour(label),
                alpha=0.75, linewidths=0.3, edgecolors="white", zorder=1 if label == NOISE else 2,
            )  # fmt: skip
    silhouettes = silhouette_values(points, labels)
    count = len(set(labels.tolist()) - {NOISE})
    known = "" if silhouettes is None else f", silhouette {np.nanmean(silhouettes):.2f}"
    axes.set_title(f"{len(points)} points in {count} cluster{'' if count == 1 else 's'}{known}")
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.grid(alpha=0.25)
    handles = _legend(labels, kinds if tasks is not None else [])
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    save_figure(figure, path)


def _flat(points: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, tuple[str, str]]:
    """(N, 2), and what the axes are called. t-SNE needs more than a few points: below that the components stand in."""
    if method == "tsne" and len(points) > 10:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(points) - 1) / 3)
        flat = TSNE(perplexity=perplexity, init="pca", random_state=seed % 2**32).fit_transform(points)
        return np.asarray(flat, dtype=np.float64), ("t-SNE, first axis", "t-SNE, second axis")
    centred = points - (points.mean(axis=0) if len(points) else 0.0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]  # not standardised: the points of a fit are already
    flat = np.zeros((len(points), 2))
    flat[:, : len(axes)] = centred @ axes.T
    return flat, ("first principal component", "second principal component")


def _legend(labels: np.ndarray, tasks: Sequence[str]) -> "list[Line2D]":
    from matplotlib.lines import Line2D

    def mark(name: str, marker: str = "", colour: str = "none") -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=colour, label=name, markersize=6)

    sizes = Counter(labels.tolist())
    clusters = [
        mark(f"{'noise' if label == NOISE else label} ({sizes[label]})", "o", _colour(label))
        for label in sorted(sizes, key=lambda label: (label == NOISE, label))[:IN_LEGEND]
    ]
    kinds = [
        mark(visible(task), MARKERS[number % len(MARKERS)], "#50545c")
        for number, task in enumerate(sorted(set(tasks))[:IN_LEGEND])
    ]
    return [mark("cluster (points)"), *clusters, *([mark(""), mark("task"), *kinds] if kinds else [])]


def _colour(label: int) -> str:
    return GREY if label == NOISE else COLOURS[label % len(COLOURS)]
