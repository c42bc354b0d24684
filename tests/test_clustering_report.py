"""Clusters as figures, a table and a map."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import silhouette_samples

from rlsf.clustering.clusters import fit_clusters
from rlsf.clustering.report import MARKERS, clusters_table, describe, plot_map
from rlsf.config.clustering import DbscanConfig, KMeansConfig
from rollouts.types import Prompt
from tests.test_clustering_clusters import CENTRES, blobs


def prompts_of(truth: np.ndarray) -> list[Prompt]:
    return [Prompt(str(i), f"task {number % 2}", f"number {i} of {number}") for i, number in enumerate(truth)]


def test_clusters_are_described() -> None:
    """Figures computed again from the labels."""
    points, truth = blobs(0, 1, 2, each=20)
    points = np.concatenate([points, 15 + CENTRES[[3]]])
    truth = np.append(truth, 3)
    prompts = prompts_of(truth)
    prompts[1] = replace(prompts[1], content=prompts[0].text)
    rewards = [None if i % 3 == 0 or number == 2 else float(number) for i, number in enumerate(truth)]
    clusters = fit_clusters(points, DbscanConfig(eps=3.0), seed=0)
    reports = describe(clusters, points, prompts, rewards)
    labels, projected = clusters.assign(points), clusters.project(points)
    assert [report.label for report in reports] == [0, 1, 2, -1]
    assert sum(report.size for report in reports) == 61
    inside = labels >= 0
    expected = silhouette_samples(projected[inside], labels[inside])
    for report in reports[:-1]:
        own = labels == report.label
        number = truth[own][0]
        assert report.tasks == {f"task {number % 2}": report.size}
        assert report.reward == (None if number == 2 else number)
        assert report.silhouette == pytest.approx(expected[labels[inside] == report.label].mean())
        centre = projected[own].mean(axis=0)
        nearest = np.flatnonzero(own)[np.argmin(np.linalg.norm(projected[own] - centre, axis=1))]
        assert report.examples[0] == prompts[nearest].text
        assert len(set(report.examples)) == 3
    assert reports[-1].silhouette is None
    with pytest.raises(ValueError, match="do not go together"):
        describe(clusters, points, prompts, rewards[1:])


def test_one_cluster_has_no_silhouette_and_no_points_no_clusters() -> None:
    points, truth = blobs(0)
    clusters = fit_clusters(points, KMeansConfig(k=1), seed=0)
    [report] = describe(clusters, points, prompts_of(truth), [1.0] * 40)
    assert (report.silhouette, report.reward, report.size) == (None, 1.0, 40)
    assert describe(clusters, points[:0], [], []) == []


def test_the_table_counts_tasks_and_shows_nothing_that_steers_the_terminal() -> None:
    points, truth = blobs(0, 1, each=10)
    prompts = [replace(prompt, content="[red]\x1b[2J\nx" + "y" * 200) for prompt in prompts_of(truth)]
    reports = describe(fit_clusters(points, KMeansConfig(k=2), 0), points, prompts, [None] * 20)
    out = io.StringIO()
    Console(file=out, width=80).print(clusters_table(reports))
    lines = out.getvalue().splitlines()
    assert lines[0].split()[:6] == ["cluster", "size", "task", "0", "task", "1"]
    assert sorted(line.split()[2:4] for line in lines[1:]) == [["10", "·"], ["·", "10"]]
    assert "\x1b" not in out.getvalue()
    assert "[red]\\x1b[2J" in out.getvalue()
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_the_map_is_drawn_alike_each_time(method: Literal["pca", "tsne"], tmp_path: Path) -> None:
    points, truth = blobs(0, 1, each=15)
    labels = np.where(np.arange(30) % 10 == 0, -1, truth)
    for name in ("a.svg", "b.svg"):
        plot_map(points, labels, tmp_path / name, tasks=[f"t{n}" for n in truth], method=method)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    for shown in ("30 points in 2 clusters, silhouette", "noise (3)", "cluster (points)", "t1"):
        assert f"<!-- {shown}" in text
    plot_map(points, labels, tmp_path / "map.png", method=method)
    assert (tmp_path / "map.png").stat().st_size > 5000


def test_any_number_of_points_can_be_drawn(tmp_path: Path) -> None:
    for count in (0, 1, 2, 11):
        tasks = [f"t{i}" for i in range(count)]
        method = "tsne" if count % 2 else "pca"
        plot_map(np.eye(11)[:count], np.zeros(count, dtype=int), tmp_path / "x.svg", tasks=tasks, method=method)
    points, labels = np.random.default_rng(0).normal(size=(25, 1)), np.arange(25)
    plot_map(points, labels, tmp_path / "x.svg", tasks=[str(i % (len(MARKERS) + 3)) for i in range(25)])
    assert "25 points in 25 clusters" in (tmp_path / "x.svg").read_text()
    with pytest.raises(ValueError, match="not finite"):
        plot_map(points * np.nan, labels, tmp_path / "y.svg")
