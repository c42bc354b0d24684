"""A hidden task told from its prompts: the test, what is remembered, and streams of made-up and real tasks."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy.stats import energy_distance, kstest

from rlsf.clustering.embeddings import ModelEmbeddings
from rlsf.clustering.identity import Detector, Verdict, make_detector
from rlsf.clustering.memory import NOVEL, Context, nearest_contexts
from rlsf.clustering.two_sample import energy_test
from rlsf.config.clustering import ClustersIdentity, DriftIdentity, IdentityConfig, KnownIdentity
from rlsf.config.schema import TaskConfig
from rlsf.models import load_base_model, load_tokenizer, resolve_model
from rlsf.models.lab_tasks import LAB_TASKS
from rlsf.tasks.stream import build_task

HIDDEN: list[Any] = [ClustersIdentity(), DriftIdentity(permutations=199)]
BY_KIND = pytest.mark.parametrize("config", HIDDEN, ids=lambda config: config.kind)
CENTRES = np.random.default_rng(5).normal(scale=6, size=(5, 24))


def batch(rng: np.random.Generator, *which: int, size: int = 16) -> np.ndarray:
    """Points around one centre, or around several in turn."""
    numbers = np.resize(which, size)
    return (CENTRES[numbers] + rng.normal(size=(size, 24))).astype(np.float32)


def follow(detector: Detector | None, batches: Iterable[np.ndarray]) -> list[Verdict]:
    assert detector is not None
    return [detector.observe(points) for points in batches]


def contexts(verdicts: list[Verdict]) -> list[int]:
    return [int(verdict.context.removeprefix("context-")) for verdict in verdicts]


# -- the test ----------------------------------------------------------------------------------------------------------


def test_the_statistic_is_that_of_a_double_loop() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)) + 1

    def mean(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.mean([[np.sqrt(((x - y) ** 2).sum()) for y in other] for x in one]))

    energy = 2 * mean(first, second) - mean(first, first) - mean(second, second)
    statistic, p_value = energy_test(first, second, permutations=99, seed=0)
    assert statistic == pytest.approx(energy / (2 * mean(first, second)))
    assert energy_test(second, first, permutations=99, seed=0)[0] == pytest.approx(statistic)
    line = energy_test(first[:, :1], second[:, :1], permutations=99, seed=0)[0]
    assert line * 2 * mean(first[:, :1], second[:, :1]) == pytest.approx(
        energy_distance(first[:, 0], second[:, 0]) ** 2  # scipy's is the root of it
    )
    assert 0 < p_value <= 1


def test_the_p_value_counts_splits_as_extreme() -> None:
    """Against every split of six points into two and four."""
    from itertools import combinations

    rng = np.random.default_rng(1)
    points = rng.normal(size=(6, 2))

    def energy(chosen: tuple[int, ...]) -> float:
        others = [index for index in range(6) if index not in chosen]
        distances = np.linalg.norm(points[:, None] - points[None], axis=2)
        of = [distances[np.ix_(a, b)].mean() for a, b in ((chosen, others), (chosen, chosen), (others, others))]
        return float(2 * of[0] - of[1] - of[2])

    splits = [energy(chosen) for chosen in combinations(range(6), 2)]
    exact = np.mean([value >= splits[0] - 1e-12 for value in splits])
    _, p_value = energy_test(points[:2], points[2:], permutations=4000, seed=3)
    assert p_value == pytest.approx(exact, abs=0.03)


def test_the_p_value_is_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(2)
    values = [energy_test(*np.split(rng.normal(size=(40, 4)), [28]), permutations=99, seed=s)[1] for s in range(300)]
    assert kstest(np.array(values) - rng.random(300) / 100, "uniform").pvalue > 0.01
    assert np.mean(np.array(values) <= 0.05) == pytest.approx(0.05, abs=0.035)


def test_equal_points_are_alike() -> None:
    assert energy_test(np.zeros((4, 2)), np.zeros((3, 2)), permutations=19, seed=0) == (0.0, 1.0)
    assert energy_test(np.zeros((1, 2)), np.ones((1, 2)), permutations=19, seed=0) == (1.0, 1.0)


# -- what is remembered ------------------------------------------------------------------------------------------------


def test_a_context_keeps_a_uniform_sample() -> None:
    kept = np.zeros(30)
    for seed in range(400):
        context = Context("c", np.zeros((0, 1), dtype=np.float32))
        for part in np.split(np.arange(30.0)[:, None], 3):
            context.remember(part, 10, seed)
        assert len(context.points) == 10
        kept[context.points[:, 0].astype(int)] += 1
    assert context.seen == 30
    np.testing.assert_allclose(kept / 400, 1 / 3, atol=0.1)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 6), st.integers(1, 5), st.integers(0, 100))
def test_a_context_goes_through_json_bit_for_bit(count: int, width: int, seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    context = Context("context-1", points, seen=seed)
    loaded = Context.from_json(json.loads(json.dumps(context.to_json())))
    assert (loaded.name, loaded.seen, loaded.points.dtype) == ("context-1", seed, np.float32)
    np.testing.assert_array_equal(loaded.points, points)
    loaded.remember(points, 8, 0)  # it can be written to


def test_points_lie_next_to_the_context_they_resemble() -> None:
    rng = np.random.default_rng(0)
    known = [Context(str(number), batch(rng, number, size=60)) for number in (0, 1)]
    near = nearest_contexts(known, batch(rng, 1, 2, 0, size=60), 16)
    for place, number in enumerate((1, NOVEL, 0)):
        assert np.mean(near[place::3] == number) > 0.8
    assert nearest_contexts([Context("one", batch(rng, 0, size=1))], batch(rng, 0, size=3), 4).tolist() == [NOVEL] * 3


# -- detectors ---------------------------------------------------------------------------------------------------------


@BY_KIND
def test_contexts_are_met_and_recognised(config: IdentityConfig) -> None:
    rng = np.random.default_rng(0)
    order = [0] * 6 + [1] * 6 + [2] * 6 + [0] * 6 + [1] * 6
    verdicts = follow(make_detector(config, seed=0), [batch(rng, number) for number in order])
    assert contexts(verdicts) == [1] * 7 + [2] * 6 + [3] * 6 + [1] * 6 + [2] * 5  # the second odd batch decides
    assert [i for i, verdict in enumerate(verdicts) if verdict.changed] == [7, 13, 19, 25]
    assert [i for i, verdict in enumerate(verdicts) if verdict.is_new] == [0, 7, 13]
    if config.kind == "drift":
        assert verdicts[0].p_value is None
        assert [verdicts[i].p_value for i in (6, 7, 12, 13)] == [1 / 200] * 4
        assert verdicts[6].statistic > 0.3 > 0.1 > verdicts[3].statistic
    else:
        assert {verdict.p_value for verdict in verdicts} == {None}
        assert verdicts[6].statistic < 0.1 < 0.5 < verdicts[3].statistic


@BY_KIND
def test_one_odd_batch_is_no_change(config: IdentityConfig) -> None:
    rng = np.random.default_rng(1)
    order = [0, 0, 0, 1, 0, 0, 1, 0, 0]
    assert contexts(follow(make_detector(config, seed=0), [batch(rng, number) for number in order])) == [1] * 9
    hasty = make_detector(config.model_copy(update={"consecutive": 1}), seed=0)
    assert contexts(follow(hasty, [batch(rng, number) for number in order])) == [1, 1, 1, 2, 1, 1, 2, 1, 1]


@BY_KIND
def test_a_blurred_boundary_makes_one_change_and_no_context_of_its_own(config: IdentityConfig) -> None:
    rng = np.random.default_rng(2)
    blur = [(0, 0, 0, 0, 1), (0, 0, 0, 1, 1), (0, 0, 1, 1, 1), (0, 1, 1, 1, 1)]
    batches = [batch(rng, 0) for _ in range(6)] + [batch(rng, *mix, size=20) for mix in blur]
    batches += [batch(rng, 1) for _ in range(6)] + [batch(rng, *(1 - n for n in mix), size=20) for mix in blur]
    batches += [batch(rng, 0) for _ in range(4)]
    verdicts = follow(make_detector(config, seed=0), batches)
    assert sum(verdict.changed for verdict in verdicts) == 2
    assert set(contexts(verdicts)) == {1, 2}
    assert (contexts(verdicts)[5], contexts(verdicts)[11], contexts(verdicts)[-1]) == (1, 2, 1)


@BY_KIND
@settings(deadline=None, max_examples=8)
@given(cut=st.integers(0, 11), seed=st.integers(0, 5))
def test_it_goes_on_as_if_it_had_never_stopped(config: IdentityConfig, cut: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches = [batch(rng, number) for number in (0, 0, 0, 1, 1, 1, 2, 2, 0, 0, 1, 1)]
    whole = make_detector(config, seed)
    expected = follow(whole, batches)
    first = make_detector(config, seed)
    verdicts = follow(first, batches[:cut])
    assert first is not None and whole is not None
    second = make_detector(config, seed, json.loads(json.dumps(first.to_json())))
    assert verdicts + follow(second, batches[cut:]) == expected
    assert second is not None and second.to_json() == whole.to_json()


@BY_KIND
def test_what_cannot_be_observed_is_an_error(config: IdentityConfig) -> None:
    detector = make_detector(config, seed=0)
    assert detector is not None
    points = batch(np.random.default_rng(0), 0)
    detector.observe(points)
    for wrong, message in (
        (points[:0], "without prompts"),
        (points[:, :5], "5 dimensions"),
        (points * np.nan, "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            detector.observe(wrong)
    assert contexts([detector.observe(points)]) == [1]  # the same prompts again are no news


@BY_KIND
def test_batches_of_one_prompt_and_of_equal_prompts_are_defined(config: IdentityConfig) -> None:
    detector = make_detector(config, seed=0)
    verdicts = follow(detector, [np.ones((1, 3)), np.ones((1, 3)), np.ones((5, 3)), np.zeros((4, 3)), np.zeros((4, 3))])
    assert contexts(verdicts)[:3] == [1, 1, 1]
    assert all(np.isfinite(verdict.statistic) for verdict in verdicts)


def test_a_known_task_needs_no_detector() -> None:
    assert make_detector(KnownIdentity(), seed=0) is None
    adapter: Any = TypeAdapter(IdentityConfig)
    assert adapter.validate_python({"kind": "drift", "level": 0.05}) == DriftIdentity(level=0.05)
    with pytest.raises(ValidationError, match=r"permutations: 99 give no p-value below 0\.01"):
        adapter.validate_python({"kind": "drift", "level": 0.001, "permutations": 99})


@BY_KIND
def test_tasks_of_the_lab_model_are_told_apart(config: IdentityConfig) -> None:
    """A part of what docs/clustering.md has figures of."""
    folder = resolve_model("lab")
    embed = ModelEmbeddings(load_base_model(folder, "float32", "cpu"), load_tokenizer(folder)).prompts
    points = []
    for name in ("sum", "gcd", "reverse"):
        given = {**LAB_TASKS[name], "source": {**LAB_TASKS[name]["source"], "size": 240}}
        task = TaskConfig.model_validate({**given, "split": {"validation": 1, "test": 1}})
        points.append(embed(build_task(task, 0).train))
    rng = np.random.default_rng(0)
    order = [0] * 8 + [1] * 8 + [2] * 8 + [0] * 8
    batches = [points[number][rng.choice(len(points[number]), 16, replace=False)] for number in order]
    found = contexts(follow(make_detector(config, seed=0), batches))
    assert found == [1] * 9 + [2] * 8 + [3] * 8 + [1] * 7
