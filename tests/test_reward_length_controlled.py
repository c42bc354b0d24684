"""What length explains of a reward, taken out of it."""

import json
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.base import BaseReward, Groups
from reward.config import LengthControlledConfig
from reward.factory import make_reward
from reward.rewards.combination import Component, WeightedSumReward
from reward.rewards.length_controlled import LengthControlledReward
from reward.types import RewardContext, RewardError, Score
from rollouts.types import Rollout
from tests.reward_fakes import context, prompt, rollout

Row = Sequence[tuple[int, float | None]]
"""Length in tokens and inner reward of each rollout."""

LENGTHS = st.integers(0, 400)
VALUES = st.floats(-100, 100).map(lambda value: round(value, 3))
ROW = st.lists(st.tuples(LENGTHS, VALUES), min_size=1, max_size=12)


class Given(BaseReward):
    """Gives the values it was told, one per rollout, and remembers how often it was asked."""

    name = "given"

    def __init__(self) -> None:
        self.rows: list[list[float | None]] = []
        self.calls = 0

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        self.calls += 1
        context.count("calls", 1)
        return [[self._one(value) for value in row] for row in self.rows]

    def _one(self, value: float | None) -> Score:
        return Score(value, {} if value is None else {self.name: value}, {"note": "as told"})

    def state(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def restore(self, state: Any) -> None:
        self.calls = state["calls"]


def make(**settings: Any) -> LengthControlledReward:
    return LengthControlledReward(LengthControlledConfig(reward={"kind": "majority"}, **settings), Given())


def run(reward: LengthControlledReward, *rows: Row) -> list[list[Score]]:
    groups: list[list[Rollout]] = [
        [rollout("1", ids=range(length), index=index) for index, (length, _) in enumerate(row)] for row in rows
    ]
    assert isinstance(reward._reward, Given)
    reward._reward.rows = [[value for _, value in row] for row in rows]
    return reward.score(groups, context(prompt()))


def got(reward: LengthControlledReward, *rows: Row) -> list[float | None]:
    return [score.value for row in run(reward, *rows) for score in row]


def test_what_lies_on_a_line_through_length_becomes_equal() -> None:
    scores = run(make(), [(10, 1.0), (20, 2.0), (30, 3.0)])[0]
    assert [score.value for score in scores] == pytest.approx([2, 2, 2])
    assert scores[0].components == {"reward": 1}
    evidence = dict(scores[0].evidence)
    assert evidence.pop("reward") == {"note": "as told"}
    assert evidence == pytest.approx({"tokens": 10, "slope": 0.1, "mean_tokens": 20})


def test_the_line_is_the_one_of_least_squares() -> None:
    row = [(3, 0.5), (8, 0.25), (5, 1.0), (13, 2.0), (1, -1.0)]
    lengths, values = zip(*row, strict=True)
    line = statistics.linear_regression(lengths, values)
    expected = [y - (line.slope * x + line.intercept) + statistics.fmean(values) for x, y in row]
    assert got(make(), row) == pytest.approx(expected)


@given(st.lists(ROW, min_size=1, max_size=4))
def test_nothing_is_left_of_length_within_the_first_batch(rows: list[Row]) -> None:
    values = np.array(got(make(), *rows))
    lengths = np.array([length for row in rows for length, _ in row], dtype=float)
    if len(values) >= 3 and lengths.std() > 0 and values.std() > 1e-6:
        assert abs(np.corrcoef(lengths, values)[0, 1]) < 1e-6


@given(st.lists(ROW, min_size=1, max_size=4))
def test_among_equal_lengths_every_difference_stays(rows: list[Row]) -> None:
    flat = [pair for row in rows for pair in row]
    after = got(make(), *rows)
    for (length, value), new in zip(flat, after, strict=True):
        for (other_length, other_value), other in zip(flat, after, strict=True):
            if length == other_length:
                assert new is not None and other is not None
                assert new - other == pytest.approx(value - other_value, abs=1e-9)


@given(st.lists(ROW, min_size=2, max_size=5))
def test_the_fit_of_batches_is_the_fit_of_all_of_them_together(rows: list[Row]) -> None:
    reward = make()
    for row in rows:
        last = got(reward, row)
    together = got(make(), *rows)
    assert last == pytest.approx(together[-len(last) :], abs=1e-6)


def test_no_slope_is_made_of_fewer_than_three_values_or_of_equal_lengths() -> None:
    assert got(make(), [(1, 0.0), (9, 1.0)]) == [0, 1]
    assert got(make(), [(7, 0.0), (7, 1.0), (7, 0.5)]) == [0, 1, 0.5]
    assert got(make(), []) == []


def test_rollouts_without_an_opinion_have_no_part_in_the_fit() -> None:
    row = [(10, 1.0), (20, 2.5), (30, 3.0)]
    scores = run(make(), [*row, (9000, None)])[0]
    assert [score.value for score in scores] == [*got(make(), row), None]
    assert scores[3].components == {} and scores[3].evidence["reward"] == {"note": "as told"}
    assert got(make(), [(9, None), (8, None)]) == [None, None]
    assert got(make(method="tier"), [(9, None), (8, None)]) == [None, None]


def test_a_resumed_run_goes_on_exactly() -> None:
    first, second = [(10, 1.0), (20, 2.5), (33, 3.0), (4, 0.1)], [(5, 1.0), (50, 0.7), (31, 2.0)]
    through = make()
    run(through, first)
    saved = json.loads(json.dumps(through.state()))
    resumed = make()
    resumed.restore(saved)
    assert resumed.state() == saved and saved["reward"] == {"calls": 1}
    assert got(resumed, second) == got(through, second) != got(make(), second)


def test_running_statistics_of_the_inner_reward_are_saved_too() -> None:
    inner = WeightedSumReward({"x": Component(Given(), normalize="running")})
    config = LengthControlledConfig(reward={"kind": "majority"})
    reward = LengthControlledReward(config, inner)
    inner._components["x"].reward.rows = [[1.0, 2.0, 4.0]]  # type: ignore[attr-defined]
    reward.score([[rollout("1", ids=range(n), index=n) for n in (1, 2, 3)]], context(prompt()))
    other = LengthControlledReward(config, WeightedSumReward({"x": Component(Given(), normalize="running")}))
    other.restore(json.loads(json.dumps(reward.state())))
    assert other.state() == reward.state() and "x" in json.dumps(other.state()["reward"])


def test_within_the_best_tier_the_shorter_the_better() -> None:
    row = [(30, 1.0), (10, 0.9), (20, 0.95), (5, 0.8), (5, 0.0)]
    scores = run(make(method="tier", tier=0.1), row)[0]
    assert [score.value for score in scores] == pytest.approx([0.9, 1.0, 0.95, 0.8, 0])
    assert [score.evidence["in_tier"] for score in scores] == [True, True, True, False, False]
    assert scores[1].components == {"reward": 0.9}


def test_tiers_are_those_of_a_group() -> None:
    tier = make(method="tier", tier=0.1)
    assert got(tier, [(9, 1.0), (3, 1.0), (1, 0.0)], [(1, 0.3), (9, 0.3), (4, 0.0)]) == pytest.approx(
        [0.9, 1, 0, 0.3, 0.27, 0]
    )


def test_a_tier_is_a_share_of_the_range_between_worst_and_best() -> None:
    row = [(3, 10.0), (2, 9.5), (1, 9.4), (9, 5.0)]  # 10% of 5
    assert got(make(method="tier", tier=0.1), row) == pytest.approx([9.5, 10, 9.4, 5])


def test_a_group_of_equal_rewards_stays_as_it_is() -> None:
    assert got(make(method="tier", tier=0.3), [(9, 0.1), (3, 0.1), (1, 0.1)]) == [0.1] * 3


@given(ROW, st.floats(0, 1))
def test_a_tier_never_falls_below_what_is_worse_nor_leaves_its_range(row: Row, tier: float) -> None:
    scores = run(make(method="tier", tier=tier), row)[0]
    raw = [value for _, value in row if value is not None]
    after: dict[bool, list[float]] = {True: [], False: []}
    for score in scores:
        assert score.value is not None
        after[score.evidence["in_tier"]].append(score.value)
        assert min(raw) - 1e-9 <= score.value <= max(raw)
        if not score.evidence["in_tier"]:
            assert score.value == score.components["reward"]
    if after[True] and after[False]:
        assert min(after[True]) > max(after[False])
    tiers = sorted(
        (length, -score.value)
        for (length, _), score in zip(row, scores, strict=True)
        if score.evidence["in_tier"] and score.value is not None
    )
    assert [value for _, value in tiers] == sorted(value for _, value in tiers)
    if after[True]:
        assert max(after[True]) == max(raw)  # the shortest earns the best


@given(ROW)
def test_a_tier_of_nothing_changes_nothing(row: Row) -> None:
    assert got(make(method="tier", tier=0.0), row) == [value for _, value in row]


def test_errors_and_counters_of_the_inner_reward_come_through() -> None:
    reward = make()
    with pytest.raises(RewardError, match=r"component 'reward': reward 'given' gave rollout 'p-0'.*inf"):
        run(reward, [(1, float("inf"))])
    counted: dict[str, float] = {}
    reward._reward.rows = [[1.0]]  # type: ignore[attr-defined]
    reward.score([[rollout("1")]], context(prompt(), count=lambda name, amount: counted.update({name: amount})))
    assert counted == {"reward/calls": 1}


def test_the_factory_wraps_any_reward_and_asks_for_what_it_needs() -> None:
    reward = make_reward(LengthControlledConfig(reward={"kind": "length_penalty", "free_tokens": 0, "max_tokens": 10}))
    rollouts = [rollout("1", ids=range(n), index=n) for n in (2, 4, 9)]
    values = [score.value for score in reward.score([rollouts], context(prompt()))[0]]
    assert values == pytest.approx([-0.5] * 3)  # a penalty that is all length is nothing but its mean
    assert make_reward(LengthControlledConfig(reward={"kind": "judge"})).needs == {"engine"}
