"""Composition: weights, normalisation, and who sees what."""

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from reward.base import BaseReward, Groups
from reward.config import JudgeConfig, ProductConfig
from reward.rewards.combination import Component, MinimumReward, ProductReward, WeightedSumReward, weight_at
from reward.rewards.gate import GateReward
from reward.rewards.judge import JudgeReward
from reward.types import RewardContext, RewardError, Score
from rollouts.types import Prompt
from tests.reward_fakes import ScriptedEngine, context, group, prompt, values


class Fixed(BaseReward):
    """Gives the values it was made with, one per rollout, and keeps the contexts it saw."""

    def __init__(self, *rows: Sequence[float | None], name: str = "fixed", needs: frozenset[Any] = frozenset()) -> None:
        self.name, self.needs, self.rows = name, needs, rows
        self.contexts: list[RewardContext] = []

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        self.contexts.append(context)
        return [[Score(value, {}, {"note": self.name}) for value in row] for row in self.rows]


GROUP_OF_4 = group("1", "2", "3", "4")


def test_in_a_weighted_sum_no_opinion_speaks_neither_for_a_rollout_nor_against_it() -> None:
    reward = WeightedSumReward(
        {"a": Component(Fixed([1, 2, None, None]), 2.0), "b": Component(Fixed([10, None, 10, None]), 0.5)}
    )
    scores = reward.score([GROUP_OF_4], context(prompt()))[0]
    # The mean of a is 1.5, that of b 10.
    assert [score.value for score in scores] == [2 * 1 + 5, 2 * 2 + 5, 2 * 1.5 + 5, None]
    silent = WeightedSumReward({"a": Component(Fixed([1, 2])), "b": Component(Fixed([None, None]))})
    assert values(silent.score([GROUP_OF_4[:2]], context(prompt()))) == [[1, 2]]
    assert scores[0].components == {"a": 1, "b": 10}
    assert scores[1].components == {"a": 2}
    assert scores[0].evidence == {"a": {"note": "fixed"}, "b": {"note": "fixed"}}
    assert scores[1].evidence == {"a": {"note": "fixed"}, "b": {"note": "fixed", "counted_as": 10}}
    assert scores[3].evidence == scores[0].evidence
    unweighted = WeightedSumReward({"a": Component(Fixed([1, 2])), "b": Component(Fixed([10, None]), 0.0)})
    scores = unweighted.score([GROUP_OF_4[:2]], context(prompt()))[0]
    assert [score.value for score in scores] == [1, 2]
    assert scores[1].evidence == {"a": {"note": "fixed"}, "b": {"note": "fixed"}}


def test_what_a_judge_could_not_read_does_not_count_as_if_it_stated_no_answer() -> None:
    def said(prompt: Prompt, *_: Any) -> str:
        return "5" if "answer: 5" in prompt.text else "garbage"

    judged = Component(JudgeReward(JudgeConfig(samples=1, retries=0)))
    reward = WeightedSumReward({"judge": judged, "length": Component(Fixed([0, 0, 0, 0]))})
    seen = context(prompt(), engine=ScriptedEngine(said))
    scores = reward.score([group("5", "6", "no idea", "none")], seen)[0]
    assert [score.value for score in scores] == [1, 1, 0, 0]
    assert scores[1].evidence["judge"]["counted_as"] == 1  # the mean of what was judged, which is one answer
    nested = Component(ProductReward({"judge": judged}))
    reward = WeightedSumReward({"nested": nested, "length": Component(Fixed([0, 0, 0, 0]))})
    assert values(reward.score([group("5", "6", "no idea", "none")], seen)) == [[1, 1, 0, 0]]
    gated = Component(GateReward(Fixed([1, 1, 1, 1]), judged.reward, threshold=0.5, closed=0.0))
    reward = WeightedSumReward({"gated": gated, "length": Component(Fixed([0, 0, 0, 0]))})
    scores = reward.score([group("5", "6", "no idea", "none")], seen)[0]
    assert [score.value for score in scores] == [1, 1, 0, 0]
    reward = WeightedSumReward({"judge": judged, "length": Component(Fixed([0, 0, 0, 0]))})
    deaf = context(prompt(), engine=ScriptedEngine(lambda *_: "garbage"))
    scores = reward.score([group("5", "6", "no idea", "none")], deaf)[0]
    assert "counted_as" not in scores[0].evidence["judge"]


def test_a_sum_beyond_all_numbers_is_refused() -> None:
    large = Fixed([1e8, 1.0, 1.0, 1.0])
    reward = WeightedSumReward({"a": Component(large, 1e300), "b": Component(large, 1e300)})
    with pytest.raises(RewardError, match="inf"):
        reward.score([GROUP_OF_4], context(prompt()))


def test_group_normalisation_uses_the_sample_deviation() -> None:
    reward = WeightedSumReward({"a": Component(Fixed([1.5, 2, 2.5, 2]), 1.0, "group")})
    scores = reward.score([GROUP_OF_4], context(prompt()))[0]
    assert [s.value for s in scores] == pytest.approx([-1.2247, 0, 1.2247, 0], abs=1e-4)
    assert scores[0].components == {"a": 1.5}
    assert scores[0].evidence["a"]["normalized"] == pytest.approx(-1.2247, abs=1e-4)


def test_group_normalisation_leaves_out_no_opinions_and_makes_nothing_of_equal_values() -> None:
    reward = WeightedSumReward(
        {"a": Component(Fixed([1, 3, None, None], [0.1 + 0.2, 0.3, 0.3, 0.3], [5]), 1.0, "group")}
    )
    groups = [GROUP_OF_4, GROUP_OF_4, GROUP_OF_4[:1]]
    first, second, third = values(reward.score(groups, context(prompt())))
    assert first == pytest.approx([-(0.5**0.5), 0.5**0.5, None, None])
    assert second == [0, 0, 0, 0]
    assert third == [0]


@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=6), min_size=1, max_size=5))
def test_running_normalisation_knows_everything_scored_so_far(batches: list[list[float]]) -> None:
    reward = WeightedSumReward({"a": Component(Fixed(), 1.0, "running")})
    seen: list[float] = []
    for batch in batches:
        reward._components["a"].reward.rows = ([*batch, None],)
        got = reward.score([group(*["1"] * (len(batch) + 1))], context(prompt()))[0]
        seen += batch
        deviation = statistics.stdev(seen) if len(seen) > 1 else 0.0
        if deviation > 1e-6:
            expected = [(value - statistics.fmean(seen)) / deviation for value in batch]
            assert [s.value for s in got[:-1]] == pytest.approx(expected, abs=1e-6)
        assert got[-1].value is None


def test_running_statistics_survive_a_save() -> None:
    def make(*row: float) -> WeightedSumReward:
        inner = WeightedSumReward({"x": Component(Fixed(row), 1.0, "running")})
        return WeightedSumReward({"inner": Component(inner), "y": Component(Fixed(row), 1.0, "running")})

    batch = (3.0, 3.0, 5.0, 8.0)
    before = make(1.0, 2.0, 4.0, 9.0)
    before.score([GROUP_OF_4], context(prompt()))
    saved = json.loads(json.dumps(before.state()))
    resumed, untouched = make(*batch), make(*batch)
    resumed.restore(saved)
    assert resumed.state() == saved
    scores = [score.value for score in resumed.score([GROUP_OF_4], context(prompt()))[0]]
    seen = [1.0, 2.0, 4.0, 9.0, *batch]
    expected = [2 * (x - statistics.fmean(seen)) / statistics.stdev(seen) for x in batch]
    assert scores == pytest.approx(expected)
    assert scores != values(untouched.score([GROUP_OF_4], context(prompt())))[0]


def test_nested_sums_name_their_parts() -> None:
    inner = WeightedSumReward({"x": Component(Fixed([1, 2, 3, 4])), "y": Component(Fixed([1, 1, 1, None]))})
    outer = WeightedSumReward({"inner": Component(inner, 0.5)})
    scores = outer.score([GROUP_OF_4], context(prompt()))[0]
    assert scores[0].value == 1.0
    assert scores[0].components == {"inner": 2, "inner/x": 1, "inner/y": 1}
    assert scores[3].components == {"inner": 5, "inner/x": 4}  # of y it has the mean


def test_components_see_no_more_than_they_declare() -> None:
    sees_labels = Fixed([1.0], name="labels", needs=frozenset({"reference"}))
    label_free = Fixed([1.0], name="free")
    asks = Fixed([1.0], name="asks", needs=frozenset({"engine"}))
    reward = WeightedSumReward({r.name: Component(r) for r in (sees_labels, label_free, asks)})
    assert reward.needs == {"reference", "engine"}
    engine = ScriptedEngine(lambda *_: "5")
    reward.score([group("12")], context(prompt("12", grading={"entry": 1}), engine=engine))
    assert sees_labels.contexts[0].prompts["p"].reference == "12" and sees_labels.contexts[0].engine is None
    assert label_free.contexts[0].prompts["p"] == prompt() and label_free.contexts[0].engine is None
    assert asks.contexts[0].prompts["p"].reference is None and asks.contexts[0].engine is engine


def test_an_error_in_a_component_says_which() -> None:
    reward = WeightedSumReward({"good": Component(Fixed([1.0])), "bad": Component(Fixed([math.nan], name="nan"))})
    with pytest.raises(RewardError, match=r"component 'bad': reward 'nan' gave rollout 'p-0'"):
        reward.score([group("12")], context(prompt()))
    with pytest.raises(RewardError, match="shape of the groups"):
        WeightedSumReward({"short": Component(Fixed([1.0]))}).score([group("1", "2")], context(prompt()))


# -- product, minimum, gate, schedule ---------------------------------------------------------------------------------


def test_product_and_minimum_need_every_opinion() -> None:
    parts = {"a": Component(Fixed([1, 2, None, 3])), "b": Component(Fixed([10, 0.5, 1, -2]))}
    assert values(MinimumReward(parts).score([GROUP_OF_4], context(prompt()))) == [[1, 0.5, None, -2]]
    parts["b"] = Component(Fixed([10, 0.5, 1, 0]))
    assert values(ProductReward(parts).score([GROUP_OF_4], context(prompt()))) == [[10, 1, None, 0]]


def test_two_bad_components_make_no_good_product() -> None:
    parts = {"a": Component(Fixed([1, 2, -1, 3])), "b": Component(Fixed([1, 2, -1, 3]))}
    with pytest.raises(RewardError, match="component 'a' of a product is -1"):
        ProductReward(parts).score([GROUP_OF_4], context(prompt()))
    with pytest.raises(ValidationError, match=r"components.a.normalize: .*weighted_sum"):
        ProductConfig.model_validate({"components": {"a": {"normalize": "group", "reward": {"kind": "majority"}}}})
    rules = {"kind": "rules", "rules": [{"name": "r", "kind": "words", "words": ["damn"]}]}
    with pytest.raises(ValidationError, match=r"components.a: rules is never above 0"):
        ProductConfig.model_validate({"components": {"a": {"reward": rules}}})


def test_a_gate_shuts_out_what_no_reward_can_outweigh() -> None:
    gate = GateReward(Fixed([0, -1, None, 0.5]), Fixed([5, 1e6, 7, None]))
    scores = gate.score([GROUP_OF_4], context(prompt()))[0]
    assert [s.value for s in scores] == [5, -1, None, None]
    assert [s.evidence["open"] for s in scores] == [True, False, None, True]
    assert scores[1].components == {"condition": -1, "reward": 1e6}
    lower = GateReward(Fixed([0, -1, 0, -1]), Fixed([-2.5, -9, -0.5, 3]))
    assert values(lower.score([GROUP_OF_4], context(prompt()))) == [[-2.5, -2.5, -0.5, -2.5]]  # closed is -1: too much
    silent = GateReward(Fixed([-1, -1, 0, 0]), Fixed([1, 1, 1, 1]), closed=None)
    assert values(silent.score([GROUP_OF_4], context(prompt()))) == [[None, None, 1, 1]]


def test_a_gates_reward_scores_the_whole_group() -> None:
    inner = Fixed([1, 2, 3, 4])
    GateReward(Fixed([-1, -1, -1, 0]), inner).score([GROUP_OF_4], context(prompt()))
    assert len(inner.contexts) == 1


def test_a_gate_keeps_the_state_of_both_parts() -> None:
    def make() -> GateReward:
        parts = {"x": Component(Fixed([1, 2, 3, 4]), 1.0, "running")}
        return GateReward(Fixed([0, 0, 0, 0]), WeightedSumReward(parts))

    one, other = make(), make()
    one.score([GROUP_OF_4], context(prompt()))
    other.restore(json.loads(json.dumps(one.state())))
    assert values(one.score([GROUP_OF_4], context(prompt()))) == values(other.score([GROUP_OF_4], context(prompt())))


@pytest.mark.parametrize(("iteration", "weight"), [(0, 1.0), (10, 1.0), (15, 0.75), (20, 0.5), (99, 0.5)])
def test_a_schedule_is_straight_between_its_points_and_constant_outside(iteration: int, weight: float) -> None:
    assert weight_at({20: 0.5, 10: 1.0}, iteration) == pytest.approx(weight)
    assert weight_at(0.3, iteration) == 0.3


def test_a_weight_follows_its_schedule() -> None:
    reward = WeightedSumReward({"a": Component(Fixed([1, 1, 1, 1]), {0: 0.0, 10: 1.0})})
    for iteration in (1, 5, 10):
        scores = reward.score([GROUP_OF_4], context(prompt(), iteration=iteration))[0]
        assert scores[0].value == pytest.approx(iteration / 10)


def test_task_normalisation_keeps_tasks_apart() -> None:
    easy, hard = prompt(id="e", task="easy"), prompt(id="h", task="hard")
    groups = [group("1", "2", prompt_id="e"), group("3", "4", prompt_id="h")]
    reward = WeightedSumReward({"a": Component(Fixed([10, 12], [0, 1]), 1.0, "task")})
    half = math.sqrt(0.5)
    [[e1, e2], [h1, h2]] = values(reward.score(groups, context(easy, hard)))
    assert [e1, e2, h1, h2] == pytest.approx([-half, half, -half, half])
    running = WeightedSumReward({"a": Component(Fixed([10, 12], [0, 1]), 1.0, "running")})
    assert running.score(groups, context(easy, hard))[1][1].value == pytest.approx(
        (1 - 5.75) / statistics.stdev([10, 12, 0, 1])
    )


def test_counters_carry_the_names_of_their_parts() -> None:
    class Counting(Fixed):
        def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
            context.count("asked", 2)
            return super()._score(groups, context)

    counts: dict[str, float] = {}
    inner = WeightedSumReward({"judge": Component(Counting([1, 1, 1, 1]))})
    reward = GateReward(Fixed([0, 0, 0, 0]), inner)
    reward.score([GROUP_OF_4], context(prompt(), count=lambda name, amount: counts.update({name: amount})))
    assert counts == {"reward/judge/asked": 2}


def test_at_weight_0_an_opinion_does_not_count() -> None:
    parts = {"main": Component(Fixed([1, None, 3, None])), "later": Component(Fixed([9, 9, 9, 9]), {0: 0.0, 10: 1.0})}
    scores = WeightedSumReward(parts).score([GROUP_OF_4], context(prompt()))[0]
    assert [s.value for s in scores] == [1, None, 3, None]
    assert scores[1].components == {"later": 9}
