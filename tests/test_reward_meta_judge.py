"""Judgements that are judged: weights by comparisons won, and lessons for the judge."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from reward.config import MetaJudgeConfig
from reward.factory import make_reward
from reward.rewards.meta_judge import MetaJudgeReward
from reward.types import Lesson, Reply, RewardError, Score
from rollouts.types import Prompt, PromptTooLongError, Rollout, SamplingParams
from tests.reward_fakes import ScriptedEngine, context, group, prompt, rollout


class Judge(ScriptedEngine):
    """Judges with `judgements`, in turn, and compares two of them with `better(a, b)`."""

    def __init__(self, judgements: Sequence[str], better: Callable[[str, str], str], cut: bool = False) -> None:
        self.judgements, self.better = judgements, better
        self.compared: list[tuple[str, str]] = []
        super().__init__(self._say, cut)

    def _say(self, question: Prompt, index: int) -> str:
        assert isinstance(question.content, str)
        shown = re.search(r"Judge A: (.*)\nJudge B: (.*)\n\nWhich", question.content)
        if shown is None:
            return self.judgements[index % len(self.judgements)]
        self.compared.append((shown[1], shown[2]))
        return self.better(shown[1], shown[2])


def graded(a: str, b: str) -> str:
    """The higher grade is right."""
    return "A" if a[-1] > b[-1] else "B"


def meta(
    judge: ScriptedEngine,
    rollouts: Sequence[Rollout],
    counts: Counter[str] | None = None,
    lessons: list[Lesson] | None = None,
    **settings: Any,
) -> list[Score]:
    def count(name: str, amount: float) -> None:
        if counts is not None:
            counts[name] += amount  # type: ignore[assignment]

    ctx = context(prompt("SECRET"), engine=judge, count=count, teach=[].append if lessons is None else lessons.append)
    config = MetaJudgeConfig(**({"samples": 3, "retries": 0} | settings))
    return MetaJudgeReward(config).score([list(rollouts)], ctx)[0]


SAID = ["It is wrong. Grade: 1", "It is close. Grade: 3", "It is right. Grade: 5"]


def test_grades_weigh_by_the_comparisons_that_their_judgement_won() -> None:
    judge = Judge(SAID, graded)
    scores = meta(judge, group("12"))
    # Shares won 0, 1/2 and 1 of grades 1, 3 and 5, on a scale of 1 to 5.
    assert scores[0].value == pytest.approx(((3 * 0.5 + 5 * 1) / 1.5 - 1) / 4)
    assert scores[0].components == {"meta_judge": scores[0].value}
    assert scores[0].evidence["judgements"] == SAID
    assert scores[0].evidence["grades"] == [1, 3, 5]
    assert scores[0].evidence["weights"] == [0, 0.5, 1]
    assert len(judge.compared) == 6
    assert set(judge.compared) == {(a, b) for a in SAID for b in SAID if a != b}


def test_a_meta_judge_that_favours_a_position_leaves_the_plain_mean() -> None:
    counts: Counter[str] = Counter()
    scores = meta(Judge(SAID, lambda a, b: "A"), group("12"), counts)
    assert scores[0].value == pytest.approx((3 - 1) / 4)
    assert scores[0].evidence["weights"] == [0.5, 0.5, 0.5]
    assert counts["meta/position_first"] == counts["meta/compared"] == counts["meta/inconsistent"] == 3


@pytest.mark.parametrize("garbage", ["", "I cannot say.", "hm " * 10_000, "Judge A: \ud800"])
def test_a_meta_judge_that_cannot_be_read_leaves_the_plain_mean_and_is_counted_apart(garbage: str) -> None:
    counts: Counter[str] = Counter()
    scores = meta(Judge(SAID, lambda a, b: garbage), group("12"), counts)
    assert scores[0].value == pytest.approx((3 - 1) / 4)
    assert counts["asked"] == 3 and counts["unreadable"] == 0
    assert counts["meta/asked"] == counts["meta/unreadable"] == 6 and counts["meta/compared"] == 0
    assert len(json.dumps(scores[0].evidence)) < 5000


def test_verdicts_that_cannot_be_read_stop_the_run_where_the_config_says_so() -> None:
    with pytest.raises(RewardError, match="meta_judge/meta"):
        meta(Judge(SAID, lambda a, b: "?"), group("12"), unreadable="stop")


def test_verdicts_that_did_not_come_are_asked_for_again() -> None:
    class Shaky:
        """Does not answer a question at temperature 0 the first two times."""

        def __init__(self) -> None:
            self.asked: Counter[str] = Counter()

        def ask(self, questions: Sequence[Prompt], sampling: SamplingParams, **_: Any) -> list[list[Reply] | None]:
            if sampling.temperature > 0:
                return [[Reply(said) for said in SAID[: sampling.n]] for _ in questions]
            return [[self._verdict(question.id)] for question in questions]

        def _verdict(self, id: str) -> Reply:
            self.asked[id] += 1
            return Reply("A") if self.asked[id] > 2 else Reply("", failure="timed out")

    counts: Counter[str] = Counter()
    writer = Shaky()
    ctx = context(prompt(), writers=lambda _: writer, count=lambda name, amount: counts.update({name: int(amount)}))
    config = MetaJudgeConfig(by={"kind": "frozen"}, samples=2, retries=2)
    evidence = MetaJudgeReward(config).score([group("12")], ctx)[0][0].evidence
    assert counts["meta/asked"] == 6 and counts["meta/failed"] == 4 and counts["meta/compared"] == 1
    assert evidence["comparisons"][0]["as_A"] == {
        "verdicts": [None, None, "A"],
        "replies": ["timed out", "timed out", "A"],
    }


def test_a_judgement_that_could_not_be_compared_weighs_as_much_as_an_average_one() -> None:
    def better(a: str, b: str) -> str:
        return "?" if SAID[0] in (a, b) else graded(a, b)

    scores = meta(Judge(SAID, better), group("12"))
    assert scores[0].evidence["weights"] == [0.5, 0, 1]
    assert scores[0].value == pytest.approx(((1 * 0.5 + 5 * 1) / 1.5 - 1) / 4)


def test_equal_judgements_compete_as_one_and_those_without_a_grade_not_at_all() -> None:
    judge = Judge([SAID[2], "No idea.", SAID[2], SAID[0]], graded)
    counts: Counter[str] = Counter()
    scores = meta(judge, group("12"), counts, samples=4)
    assert len(judge.compared) == 2
    assert scores[0].evidence["grades"] == [5, None, 5, 1]
    assert scores[0].evidence["weights"] == [1, None, 1, 0]
    assert scores[0].evidence["unreadable"] == counts["unreadable"] == 1
    assert scores[0].value == 1
    alone = Judge([SAID[1]], graded)
    assert meta(alone, group("12"))[0].value == 0.5 and alone.compared == []


@pytest.mark.parametrize(
    "garbage", ["", "I cannot help with that.", "hm " * 10_000, "Grade: N", "Grade: 9", "2 + 2 is 4"]
)
def test_there_is_no_opinion_where_no_grade_can_be_read(garbage: str) -> None:
    counts: Counter[str] = Counter()
    scores = meta(Judge([garbage], graded), group("12"), counts)
    assert scores[0].value is None and scores[0].components == {}
    assert counts["unreadable"] == 3 and counts["meta/asked"] == 0
    with pytest.raises(RewardError, match="meta_judge"):
        meta(Judge([garbage], graded), group("12"), unreadable="stop")


@pytest.mark.parametrize(
    ("said", "grade"),
    [
        ("2 + 3 is 5, so it is wrong. Grade: 1", 1),
        ("Grade: 1? No, it is right. **Grade:** 5", 5),
        ("The grade is 4", 4),
        ("Final grade: 4/5", 4),
        ("Grade: -4", None),
        ("4", None),
        ("Grade: 1. If it were right: Grade: 5", 1),
        ("Grade: 1 (the best grade is 5).", 1),
        ("I give it a 1. The best possible grade is 5.", 1),
        ("Grade: 2. On reflection, grade: 5", None),
        ("It is 13, so I would not say the grade is 5.", None),
        ("Grade: 4 Reason: one digit is off", 4),
        ("1 (certainly wrong) to 5 (certainly right): 4", None),
    ],
)
def test_the_grade_is_what_stands_behind_that_word_where_the_template_asks_for_it(
    said: str, grade: float | None
) -> None:
    assert meta(Judge([said], graded), group("12"))[0].evidence["grades"] == [grade] * 3


def test_the_first_number_is_the_grade_where_the_template_asks_for_nothing_else() -> None:
    scores = meta(Judge(["4, it is right"], graded), group("12"), template="{question} {answer} From 1 to 5?")
    assert scores[0].evidence["grades"] == [4, 4, 4]


def test_a_grade_at_the_end_of_a_judgement_that_was_cut_off_is_not_trusted() -> None:
    assert meta(Judge(["It is right. Grade: 1"], graded, cut=True), group("12"))[0].value is None


def test_rollouts_without_an_answer_earn_nothing_unasked_and_equal_ones_are_judged_once() -> None:
    judge = Judge([SAID[2]], graded)
    rollouts = [*group("12", "12", "well"), rollout("12", index=3, cut=True)]
    scores = meta(judge, rollouts)
    assert [score.value for score in scores] == [1, 1, 0, 0]
    assert [question.id for question in judge.asked] == ["p-0/judge"]
    assert meta(Judge(SAID, graded), group("well"))[0].value is None


def test_judgements_of_different_answers_do_not_meet() -> None:
    judge = Judge(SAID[:2], graded)
    meta(judge, group("12", "13"), samples=2)
    asked = [question.content for question in judge.asked if "Two judges" in question.content]
    assert len(asked) == 4
    for answer in ("12", "13"):
        assert sum(f"Proposed answer: {answer}\n" in str(content) for content in asked) == 2
    assert "SECRET" not in repr(judge.asked)


def test_an_answer_too_long_to_ask_about_gets_no_opinion() -> None:
    class Small(Judge):
        def generate(self, prompts: Any, sampling: Any, *, seed: int) -> Any:
            long = [question.id for question in prompts if "99999" in question.content]
            if long:
                raise PromptTooLongError("too long", long)
            return super().generate(prompts, sampling, seed=seed)

    scores = meta(Small(SAID, graded), group("12", "99999"))
    assert scores[0].value is not None and scores[1].value is None
    assert "does not fit" in scores[1].evidence["note"]


def test_judgements_in_json_give_a_reason_to_compare() -> None:
    said = [json.dumps({"reason": f"because {grade}", "grade": grade}) for grade in (1, 5)]
    judge = Judge(said, lambda a, b: json.dumps({"better": "A" if '"grade": 5' in a else "B"}))
    scores = meta(judge, group("12"), samples=2, reply="json")
    assert scores[0].value == 1 and scores[0].evidence["weights"] == [0, 1]
    assert '"reason"' in str(judge.asked[0].content) and '"better"' in str(judge.asked[-1].content)
    assert meta(Judge(['{"reason": "", "grade": 9}'], graded), group("12"), reply="json")[0].value is None


def test_the_judge_learns_from_the_comparisons_that_its_judgements_won() -> None:
    lessons: list[Lesson] = []
    judge = Judge([*SAID, "No idea."], graded)
    meta(judge, group("12", "13"), lessons=lessons, learn=True, samples=4)
    assert [lesson.prompt for lesson in lessons] == judge.asked[:2]
    for lesson in lessons:
        assert lesson.kind == "judgement" and lesson.on_policy
        assert [rollout.text for rollout in lesson.rollouts] == SAID
        assert [score.value for score in lesson.scores] == [0, 0.5, 1]
        assert {rollout.prompt_id for rollout in lesson.rollouts} == {lesson.prompt.id}
        assert lesson.prompt.reference is None


def test_there_is_no_lesson_where_no_judgement_fared_better() -> None:
    lessons: list[Lesson] = []
    meta(Judge(SAID, lambda a, b: "A"), group("12"), lessons=lessons, learn=True)
    meta(Judge(SAID, lambda a, b: "?"), group("12"), lessons=lessons, learn=True)
    meta(Judge(SAID[:1], graded), group("12"), lessons=lessons, learn=True)
    meta(Judge(["?"], graded), group("12"), lessons=lessons, learn=True)
    meta(Judge(SAID, graded), group("12"), lessons=lessons)
    assert lessons == []


def test_the_judge_samples_and_the_meta_judge_is_greedy() -> None:
    asked: list[tuple[int, float, int]] = []

    class Noting(Judge):
        def generate(self, prompts: Any, sampling: Any, *, seed: int) -> Any:
            asked.append((len(prompts), sampling.temperature, sampling.max_tokens))
            return super().generate(prompts, sampling, seed=seed)

    meta(Noting(SAID, graded), group("12"), max_tokens=50, meta_max_tokens=7)
    assert asked == [(1, 1.0, 50), (6, 0.0, 7)]


def test_the_factory_builds_it_and_it_needs_whom_it_asks() -> None:
    assert isinstance(make_reward(MetaJudgeConfig()), MetaJudgeReward)
    assert make_reward(MetaJudgeConfig()).needs == {"engine"}
    assert make_reward(MetaJudgeConfig(by={"kind": "frozen"})).needs == {"writers"}
    with pytest.raises(ValidationError, match="samples"):
        MetaJudgeConfig(samples=1)


def test_a_real_model_judges_its_judgements_end_to_end() -> None:
    from rlsf.models import resolve_model
    from rollouts.config import TransformersEngineConfig
    from rollouts.transformers_engine import TransformersEngine

    engine = TransformersEngine(resolve_model("lab"), TransformersEngineConfig())
    lessons: list[Lesson] = []
    counts: Counter[str] = Counter()
    # The lab model answers with numbers: some of them are grades.
    settings = {"template": "1+{question}{answer}=", "meta_template": "{question}{answer}{first}{second}", "high": 99.0}
    scores = meta(
        engine, group("12", "well"), counts, lessons, samples=8, max_tokens=4, learn=True, **settings
    )  # fmt: skip
    engine.close()
    assert counts["asked"] == 8 and scores[1].value == 0
    assert scores[0].value is None or 0 <= scores[0].value <= 1
    assert len(scores[0].evidence["judgements"]) == 8
    for lesson in lessons:
        assert all(rollout.completion_ids and rollout.prompt_ids for rollout in lesson.rollouts)
