"""Segments and shares of every kind of stream."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsf.config.stream import (
    BlurredStream,
    ConvergenceConfig,
    DriftingStream,
    JointStream,
    RecurringStream,
    SequentialStream,
)
from rlsf.stopping import converged
from rlsf.tasks import Schedule


def segments(schedule: Schedule) -> list[tuple[str, int, int]]:
    return [(segment.task, segment.first, segment.last) for segment in schedule.segments]


def test_sequential_in_any_order() -> None:
    schedule = Schedule(SequentialStream(order=("b", "a")), {"a": 2, "b": 3})
    assert segments(schedule) == [("b", 1, 3), ("a", 4, 5)]
    assert [schedule.shares(i) for i in (1, 3, 4)] == [{"b": 1.0}, {"b": 1.0}, {"a": 1.0}]
    assert schedule.seen(3) == ["b"] and schedule.seen(4) == ["a", "b"] and schedule.seen(0) == []
    for outside in (0, 6):
        with pytest.raises(ValueError, match="not in 1 to 5"):
            schedule.shares(outside)


def test_recurring_comes_back() -> None:
    schedule = Schedule(RecurringStream(rounds=2), {"a": 2, "b": 1})
    assert segments(schedule) == [("a", 1, 2), ("b", 3, 3), ("a", 4, 5), ("b", 6, 6)]


def test_joint_is_one_segment_of_all() -> None:
    schedule = Schedule(JointStream(), {"a": 2, "b": 2, "c": 2})
    assert segments(schedule) == [("a", 1, 6)]
    assert schedule.shares(1) == schedule.shares(6) == dict.fromkeys("abc", 1 / 3)


def test_blurred_rises_on_a_straight_line_and_is_even_at_the_boundary() -> None:
    schedule = Schedule(BlurredStream(overlap=0.5), {"a": 8, "b": 8})
    shares = [schedule.shares(i).get("b", 0.0) for i in range(1, 17)]
    assert shares == [0] * 6 + [0.125, 0.375, 0.625, 0.875] + [1] * 6


def test_drifting_ends_where_it_should() -> None:
    schedule = Schedule(DriftingStream(start={"a": 2, "b": 2}, end={"b": 5}, stages=2), {"a": 5, "b": 4})
    assert schedule.shares(1) == {"a": 0.5, "b": 0.5}
    assert schedule.shares(5) == {"a": 0.25, "b": 0.75}
    assert schedule.shares(9) == {"b": 1.0}
    assert segments(schedule) == [("b", 1, 4), ("b", 5, 9)]


CONFIGS = st.sampled_from(
    [
        SequentialStream(),
        RecurringStream(rounds=3),
        BlurredStream(overlap=1.0),
        BlurredStream(overlap=0.3),
        JointStream(),
        DriftingStream(start={"a": 1}, end={"b": 1, "c": 3}),
    ]
)


@settings(deadline=None)
@given(CONFIGS, st.lists(st.integers(1, 7), min_size=3, max_size=3), st.integers(1, 20), st.integers(0, 99))
def test_shares_and_counts_of_every_kind(config, budgets, n, seed) -> None:
    schedule = Schedule(config, dict(zip("abc", budgets, strict=True)))
    ends = [segment.last for segment in schedule.segments]
    assert [segment.first for segment in schedule.segments] == [1, *(end + 1 for end in ends[:-1])]
    for iteration in range(1, schedule.iterations + 1):
        shares, counts = schedule.shares(iteration), schedule.counts(iteration, n, seed)
        assert math.isclose(sum(shares.values()), 1) and min(shares.values()) > 0
        assert sum(counts.values()) == n
        for task, share in shares.items():
            assert math.floor(n * share - 1e-6) <= counts.get(task, 0) <= math.ceil(n * share + 1e-6)


def test_counts_keep_the_shares_on_average() -> None:
    schedule = Schedule(DriftingStream(start={"a": 0.55, "b": 0.3, "c": 0.15}, end={"a": 1}), dict.fromkeys("abc", 3))
    total: Counter[str] = Counter()
    for seed in range(3000):
        total.update(schedule.counts(1, 5, seed))
    # deviation of a share below √(0.25 / 3000) / 5 = 0.002
    for task, share in schedule.shares(1).items():
        assert total[task] / 15_000 == pytest.approx(share, abs=0.008)


def test_a_segment_may_end_early() -> None:
    schedule = Schedule(SequentialStream(), {"a": 5, "b": 5, "c": 5}).ended_early(2)
    assert segments(schedule) == [("a", 1, 2), ("b", 3, 7), ("c", 8, 12)]
    assert segments(schedule.ended_early(4)) == [("a", 1, 2), ("b", 3, 4), ("c", 5, 9)]
    assert segments(schedule.with_lengths([2, 2])) == segments(schedule.ended_early(4))


def test_when_a_task_has_converged() -> None:
    config = ConvergenceConfig(window=2, patience=3)
    rising = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert converged(config, rising) is None
    assert converged(config, [*rising, 0.5, 0.5]) is None
    stuck = converged(config, [*rising, 0.5, 0.5, 0.5])
    assert stuck is not None and "not improved on 0.55 for 3" in stuck
    assert converged(config, []) is None
    falling = ConvergenceConfig(metric="train/loss", better="lower", window=1, patience=None, goal=0.2)
    assert converged(falling, [0.5, 0.3]) is None
    assert "reaches the goal" in str(converged(falling, [0.5, 0.3, 0.2]))
    picky = ConvergenceConfig(window=1, patience=2, min_delta=0.1)
    assert converged(picky, [0.5, 0.55, 0.58]) is not None  # small steps are no improvement
    with pytest.raises(ValueError, match="patience, goal, or both"):
        ConvergenceConfig(patience=None)
