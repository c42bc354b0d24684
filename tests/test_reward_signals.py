"""Majority, semantic entropy and length, against worked examples and an independent computation."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.config import (
    LengthPenaltyConfig,
    MajorityConfig,
    SemanticEntropyConfig,
)
from reward.rewards.length_penalty import LengthPenaltyReward
from reward.rewards.majority import MajorityReward, count_votes
from reward.rewards.semantic_entropy import SemanticEntropyReward, semantic_entropy
from reward.types import Score
from tests.reward_fakes import context, group, prompt, rollout

WORKED = ("42", "42", "7", "42", "", "7", "42", "9")
ANSWERS = st.lists(st.sampled_from(["1", "2", "3", "", "none"]), min_size=1, max_size=12)


def majority(texts: Sequence[str], **settings: Any) -> list[Score]:
    return MajorityReward(MajorityConfig(**settings)).score([group(*texts)], context(prompt()))[0]


def test_majority_worked_example() -> None:
    scores = majority(WORKED)
    assert [score.value for score in scores] == [1, 1, 0, 1, 0, 0, 1, 0]
    assert scores[0].evidence["share"] == 0.5
    assert scores[2].evidence["votes"] == {"42": 4, "7": 2, "9": 1}
    assert scores[2].evidence["answer"] == "7"
    assert scores[4].evidence["answer"] is None


def test_soft_majority_is_the_share_of_the_whole_group() -> None:
    assert [s.value for s in majority(WORKED, soft=True)] == [0.5, 0.5, 0.25, 0.5, 0, 0.25, 0.5, 0.125]


def test_majority_has_no_opinion_where_nobody_answers() -> None:
    assert [s.value for s in majority(["", "no idea", ""])] == [None] * 3
    assert MajorityReward().score([], context()) == []


def test_truncated_rollouts_cast_no_vote() -> None:
    rollouts = [rollout("7", cut=True, index=0), rollout("7", cut=True, index=1), rollout("9", index=2)]
    scores = MajorityReward().score([rollouts], context(prompt()))[0]
    assert [score.value for score in scores] == [0, 0, 1]
    assert scores[0].evidence["share"] == pytest.approx(1 / 3)


def test_equal_numbers_are_one_vote() -> None:
    assert [s.value for s in majority(["12", "12.0", "The answer is 12.", "13", "13"])] == [1, 1, 1, 0, 0]


def test_ties_share_the_reward_whatever_the_answers_are_called() -> None:
    assert [s.value for s in majority(["7", "9", "7", "9", "1"])] == [0.5, 0.5, 0.5, 0.5, 0]
    assert [s.value for s in majority(["900", "7", "900", "7", "1"])] == [0.5, 0.5, 0.5, 0.5, 0]


def test_min_share_withholds_an_opinion() -> None:
    assert majority(["7", "7", "8", "9"], min_share=0.5)[0].value == 1
    assert {s.value for s in majority(["7", "7", "8", "9"], min_share=0.51)} == {None}


@given(ANSWERS, st.booleans(), st.randoms())
def test_majority_does_not_depend_on_the_order(texts: list[str], soft: bool, random: Any) -> None:
    order = list(range(len(texts)))
    random.shuffle(order)
    before = [s.value for s in majority(texts, soft=soft)]
    after = [s.value for s in majority([texts[i] for i in order], soft=soft)]
    assert after == [before[i] for i in order]


@given(ANSWERS)
def test_one_more_rollout_without_an_answer_changes_nothing_but_the_share(texts: list[str]) -> None:
    before, after = majority(texts), majority([*texts, ""])
    assert [s.value for s in after[:-1]] == [s.value for s in before]
    assert after[0].evidence["votes"] == before[0].evidence["votes"]
    assert after[0].evidence["share"] * (len(texts) + 1) == pytest.approx(before[0].evidence["share"] * len(texts))


@given(ANSWERS)
def test_rewards_of_the_winners_add_up_to_the_winning_votes(texts: list[str]) -> None:
    vote = count_votes([text if text.isdigit() else None for text in texts])
    total = sum(s.value or 0 for s in majority(texts))
    assert total == pytest.approx(max(vote.counts.values(), default=0))


def entropy(texts: Sequence[str], **settings: Any) -> list[Score]:
    return SemanticEntropyReward(SemanticEntropyConfig(**settings)).score([group(*texts)], context(prompt()))[0]


def test_semantic_entropy_worked_example() -> None:
    assert semantic_entropy(["0", "1", "2", "1"]) == pytest.approx(1.03972, abs=1e-5)
    assert semantic_entropy([]) == 0
    assert semantic_entropy(["7"] * 5) == 0
    assert semantic_entropy([None, None]) == pytest.approx(math.log(2))  # two that agree with nobody


def test_semantic_entropy_pays_the_log_of_the_share_or_the_share() -> None:
    texts = ["10", "11", "12", "11.0"]
    assert [s.value for s in entropy(texts)] == pytest.approx([math.log(x) for x in (0.25, 0.5, 0.25, 0.5)])
    assert [s.value for s in entropy(texts, pay="share")] == [0.25, 0.5, 0.25, 0.5]
    assert entropy(texts)[0].evidence["entropy"] == pytest.approx(1.03972, abs=1e-5)


def test_without_an_answer_semantic_entropy_pays_what_agreeing_with_nobody_pays() -> None:
    assert [s.value for s in entropy(["7", "7", "", "8"])] == pytest.approx(
        [math.log(x) for x in (0.5, 0.5, 0.25, 0.25)]
    )
    assert [s.value for s in entropy(["7", "7", "", "8"], pay="share")] == [0.5, 0.5, 0, 0.25]
    assert [s.value for s in entropy(["", "hm"])] == [None, None]


def test_semantic_entropy_leaves_out_groups_outside_its_bounds() -> None:
    sure, split = ["7", "7", "7", "7"], ["1", "2", "3", "4"]
    assert {s.value for s in entropy(sure, min_entropy=0.1)} == {None}
    assert {s.value for s in entropy(split, max_entropy=1.3)} == {None}
    assert None not in {s.value for s in entropy(["7", "7", "8", "8"], min_entropy=0.1, max_entropy=1.3)}


@given(ANSWERS)
def test_the_mean_of_log_shares_is_minus_the_entropy(texts: list[str]) -> None:
    scores = entropy(texts)
    if scores[0].value is not None:
        mean = math.fsum(s.value for s in scores if s.value is not None) / len(scores)
        assert mean == pytest.approx(-semantic_entropy([t if t.isdigit() else None for t in texts]), abs=1e-12)


def test_length_penalty_falls_linearly_between_its_bounds() -> None:
    reward = LengthPenaltyReward(LengthPenaltyConfig(free_tokens=4, max_tokens=12))
    rollouts = [rollout("x", ids=range(n), index=n) for n in (0, 4, 6, 12, 40)]
    scores = reward.score([rollouts], context(prompt()))[0]
    assert [score.value for score in scores] == [0, 0, -0.25, -1, -1]
    assert math.copysign(1, scores[0].value or 0.0) == 1
    assert scores[2].evidence == {"tokens": 6}
