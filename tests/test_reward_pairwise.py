"""Answers compared in pairs: verdicts in words, both orders, wins, and what cannot be read."""

import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.asking import Asked
from reward.comparisons import Comparison, pair_up, shares_won
from reward.config import PairwiseJudgeConfig
from reward.factory import make_reward
from reward.rewards.pairwise_judge import PairwiseJudgeReward
from reward.types import Reply, RewardError, Score
from reward.verdicts import read_verdict, read_verdict_json
from rollouts.types import Message, Prompt, PromptTooLongError, Rollout
from tests.reward_fakes import ScriptedEngine, context, group, prompt, rollout

NO = "Sorry, I cannot help with that."


def shown(question: Prompt) -> tuple[str, str]:
    """The texts that stand as A and as B."""
    assert isinstance(question.content, str)
    match = re.search(r"Answer A: (.*)\nAnswer B: (.*)\n\n", question.content)
    assert match is not None
    return match[1], match[2]


def judge_of(say: Callable[[str, str], str]) -> ScriptedEngine:
    """Replies with what `say` makes of the texts shown as A and as B."""
    return ScriptedEngine(lambda question, _: say(*shown(question)))


def larger(a: str, b: str) -> str:
    return "A" if int(a) > int(b) else "B"


def compare(
    engine: ScriptedEngine, rollouts: Sequence[Rollout], counts: Counter[str] | None = None, **settings: Any
) -> list[Score]:
    ctx = context(prompt(), engine=engine)
    if counts is not None:
        ctx = context(prompt(), engine=engine, count=lambda name, amount: counts.update({name: amount}))
    return PairwiseJudgeReward(PairwiseJudgeConfig(**settings)).score([list(rollouts)], ctx)[0]


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ("A", "A"),
        (" b\n", "B"),
        ("(B)", "B"),
        ("**A**", "A"),
        ("A.", "A"),
        ("Answer A is better.", "A"),
        ("Answer B", "B"),
        ("Judge B.", "B"),
        ("A because it is right", "A"),
        ("B, because A is wrong", "B"),
        ("B. It is right because A is wrong", "B"),
        ("B) 13", "B"),
        ("A\n\nAnswer B is wrong.", "A"),
        ("Answer A is better than answer B.", "A"),
        ("A is wrong, B is right.", "B"),
        ("Yes, here answer A would be the correct answer.", "A"),
        ("A is a better answer than B", "A"),
        ("The better answer is B.", "B"),
        ("The answer is (B).", "B"),
        ("Answer: B", "B"),
        ("Both are fine. Final verdict: [[A]]", "A"),
        (r"\boxed{B}", "B"),
        ("I prefer A to B.", "A"),
        ("Judge B's grade is more accurate", "B"),
        ("Comparing A and B, the better one is B.", "B"),
        ("Answer B is worse than answer A.", None),
        ("A good answer would be B", None),
        ("Answer A beaten by answer B", None),
        ("Neither A nor B is better.", None),
        ("Both A and B are correct.", None),
        ("I cannot say whether A or B is better.", None),
        ("I don't think A is better.", None),
        ("A is not better", None),
        ("The worse answer is A.", None),
        ("The answer is not A", None),
        ("A is better. B is better.", None),
        ("A is correct; B is also correct", None),
        ("Answer A is right, and answer B is just as right.", None),
        ("B? No, A is right.", "A"),
        ("A is better? No, B.", None),
        ("Which is better? A", "A"),
        ("Which answer is better: A or B?", None),
        ("The better answer is A or B.", None),
        ("Answer: A or B", None),
        ("Answer: A/B", None),
        ("Either answer A or answer B is right", None),
        ("Between answer A and answer B I prefer B", "B"),
        ("B is equally correct", None),
        ("A is right, B is just as good", None),
        ("A? " * 10_000, None),
        ("A, B", None),
        ("A or B", None),
        ("A. 12\nB. 13", None),
        ("Answer A: 12\nAnswer B: 13", None),
        ("Judge A:", None),
        ("AB", None),
        ("Apple", None),
        ("C", None),
        ("12", None),
        ("", None),
        (NO, None),
        ("A " * 10_000, None),
    ],
)
def test_a_verdict_is_read_from_words(words: str, verdict: str | None) -> None:
    assert read_verdict(Reply(words)) == verdict


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ("A", None),
        ("The better answer is B", None),
        ("Judge A is", None),
        ("Answer A is", None),
        ("B. Since it", "B"),
        ("A is better bec", "A"),
        ("A is right but B is better", None),
        ("I think A is right and B is wrong", None),
    ],
)
def test_the_end_of_a_reply_that_was_cut_off_is_not_trusted(words: str, verdict: str | None) -> None:
    assert read_verdict(Reply(words, truncated=True)) == verdict


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ('{"better": "A"}', "A"),
        ('```json\n{"better": "B"}\n```', "B"),
        ('{"better": "C"}', None),
        ('{"better": ["A"]}', None),
        ('["A"]', None),
        ("A", None),
        ("[" * 100_000, None),
    ],
)
def test_a_verdict_in_json_is_read_strictly(words: str, verdict: str | None) -> None:
    assert read_verdict_json(Reply(words)) == verdict


def test_the_reward_is_the_share_of_comparisons_won() -> None:
    engine = judge_of(larger)
    counts: Counter[str] = Counter()
    scores = compare(engine, group("3", "1", "2"), counts)
    assert [score.value for score in scores] == [1, 0, 0.5]
    assert scores[0].components == {"pairwise_judge": 1}
    assert len(engine.asked) == 6  # three pairs, two orders
    assert counts["compared"] == 3 and counts["position_first"] == 1.5 and counts["inconsistent"] == 0


def test_every_pair_is_asked_about_in_both_orders() -> None:
    engine = judge_of(larger)
    compare(engine, group("1", "2", "3", "4"))
    asked = Counter(shown(question) for question in engine.asked)
    assert asked == Counter({pair: 1 for a, b in combinations("1234", 2) for pair in ((a, b), (b, a))})
    assert len({question.id for question in engine.asked}) == 12


def test_a_judge_that_favours_a_position_rewards_nobody_and_is_found_out() -> None:
    counts: Counter[str] = Counter()
    scores = compare(judge_of(lambda a, b: "A"), group("1", "2", "3"), counts)
    assert [score.value for score in scores] == [0.5, 0.5, 0.5]
    assert counts["position_first"] / counts["compared"] == 1 and counts["inconsistent"] == 3
    assert scores[0].evidence["comparisons"][0]["inconsistent"] is True
    compare(judge_of(lambda a, b: "B"), group("1", "2", "3"), counts := Counter())
    assert counts["position_first"] == 0 and counts["inconsistent"] == 3


def test_a_pair_that_was_read_in_one_order_only_is_left_out() -> None:
    def say(a: str, b: str) -> str:
        return NO if (a, b) == ("3", "1") else larger(a, b)

    counts: Counter[str] = Counter()
    scores = compare(judge_of(say), group("3", "1", "2"), counts)
    assert [score.value for score in scores] == [1, 0, 0.5]  # 1 lost to 2 alone; 3 won against 2 alone
    met = {comparison["opponent"]: comparison for comparison in scores[0].evidence["comparisons"]}
    assert met["p-1"] == {
        "opponent": "p-1",
        "won": None,
        "inconsistent": False,
        "as_A": {"verdicts": [None], "replies": [NO]},
        "as_B": {"verdicts": ["B"], "replies": ["B"]},
    }
    assert (
        met["p-2"]["won"] == 1 and met["p-2"]["as_A"]["verdicts"] == ["A"] and met["p-2"]["as_B"]["verdicts"] == ["B"]
    )
    assert counts["compared"] == 2 and counts["unreadable"] == 1


@pytest.mark.parametrize("garbage", ["", NO, "hm " * 10_000, "\ud800 \x00 {}"])
def test_garbage_gives_no_opinion_and_is_counted(garbage: str) -> None:
    counts: Counter[str] = Counter()
    scores = compare(judge_of(lambda a, b: garbage), group("1", "2"), counts)
    assert [score.value for score in scores] == [None, None]
    assert scores[0].components == {}
    assert "no comparison could be read" in scores[0].evidence["note"]
    assert len(json.dumps(scores[0].evidence)) < 2000
    assert counts["unreadable"] == counts["asked"] == 2


def test_unreadable_verdicts_stop_the_run_where_the_config_says_so() -> None:
    with pytest.raises(RewardError, match="pairwise_judge"):
        compare(judge_of(lambda a, b: NO), group("1", "2"), unreadable="stop")


def test_unreadable_verdicts_that_are_sampled_are_asked_for_again() -> None:
    replies = iter([NO, "A", "B"])
    scores = compare(ScriptedEngine(lambda *_: next(replies)), group("1", "2"), temperature=1.0)
    assert sorted(score.value or 0 for score in scores) == [0, 1]


def test_several_verdicts_on_a_pair_are_averaged_over_both_orders() -> None:
    def say(question: Prompt, index: int) -> str:
        return "AAB"[index] if shown(question) == ("1", "2") else "AABN"[index + 1]

    scores = compare(ScriptedEngine(say), group("1", "2"), samples=3, temperature=1.0, retries=0)
    # 1 got 2 of 3 verdicts as A; as B, of two that could be read, one.
    assert scores[0].value == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores[1].value == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_equal_texts_compete_as_one_and_rollouts_without_an_answer_lose_unasked() -> None:
    engine = judge_of(larger)
    rollouts = [*group("2", "1", " 2\n", "well"), rollout("9", index=4, cut=True)]
    scores = compare(engine, rollouts)
    assert [score.value for score in scores] == [1, 0, 1, 0, 0]
    assert len(engine.asked) == 2
    assert scores[2].evidence["compared_as"] == "p-0"
    assert scores[3].evidence == {"note": "no answer to compare"} and scores[3].components == {"pairwise_judge": 0}


def test_there_is_no_opinion_where_nothing_was_compared() -> None:
    engine = judge_of(larger)
    scores = compare(engine, group("7", "7", "well"))
    assert [score.value for score in scores] == [None, None, 0]
    assert scores[0].evidence["note"] == "no other answer to compare with"
    scores = compare(engine, group("well", "hm"))
    assert [score.value for score in scores] == [None, None]
    assert scores[0].evidence == {"note": "nobody in the group has an answer"}
    assert compare(engine, []) == [] and engine.asked == []


def test_groups_do_not_meet() -> None:
    engine = judge_of(larger)
    groups = [group("1", "2", prompt_id="p"), group("9", "8", prompt_id="q")]
    ctx = context(prompt(), prompt(id="q"), engine=engine)
    scores = PairwiseJudgeReward().score(groups, ctx)
    assert [[score.value for score in row] for row in scores] == [[0, 1], [1, 0]]
    assert {frozenset(shown(question)) for question in engine.asked} == {frozenset("12"), frozenset("98")}


def test_the_question_shows_both_answers_as_they_stand_and_no_label() -> None:
    engine = ScriptedEngine(lambda *_: "A")
    chat = (Message(role="system", content="Be brief."), Message(role="user", content="What is {first}?"))
    asked = Prompt("p", "sums", chat, reference="SECRET", grading={"entry": "SECRET"})
    ctx = context(asked, engine=engine)
    PairwiseJudgeReward().score([group("{second} = 1", "2")], ctx)
    contents = {question.content[0]["content"] for question in engine.asked}  # type: ignore[index]
    assert "Question: What is {first}?\nAnswer A: {second} = 1\nAnswer B: 2\n\n" in " ".join(contents)
    assert "SECRET" not in repr(engine.asked)


def test_a_pair_that_does_not_fit_the_context_is_left_out() -> None:
    class Small(ScriptedEngine):
        def generate(self, prompts: Any, sampling: Any, *, seed: int) -> Any:
            long = [question.id for question in prompts if "99999" in question.content]
            if long:
                raise PromptTooLongError("too long", long)
            return super().generate(prompts, sampling, seed=seed)

    small = Small(lambda question, _: larger(*shown(question)))
    scores = compare(small, group("1", "2", "99999"))
    assert [score.value for score in scores] == [0, 1, None]
    assert "does not fit" in scores[2].evidence["comparisons"][0]["as_A"]["note"]


def test_json_is_asked_for_and_read() -> None:
    engine = judge_of(lambda a, b: json.dumps({"better": larger(a, b)}))
    scores = compare(engine, group("1", "2"), reply="json")
    assert [score.value for score in scores] == [0, 1]
    assert '"better"' in str(engine.asked[0].content)


@given(st.integers(1, 12), st.integers(1, 14))
def test_a_ring_gives_everyone_the_opponents_that_were_asked_for(n: int, opponents: int) -> None:
    pairs = pair_up(n, opponents)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) and all(a != b for a, b in pairs)
    met = Counter(one for pair in pairs for one in pair)
    wanted = min(opponents, n - 1)
    degrees = sorted(met[i] for i in range(n))
    assert degrees == [wanted] * (n - 1) + [wanted + (n * wanted) % 2]


def test_the_ring_is_shuffled_by_seed_and_iteration() -> None:
    def pairs(**when: int) -> set[frozenset[str]]:
        engine = judge_of(larger)
        reward = PairwiseJudgeReward(PairwiseJudgeConfig(opponents=2))
        reward.score([group(*"123456789")], context(prompt(), engine=engine, **when))
        assert len(engine.asked) == 18
        return {frozenset(shown(question)) for question in engine.asked}

    first = pairs(seed=1, iteration=1)
    assert first == pairs(seed=1, iteration=1)
    assert first != pairs(seed=1, iteration=2) and first != pairs(seed=2, iteration=1)


LETTERS = st.sampled_from(["A", "B", None])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), LETTERS, LETTERS), max_size=12))
def test_shares_are_those_counted_by_hand(rows: list[tuple[int, int, Any, Any]]) -> None:
    def asked(letter: Any) -> Asked[Any]:
        return Asked((Reply(letter or "?"),), (letter,))

    rows = [row for row in rows if row[0] != row[1]]
    got = shares_won([Comparison(str(i), str(j), asked(one), asked(two)) for i, j, one, two in rows])
    wins = defaultdict(list)
    for i, j, one, two in rows:
        if one and two:
            winners = [i if one == "A" else j, j if two == "A" else i]
            wins[str(i)].append(winners.count(i) / 2)
            wins[str(j)].append(winners.count(j) / 2)
    assert got == pytest.approx({name: statistics.fmean(shares) for name, shares in wins.items()})


def test_the_factory_builds_it_and_it_needs_whom_it_asks() -> None:
    assert isinstance(make_reward(PairwiseJudgeConfig()), PairwiseJudgeReward)
    assert make_reward(PairwiseJudgeConfig()).needs == {"engine"}
    assert make_reward(PairwiseJudgeConfig(by={"kind": "frozen"})).needs == {"writers"}
    assert make_reward(PairwiseJudgeConfig(by={"kind": "openai", "model": "m"})).needs == set()


def test_a_real_model_compares_answers_end_to_end() -> None:
    from rlsf.models import resolve_model
    from rollouts.config import TransformersEngineConfig
    from rollouts.transformers_engine import TransformersEngine

    engine = TransformersEngine(resolve_model("lab"), TransformersEngineConfig())
    counts: Counter[str] = Counter()
    groups = [group("12", "13", "14", "well")]
    ctx = context(prompt(), engine=engine, count=lambda name, amount: counts.update({name: amount}))
    reward = PairwiseJudgeReward(
        PairwiseJudgeConfig(template="{question} A:{first} B:{second}", samples=2, temperature=1)
    )
    scores = reward.score(groups, ctx)[0]
    engine.close()
    assert counts["asked"] >= 6 * 2 and counts["tokens"] > 0
    assert scores[3].value == 0
    for score in scores[:3]:
        assert score.value is None or 0 <= score.value <= 1
        assert all(comparison["as_A"]["replies"] for comparison in score.evidence["comparisons"])
