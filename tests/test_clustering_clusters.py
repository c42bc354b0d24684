"""Clusters of made-up points: found, numbered alike from fit to fit, saved, and defined where there is little."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from sklearn.cluster import DBSCAN, KMeans
from sklearn.metrics import adjusted_rand_score

from rlsf.clustering.clusters import Clusters, fit_clusters, match_labels
from rlsf.clustering.grouping import NOISE, knee_eps
from rlsf.clustering.projection import fit_projection
from rlsf.config.clustering import ClusterConfig, DbscanConfig, HdbscanConfig, KMeansConfig

KINDS: list[Any] = [KMeansConfig(k=3), DbscanConfig(), HdbscanConfig()]
BY_KIND = pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
CENTRES = np.random.default_rng(5).normal(scale=12, size=(6, 20))


def blobs(*which: int, each: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around some of the centres, and the numbers of these."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(which, each)
    return (CENTRES[truth] + rng.normal(size=(len(truth), 20))).astype(np.float32), truth


@BY_KIND
def test_blobs_are_found_and_new_points_join_them(config: ClusterConfig) -> None:
    points, truth = blobs(0, 1, 2)
    clusters = fit_clusters(points, config, seed=0)
    new, of = blobs(0, 1, 2, each=20, seed=1)
    assert clusters.labels == (0, 1, 2)
    assert adjusted_rand_score(truth, clusters.assign(points)) > 0.9
    labels = clusters.assign(new)
    assert adjusted_rand_score(of[labels >= 0], labels[labels >= 0]) == 1
    assert np.mean(labels == NOISE) < 0.25


def test_what_lies_far_away_is_noise_but_for_kmeans() -> None:
    points, _ = blobs(0, 1, 2)
    far = blobs(3)[0]
    for config in KINDS:
        labels = fit_clusters(points, config, seed=0).assign(far)
        assert (labels == NOISE).all() == (config.kind != "kmeans")


def test_kmeans_and_dbscan_are_scikit_learns() -> None:
    points, _ = blobs(0, 1, 2, 3)
    projected = fit_projection(points, 16)(points)
    kmeans = KMeans(3, n_init=10, random_state=0).fit(projected)
    assert adjusted_rand_score(kmeans.labels_, fit_clusters(points, KINDS[0], seed=0).assign(points)) == 1
    config = DbscanConfig(eps=4.0)
    labels, expected = fit_clusters(points, config, 0).assign(points), DBSCAN(eps=4.0, min_samples=5).fit(projected)
    core = expected.core_sample_indices_
    assert len(core) > 50
    assert adjusted_rand_score(expected.labels_[core], labels[core]) == 1
    np.testing.assert_array_equal(expected.labels_ == NOISE, labels == NOISE)


def test_dbscan_gives_a_new_point_the_label_of_the_nearest_core_point_within_eps() -> None:
    """Against a double loop."""
    points, _ = blobs(0, 1, 2)
    clusters = fit_clusters(points, DbscanConfig(min_samples=4), seed=0)
    new = np.concatenate([blobs(0, 1, 2, each=30, seed=2)[0], np.random.default_rng(3).normal(scale=9, size=(40, 20))])
    expected = []
    for point in clusters.projection(new):
        distances = [float(np.sqrt(((point - core) ** 2).sum())) for core in clusters.anchors.points]
        nearest = int(np.argmin(distances))
        is_inside = distances[nearest] <= clusters.anchors.reach[nearest]
        expected.append(int(clusters.anchors.labels[nearest]) if is_inside else NOISE)
    assert clusters.assign(new).tolist() == expected
    assert NOISE in expected


def test_hdbscan_gives_the_points_of_the_fit_its_own_labels() -> None:
    from sklearn.cluster import HDBSCAN

    points, _ = blobs(0, 1, 2, 3)
    points[::9] += np.random.default_rng(1).normal(scale=8, size=points[::9].shape)
    clusters = fit_clusters(points, HdbscanConfig(), seed=0)
    expected = HDBSCAN(min_cluster_size=5, copy=True).fit_predict(clusters.projection(points))
    assert adjusted_rand_score(expected, clusters.assign(points)) == 1
    np.testing.assert_array_equal(expected == NOISE, clusters.assign(points) == NOISE)


def test_the_knee_is_furthest_below_the_line() -> None:
    points = np.array([[0.0], [1], [2], [3], [4], [5], [6], [7], [20], [60]])
    assert knee_eps(points, 2) == 1.0  # the distances to the nearest other one are eight ones, 13 and 40
    assert knee_eps(np.zeros((5, 2)), 3) == 1.0
    assert knee_eps(np.array([[0.0], [0], [0], [0], [7]]), 2) == 7.0


@BY_KIND
def test_clusters_keep_their_numbers_and_new_ones_get_new_numbers(config: ClusterConfig) -> None:
    first = fit_clusters(blobs(0, 1, 2)[0], config, seed=0)
    points, truth = blobs(2, 3, 0, 1, seed=1)
    wider = config.model_copy(update={"k": 4} if config.kind == "kmeans" else {})
    second = fit_clusters(points, wider, seed=1, previous=first)
    third = fit_clusters(blobs(1, 2, each=60, seed=2)[0], config.model_copy(update={"k": 2}), seed=2, previous=second)
    numbers = {}
    for centre in range(4):
        exact = CENTRES[[centre]]
        label = int(second.assign(exact)[0])
        numbers[centre] = label
        if centre < 3:
            assert label == first.assign(exact)[0]
        if centre in (1, 2):
            assert label == third.assign(exact)[0]
    assert numbers[3] == 3
    assert third.next_label == second.next_label == 4  # numbers that are out of use stay so
    fourth = fit_clusters(blobs(1, 4)[0], config.model_copy(update={"k": 2}), seed=3, previous=third)
    assert fourth.assign(CENTRES[[4]]).tolist() == [4]
    assert adjusted_rand_score(truth, second.assign(points)) > 0.9


def test_numbers_are_matched_one_to_one_by_most_points() -> None:
    before = np.array([7, 7, 7, 2, 2, 2, 2, NOISE, NOISE])
    assert match_labels(np.array([0, 0, 0, 1, 1, 1, 1, 1, 1]), before, 8) == {0: 7, 1: 2}
    assert match_labels(np.array([0, 0, 0, 0, 0, 0, 0, 1, 1]), before, 8) == {
        0: 2,
        1: 8,
    }  # the larger part gives its name
    before = np.array([NOISE] * 4 + [7] * 5 + [2] * 10)  # one of five points is not enough to be the same
    assert match_labels(np.array([0] * 5 + [1] * 14), before, 8) == {1: 2, 0: 8}
    assert match_labels(np.array([], dtype=int), np.array([], dtype=int), 3) == {}
    assert match_labels(np.array([1, 1, 0]), np.array([NOISE] * 3), 0) == {1: 0, 0: 1}  # the largest first


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), max_size=30))
def test_matching_is_one_to_one_and_names_every_cluster(pairs: list[tuple[int, int]]) -> None:
    found, before = np.array(pairs, dtype=int).reshape(-1, 2).T
    numbers = match_labels(found, before, 5)
    assert set(numbers) == set(found.tolist()) - {NOISE}
    assert len(set(numbers.values())) == len(numbers)
    assert all(0 <= number < 5 + len(numbers) for number in numbers.values())


@BY_KIND
def test_saved_clusters_are_the_same_bit_for_bit(config: ClusterConfig) -> None:
    points, _ = blobs(0, 1, 2)
    clusters = fit_clusters(points, config, seed=0)
    loaded = Clusters.from_bytes(clusters.to_bytes())
    assert loaded.to_bytes() == clusters.to_bytes()
    for mine, its in (
        (clusters.projection.rotation, loaded.projection.rotation),
        (clusters.anchors.points, loaded.anchors.points),
        (clusters.anchors.reach, loaded.anchors.reach),
    ):
        assert mine.dtype == its.dtype
        np.testing.assert_array_equal(mine, its)
    new = blobs(0, 1, 3, seed=4)[0]
    again = [fit_clusters(new, config, 1, previous).to_bytes() for previous in (clusters, loaded)]
    assert again[0] == again[1]


def test_what_is_no_saved_clusters_is_refused() -> None:
    data = fit_clusters(blobs(0)[0], KINDS[0], seed=0).to_bytes()
    for broken in (b"", b"nonsense", data[: len(data) // 2]):
        with pytest.raises(ValueError, match="fit them anew"):
            Clusters.from_bytes(broken)


@BY_KIND
def test_little_input_is_defined(config: ClusterConfig) -> None:
    nothing = fit_clusters(np.zeros((0, 20)), config, seed=0)
    assert nothing.labels == ()
    assert nothing.assign(blobs(0)[0]).tolist() == [NOISE] * 40
    assert nothing.assign(np.zeros((0, 20))).shape == (0,)
    one = fit_clusters(np.ones((1, 20)), config, seed=0)
    assert one.assign(np.ones((1, 20))).tolist() == [0 if config.kind == "kmeans" else NOISE]
    same = fit_clusters(np.ones((30, 20)), config, seed=0)
    assert same.labels == (0,)
    assert same.assign(np.ones((2, 20))).tolist() == [0, 0]
    two = fit_clusters(np.eye(20)[:2], config, seed=0)
    assert two.labels == ((0, 1) if config.kind == "kmeans" else ())
    after = fit_clusters(np.zeros((0, 20)), config, seed=0, previous=same)
    assert (after.labels, after.next_label) == ((), 1)


@BY_KIND
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_errors(config: ClusterConfig, value: float) -> None:
    points, _ = blobs(0, 1, 2)
    clusters = fit_clusters(points, config, seed=0)
    points[7, 3] = value
    for attempt in (lambda: fit_clusters(points, config, seed=0), lambda: clusters.assign(points)):
        with pytest.raises(ValueError, match="1 of 120 embeddings are not finite, the first is number 7"):
            attempt()


def test_points_of_another_width_are_an_error() -> None:
    clusters = fit_clusters(blobs(0)[0], KINDS[0], seed=0)
    with pytest.raises(ValueError, match="20"):
        clusters.assign(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="must be"):
        clusters.assign(np.zeros(20))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(KINDS), st.integers(0, 12), st.integers(1, 4), st.integers(0, 3))
def test_any_few_points_get_a_label_each(config: ClusterConfig, count: int, width: int, spread: int) -> None:
    points = np.random.default_rng(count).integers(0, spread + 1, size=(count, width)).astype(float)
    clusters = fit_clusters(points, config, seed=0)
    assert set(clusters.assign(points).tolist()) <= {NOISE, *clusters.labels}
    assert Clusters.from_bytes(clusters.to_bytes()).assign(points).tolist() == clusters.assign(points).tolist()


def test_of_many_points_a_sample_decides() -> None:
    points, truth = blobs(0, 1, 2, each=100)
    fits = [fit_clusters(points, HdbscanConfig(limit=90), seed) for seed in (0, 0, 1)]
    assert len(fits[0].anchors.points) == 90
    assert fits[0].to_bytes() == fits[1].to_bytes() != fits[2].to_bytes()
    assert adjusted_rand_score(truth, fits[0].assign(points)) > 0.8


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 30), st.integers(1, 12), st.integers(1, 20))
def test_the_projection_keeps_what_principal_components_keep(count: int, width: int, dimensions: int) -> None:
    from sklearn.decomposition import PCA

    points = np.random.default_rng(count).normal(size=(count, width)) * np.logspace(0, 3, width)
    projected = fit_projection(points, dimensions)(points)
    kept = projected.shape[1]
    assert kept <= min(dimensions, width, count - 1)
    expected = PCA(kept).fit_transform((points - points.mean(axis=0)) / points.std(axis=0))
    np.testing.assert_allclose(np.abs(projected), np.abs(expected), atol=1e-6)


def test_dimensions_that_only_differ_by_rounding_do_not_count() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 3))
    noisy = np.concatenate([points, 5 + 1e-7 * rng.normal(size=(50, 30))], axis=1)
    np.testing.assert_allclose(fit_projection(noisy, 3)(noisy) ** 2, fit_projection(points, 3)(points) ** 2, atol=1e-8)


def test_kinds_are_told_apart_in_a_config() -> None:
    adapter = TypeAdapter(ClusterConfig)
    assert adapter.validate_python({"kind": "dbscan", "eps": 0.5}) == DbscanConfig(eps=0.5)
    for wrong in ({"kind": "kmeans", "eps": 1}, {"kind": "dbscan", "eps": 0}, {"kind": "spectral"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
