"""Reflection: what is asked, what the revisions say, what can be learned from them, and what goes wrong."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from reward.base import BaseReward, Groups
from reward.config import ReflectionConfig
from reward.factory import make_reward
from reward.rewards.reflection import ReflectionReward
from reward.types import Lesson, Reply, RewardContext, RewardError, Score
from rlsf.models import load_tokenizer
from rlsf.models.lab_tasks import LAB_DIR
from rollouts.prompts import encode_prompt
from rollouts.types import Engine, Message, Prompt, Rollout, SamplingParams
from tests.lab_reflection import lab_engine, reflect_on_sums
from tests.reward_fakes import CrampedEngine, ScriptedEngine, context, group, prompt, rollout, values

TEMPLATES = {"critique_template": "C|{question}|{answer}", "revision_template": "R|{question}|{answer}|{critique}"}
MAJORITY = {"measure": {"kind": "majority"}}


def reflection(**settings: Any) -> BaseReward:
    return make_reward(ReflectionConfig(**{**TEMPLATES, **settings}))


def parts_of(question: Prompt) -> list[str]:
    """What the templates above were filled with: ["C", question, answer] or ["R", question, answer, critique]."""
    return question.text.split("|")


def answering(revision: Callable[[str, str], str], *critiques: str) -> ScriptedEngine:
    """An engine whose critiques are `critiques` by sample, and whose revisions `revision(answer, critique)`."""

    def reply(question: Prompt, sample: int) -> str:
        kind, _, *words = parts_of(question)
        return critiques[sample % len(critiques)] if kind == "C" else revision(*words)

    return ScriptedEngine(reply)


@dataclass
class Record:
    """What a reward counts and teaches."""

    counts: Counter[str] = field(default_factory=Counter)
    lessons: list[Lesson] = field(default_factory=list)

    def context(self, *prompts: Prompt, **more: Any) -> RewardContext:
        def count(name: str, amount: float) -> None:
            self.counts[name] += int(amount)

        return context(*(prompts or (prompt(),)), count=count, teach=self.lessons.append, **more)


def score(reward: BaseReward, rollouts: Sequence[Rollout], **more: Any) -> list[Score]:
    return reward.score([list(rollouts)], context(prompt(), **more))[0]


# -- what an answer earns ----------------------------------------------------------------------------------------------


def test_survival_is_the_share_of_revisions_that_give_the_same_answer() -> None:
    """12 stands by "fine" and falls to "wrong"; 7 falls to both; the last one has no answer that could survive."""
    engine = answering(
        lambda answer, critique: answer if (answer, critique) == ("12", "fine") else "13", "fine", "wrong"
    )
    scores = score(reflection(critiques=2), group("12", "7", "12", "no idea"), engine=engine)
    assert values([scores]) == [[0.5, 0.0, 0.5, 0.0]]
    assert scores[0].components == {"reflection": 0.5, "survival": 0.5}
    assert scores[3].evidence == {"answer": None, "note": "no answer to reflect on"}


def test_each_distinct_answer_is_reflected_on_once_and_each_stage_is_one_call() -> None:
    engine = answering(lambda answer, _: answer, "fine", "wrong")
    groups = [group("12", "7", "12", "no idea"), group("12", "12", prompt_id="q")]
    reflection(critiques=2).score(groups, context(prompt(), prompt(id="q"), engine=engine))
    assert [question.id for question in engine.asked] == [
        *("p-0/critique", "p-1/critique", "q-0/critique"),
        *("p-0/revision/0", "p-0/revision/1", "p-1/revision/0", "p-1/revision/1", "q-0/revision/0", "q-0/revision/1"),
    ]
    assert len(engine.seeds) == 2
    assert parts_of(engine.asked[1]) == ["C", "What is 7 + 5?", "7"]
    assert parts_of(engine.asked[6]) == ["R", "What is 7 + 5?", "7", "wrong"]


def test_originals_and_revisions_are_measured_as_one_group() -> None:
    """7 has the majority of the originals, 12 that of all: votes 12, 7, 7 and 12, 12."""
    engine = answering(lambda *_: "12", "hm")
    gain = score(reflection(**MAJORITY), group("12", "7", "7"), engine=engine)
    assert values([gain]) == [[0.0, -1.0, -1.0]]
    assert str(gain[0].value) == "0.0", "not -0.0"
    assert gain[1].components == {"reflection": -1.0, "gain": 1.0, "survival": 0.0}
    assert gain[1].evidence == {
        "answer": "7",
        "score": 0.0,
        "measure": {"answer": "7", "votes": {"12": 3, "7": 2}, "winners": ["12"], "share": 0.6},
        "reflections": [{"critique": "hm", "revision": "12", "answer": "12", "score": 1.0, "gain": 1.0}],
    }
    revised = score(reflection(**MAJORITY, pay="revised"), group("12", "7", "7"), engine=engine)
    assert values([revised]) == [[1.0, 1.0, 1.0]]
    survival = score(reflection(**MAJORITY, pay="survival"), group("12", "7", "7"), engine=engine)
    assert values([survival]) == [[1.0, 0.0, 0.0]]


def test_gains_are_averaged_over_the_revisions_that_can_be_read() -> None:
    """The number itself as the measure: 10 becomes 13, nothing, 16."""
    revisions = {"a": "13", "b": "no idea", "c": "16"}
    engine = answering(lambda _, critique: revisions[critique], "a", "b", "c")
    scores = score(measured(Numbers(), critiques=3), group("10"), engine=engine)
    assert scores[0].value == pytest.approx(-((13 - 10) + (16 - 10)) / 2)
    assert scores[0].components["gain"] == pytest.approx(4.5)
    assert [entry.get("note") for entry in scores[0].evidence["reflections"]] == [
        *(None, "the revision states no answer", None)
    ]


class Numbers(BaseReward):
    """Scores an answer by the number that it is; no opinion on 0. Keeps what it sees."""

    name = "numbers"

    def __init__(self, *needs: Any) -> None:
        self.needs = frozenset(needs)
        self.groups: list[list[Rollout]] = []
        self.contexts: list[RewardContext] = []
        self.total = 0.0

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        self.groups += [list(group) for group in groups]
        self.contexts.append(context)
        self.total += 1
        return [[Score(float(context.extract(rollout) or 0) or None) for rollout in group] for group in groups]

    def state(self) -> dict[str, Any]:
        return {"total": self.total}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.total = state["total"]


def measured(measure: BaseReward, **settings: Any) -> ReflectionReward:
    return ReflectionReward(ReflectionConfig(**TEMPLATES, **MAJORITY, **settings), measure)


def test_where_the_measure_has_no_opinion_there_is_no_gain() -> None:
    engine = answering(lambda answer, _: {"0": "5", "7": "0", "9": "8"}[answer], "hm")
    scores = score(measured(Numbers()), group("0", "7", "9"), engine=engine)
    assert values([scores]) == [[None, None, 1.0]]
    assert scores[0].components == {"survival": 0.0}
    revised = score(measured(Numbers(), pay="revised"), group("0", "7", "9"), engine=engine)
    assert values([revised]) == [[5.0, None, 8.0]]


def test_with_a_measure_a_completion_without_an_answer_is_reflected_on_too() -> None:
    """Cut off or empty: to find an answer is a gain. 12 has three votes of four."""
    engine = answering(lambda *_: "12", "hm")
    rollouts = [rollout("12"), rollout("12", index=1, cut=True), rollout("", index=2)]
    scores = score(reflection(**MAJORITY), rollouts, engine=engine)
    assert values([scores]) == [[0.0, -1.0, -1.0]]
    assert [parts_of(question)[2] for question in engine.asked[:3]] == ["12", "12", ""]
    survival = score(reflection(**MAJORITY, pay="survival"), rollouts, engine=engine)
    assert values([survival]) == [[1.0, 0.0, 0.0]]
    in_vain = answering(lambda *_: "who knows", "hm")
    survival = score(reflection(**MAJORITY, pay="survival"), rollouts, engine=in_vain)
    assert values([survival]) == [[None, 0.0, 0.0]]


def test_answers_that_mean_the_same_survive() -> None:
    engine = answering(lambda *_: "0.5", "hm")
    clusters = {"1/2": 0, "0.5": 0, "3": 1}
    scores = score(
        reflection(), group("1/2", "3"), engine=engine, equivalent=lambda answers: [clusters[a] for a in answers]
    )
    assert values([scores]) == [[1.0, 0.0]]


def test_later_rounds_are_about_the_last_revision() -> None:
    """Each revision adds 1; the critique names what it is about."""

    def reply(question: Prompt, _: int) -> str:
        kind, _question, answer, *_rest = parts_of(question)
        return f"on {answer}" if kind == "C" else str(int(answer) + 1)

    engine = ScriptedEngine(reply)
    scores = score(reflection(rounds=3, critiques=2), group("12"), engine=engine)
    assert len(engine.seeds) == 6 and len(set(engine.seeds)) == 6
    assert [parts_of(question)[2:] for question in engine.asked] == [
        *(["12"], ["12", "on 12"], ["12", "on 12"]),
        *(["13"], ["13"], ["13", "on 13"], ["13", "on 13"]),
        *(["14"], ["14"], ["14", "on 14"], ["14", "on 14"]),
    ]
    assert scores[0].value == 0.0
    assert scores[0].evidence["reflections"][0] == {
        "earlier": [{"critique": "on 12", "revision": "13"}, {"critique": "on 13", "revision": "14"}],
        "critique": "on 14",
        "revision": "15",
        "answer": "15",
    }


def test_revisions_end_as_answers_do_and_critiques_are_as_long_as_they_may_be() -> None:
    engine = answering(lambda *_: "12", "hm")
    asked: list[SamplingParams] = []
    generate = engine.generate

    def remember(prompts: Any, sampling: SamplingParams, *, seed: int) -> list[list[Rollout]]:
        asked.append(sampling)
        return generate(prompts, sampling, seed=seed)

    engine.generate = remember  # type: ignore[method-assign]
    answers = [replace(r, sampling=SamplingParams(max_tokens=9, stop=("\n",))) for r in group("12", "7")]
    score(reflection(critiques=3, critique_tokens=40, temperature=0.7), answers, engine=engine)
    score(reflection(revision_tokens=5), answers, engine=engine)
    assert asked == [
        SamplingParams(temperature=0.7, max_tokens=40, n=3),
        SamplingParams(temperature=0.7, max_tokens=9, stop=("\n",)),
        SamplingParams(max_tokens=64),
        SamplingParams(max_tokens=5, stop=("\n",)),
    ]


def test_seeds_derive_from_seed_and_iteration() -> None:
    def seeds(**more: Any) -> list[int]:
        engine = answering(lambda *_: "12", "hm")
        score(reflection(), group("12"), engine=engine, **more)
        return engine.seeds

    assert seeds(seed=1, iteration=2) == seeds(seed=1, iteration=2)
    drawn = [*seeds(seed=1, iteration=2), *seeds(seed=1, iteration=3), *seeds(seed=2, iteration=2)]
    assert len(set(drawn)) == 6


# -- who sees what -----------------------------------------------------------------------------------------------------

LABELLED = Prompt(
    "p", "sums", (Message(role="user", content="{answer}?"),), reference="SECRET", grading={"a": "SECRET"}
)


def test_questions_are_of_the_prompts_form_and_hold_no_label() -> None:
    engine = ScriptedEngine(lambda question, _: "12" if "/revision/" in question.id else "hm {question}")
    record = Record()
    reward = measured(Numbers("reference"), critiques=2, learn=("revision",))
    reward.score([group("7")], record.context(LABELLED, engine=engine))
    assert [question.content for question in engine.asked[:2]] == [
        ({"role": "user", "content": "C|{answer}?|7"},),
        ({"role": "user", "content": "R|{answer}?|7|hm {question}"},),
    ]
    assert "SECRET" not in repr(engine.asked) and "SECRET" not in repr(record.lessons)
    assert len(record.lessons) == 1


@pytest.mark.parametrize("needs", [(), ("reference",)])
def test_the_measure_gets_what_it_declares_and_nothing_more(needs: tuple[str, ...]) -> None:
    measure = Numbers(*needs)
    reward = measured(measure)
    assert reward.needs == {"engine", *needs}
    reward.score([group("7")], context(LABELLED, engine=answering(lambda *_: "12", "hm")))
    [seen] = measure.contexts
    assert seen.engine is None
    assert seen.prompts["p"].reference == ("SECRET" if needs else None)


def test_needs_are_those_of_the_writer_and_of_the_measure() -> None:
    assert reflection(measure={"kind": "self_certainty"}).needs == {"engine", "token_stats"}
    assert reflection(by={"kind": "frozen"}, measure={"kind": "verifier"}).needs == {"writers", "reference"}
    assert reflection(by={"kind": "openai", "model": "m", "api_key_env": None}).needs == frozenset()


def test_the_state_is_the_measures() -> None:
    first, second = measured(Numbers()), measured(Numbers())
    score(first, group("7"), engine=answering(lambda *_: "12", "hm"))
    assert first.state() != second.state()
    second.restore(json.loads(json.dumps(first.state())))
    assert first.state() == second.state()
    plain = reflection()
    plain.restore(plain.state())
    assert plain.state() == {}


def test_an_error_of_the_measure_says_whose_it_is() -> None:
    class Broken(Numbers):
        def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
            return [[Score(math.nan) for _ in group] for group in groups]

    with pytest.raises(RewardError, match="measure: reward 'numbers' gave rollout 'p-0' a value of nan"):
        score(measured(Broken()), group("7"), engine=answering(lambda *_: "12", "hm"))


def test_a_revision_is_an_answer_to_the_original_prompt_in_its_exact_tokens() -> None:
    measure = Numbers()
    engine = answering(lambda *_: "12", "hm")
    [original] = group("7")
    score(measured(measure), [original], engine=engine)
    [[first, revision]] = measure.groups
    written = rollout("12", prompt_id="p-0/revision/0")
    assert first is original
    assert (revision.prompt_id, revision.group_id, revision.prompt_ids) == ("p", "p", original.prompt_ids)
    assert (revision.completion_ids, revision.logprobs) == (written.completion_ids, written.logprobs)
    assert (revision.text, revision.truncated) == ("12", False)


def test_revisions_of_two_rewards_in_one_sum_are_told_apart() -> None:
    """Whoever remembers what it computed for a rollout goes by its id."""
    one, other = Numbers(), Numbers()
    score(measured(one), group("7"), engine=answering(lambda *_: "12", "hm"))
    score(measured(other), group("7"), engine=answering(lambda *_: "13", "hm"))
    assert one.groups[0][1].id != other.groups[0][1].id
    assert one.groups[0][0].id == other.groups[0][0].id


@dataclass
class FakeWriter:
    """Replies to (kind of question, sample) as told."""

    reply: Callable[[str, int], Reply | None]

    def ask(
        self, questions: Sequence[Prompt], sampling: SamplingParams, *, seed: int, json_schema: Any
    ) -> list[list[Reply] | None]:
        groups = [[self.reply(parts_of(question)[0], i) for i in range(sampling.n)] for question in questions]
        return [None if None in group else [reply for reply in group if reply is not None] for group in groups]


@pytest.mark.parametrize("kind", ["frozen", "local"])
def test_only_models_with_the_policys_vocabulary_give_tokens(kind: str) -> None:
    def reply(kind: str, _: int) -> Reply:
        return Reply("12", tokens=2, rollout=rollout("12"))

    by = {"kind": kind, **({"source": "elsewhere"} if kind == "local" else {})}
    measure = Numbers()
    score(measured(measure, by=by), group("7"), writers=lambda _: FakeWriter(reply))
    assert measure.groups[0][1].completion_ids == ((0, 1) if kind == "frozen" else ())
    assert measure.groups[0][1].text == "12"


# -- what goes wrong ---------------------------------------------------------------------------------------------------

TIMEOUT = Reply("", failure="no reply within 60 s")
BAD = {
    "empty": (Reply(" \n"), "the critique is empty", "the revision states no answer", "unreadable"),
    "timed out": (TIMEOUT, "no reply within 60 s", "no reply within 60 s", "failed"),
    "does not fit": (None, "does not fit the context", "does not fit the context", "failed"),
}
BAD_REVISIONS = {
    "a refusal": (Reply("I cannot help with that."), "the revision states no answer"),
    "garbage": (Reply("\udc80\x00}{"), "the revision states no answer"),
    "cut off": (Reply("12 is the", truncated=True, tokens=5), "the revision was cut off"),
    "10 000 tokens": (Reply("wait, " * 10_000, truncated=True, tokens=10_000), "the revision was cut off"),
}


def judged(writer: Callable[[str, int], Reply | None], **settings: Any) -> tuple[Score, Counter[str]]:
    record = Record()
    reward = reflection(by={"kind": "frozen"}, **settings)
    [[got]] = reward.score([group("12")], record.context(writers=lambda _: FakeWriter(writer)))
    assert len(json.dumps(got.evidence)) < 3000
    return got, record.counts


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("settings", [{}, MAJORITY, {**MAJORITY, "learn": ["revision"]}])
def test_a_bad_critique_leaves_no_opinion_and_is_counted(name: str, settings: dict[str, Any]) -> None:
    bad, note, _, counter = BAD[name]
    got, counts = judged(lambda kind, _: bad if kind == "C" else Reply("12"), **settings)
    assert got.value is None
    assert note in got.evidence["reflections"][0]["note"]
    assert (counts["asked"], counts[counter], counts["unreadable"] + counts["failed"]) == (1, 1, 1)


@pytest.mark.parametrize("name", [*BAD, *BAD_REVISIONS])
@pytest.mark.parametrize("settings", [{}, MAJORITY, {**MAJORITY, "learn": ["revision"]}])
def test_a_bad_revision_leaves_no_opinion_and_is_counted(name: str, settings: dict[str, Any]) -> None:
    bad, note = BAD_REVISIONS[name] if name in BAD_REVISIONS else (BAD[name][0], BAD[name][2])
    counter = "unreadable" if name in BAD_REVISIONS else BAD[name][3]
    got, counts = judged(lambda kind, _: bad if kind == "R" else Reply("hm", tokens=3), **settings)
    assert got.value is None
    assert note in got.evidence["reflections"][0]["note"]
    assert (counts["asked"], counts[counter], counts["unreadable"] + counts["failed"]) == (2, 1, 1)
    assert counts["tokens"] == 3 + (bad.tokens if bad is not None else 0)


def test_what_fails_is_left_out_of_the_average() -> None:
    """Of four critiques one times out and one is empty; of the two revisions left one stands by the answer."""
    critiques = [TIMEOUT, Reply("a"), Reply(""), Reply("b")]
    revisions = iter([Reply("12"), Reply("13")])
    got, counts = judged(lambda kind, i: critiques[i] if kind == "C" else next(revisions), critiques=4)
    assert got.value == 0.5
    assert counts == {"asked": 6, "failed": 1, "unreadable": 1, "tokens": 0}


def test_a_critique_that_was_cut_off_is_still_read() -> None:
    got, counts = judged(lambda kind, _: Reply("12") if kind == "R" else Reply("It is", truncated=True))
    assert got.value == 1.0 and counts["unreadable"] == 0


def test_an_attempt_that_fails_in_a_later_round_is_left_out() -> None:
    replies = iter([Reply("hm"), Reply("13"), Reply("")])
    got, counts = judged(lambda *_: next(replies), rounds=2)
    assert got.value is None
    assert got.evidence["reflections"] == [
        {"earlier": [{"critique": "hm", "revision": "13"}], "critique": "", "note": "the critique is empty"}
    ]
    assert counts["asked"] == 3


def test_a_question_too_long_for_the_engine_leaves_out_that_answer_alone() -> None:
    record = Record()
    engine = CrampedEngine(lambda question, _: "hm" if parts_of(question)[0] == "C" else "12")
    [scores] = reflection().score([group("12", "99999")], record.context(engine=engine))
    assert values([scores]) == [[1.0, None]]
    assert record.counts["failed"] == 1
    with pytest.raises(RewardError, match="no question fits"):
        reflection().score([group("99999")], record.context(engine=engine))
    told: list[RewardError] = []
    later = replace(record.context(engine=engine), none_fits=told.append)
    assert values(reflection().score([group("99999", "It is 99999")], later)) == [[None, None]] and len(told) == 1


def test_a_writer_that_miscounts_is_named() -> None:
    class Miscounting(FakeWriter):
        def ask(self, questions: Any, sampling: Any, **more: Any) -> Any:
            return super().ask(questions, replace(sampling, n=2), **more)

    writer = Miscounting(lambda *_: Reply("hm"))
    with pytest.raises(
        RewardError, match=r"reflection: the model gave \[2\] replies to 1 questions; expected 1 to each"
    ):
        score(reflection(by={"kind": "frozen"}), group("12"), writers=lambda _: writer)


def test_a_group_without_answers_asks_nothing() -> None:
    record = Record()
    [scores] = reflection().score([group("none", "")], record.context(engine=answering(lambda *_: "1", "hm")))
    assert values([scores]) == [[None, None]], "where answers stand may be set wrong: that is no zero"
    assert record.counts == {"unanswered": 2}


# -- what can be learned -----------------------------------------------------------------------------------------------


def lessons(engine: ScriptedEngine, *texts: str, **settings: Any) -> list[Lesson]:
    record = Record()
    measured(Numbers(), **settings).score([group(*texts)], record.context(engine=engine))
    return record.lessons


def test_critiques_of_an_answer_are_rewarded_by_what_their_revisions_gained() -> None:
    """Of 10: "up" gains 3, "down" loses 4, "hm" has no readable revision. Of 20: all lead to 30, which is no lesson."""
    to = {"10": {"up": "13", "down": "6", "hm": "what?"}, "20": {"up": "30", "down": "30", "hm": "30"}}
    engine = answering(lambda answer, critique: to[answer][critique], "up", "down", "hm")
    [lesson] = lessons(engine, "10", "20", "10", critiques=3, learn=("critique",))
    assert (lesson.kind, lesson.on_policy) == ("critique", True)
    assert lesson.prompt == engine.asked[0]
    up, down = rollout("up", prompt_id="p-0/critique"), rollout("down", prompt_id="p-0/critique", index=1)
    assert lesson.rollouts == (up, down)
    assert [score.value for score in lesson.scores] == [3.0, -4.0]
    assert [score.evidence for score in lesson.scores] == [
        *({"revision": "13", "answer": "13"}, {"revision": "6", "answer": "6"})
    ]


def test_the_best_revision_makes_a_pair_with_its_original_where_it_gained_enough() -> None:
    to = {"10": {"a": "13", "b": "15", "c": "15"}, "20": {"a": "21", "b": "5", "c": "21.9"}}
    engine = answering(lambda answer, critique: to[answer][critique], "a", "b", "c")
    [lesson] = lessons(engine, "10", "20", "10", critiques=3, learn=("revision",), min_gain=2)
    assert (lesson.kind, lesson.on_policy) == ("revision", False)
    assert lesson.prompt == prompt()
    assert [r.text for r in lesson.rollouts] == ["10", "15"]
    assert [r.prompt_ids for r in lesson.rollouts] == [(1, 2), (1, 2)]
    assert [score.value for score in lesson.scores] == [10.0, 15.0]
    assert lesson.scores[1].components["gain"] == 5.0
    assert lesson.scores[1].evidence["critique"] == "b"


def test_nothing_is_taught_unasked_and_both_kinds_go_together() -> None:
    engine = answering(lambda answer, critique: "13" if critique == "up" else "9", "up", "down")
    assert lessons(engine, "10", critiques=2) == []
    both = lessons(engine, "10", critiques=2, learn=("critique", "revision"))
    assert [lesson.kind for lesson in both] == ["critique", "revision"]


# -- comments from outside ---------------------------------------------------------------------------------------------


def comments(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "comments.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_comment_takes_the_place_of_the_critique(tmp_path: Path) -> None:
    """The first revision after it is 12, the second stays at 7."""
    feedback = comments(tmp_path, {"prompt_id": "p", "answer": 7, "feedback": "carry the one"})
    revisions = {"p-0/revision/0": "12", "p-0/revision/1": "7"}
    engine = ScriptedEngine(lambda q, _: "fine" if parts_of(q)[0] == "C" else revisions.get(q.id, "12"))
    record = Record()
    reward = reflection(feedback=feedback, critiques=2, **MAJORITY, learn=["critique", "revision"])
    [scores] = reward.score([group("7", "12")], record.context(engine=engine))
    assert [parts_of(question)[2:] for question in engine.asked] == [
        *(["12"], ["7", "carry the one"], ["7", "carry the one"], ["12", "fine"], ["12", "fine"])
    ]
    assert values([scores]) == [[-0.5, 0.0]]
    assert scores[0].evidence["reflections"][0]["comment"] == "carry the one"
    assert "critique" not in scores[0].evidence["reflections"][0]
    assert record.counts["commented"] == 1
    assert [lesson.kind for lesson in record.lessons] == ["revision"], "nobody here wrote that critique"
    assert record.lessons[0].scores[1].evidence["critique"] == "carry the one"


def test_with_feedback_only_other_answers_are_left_alone(tmp_path: Path) -> None:
    feedback = comments(tmp_path, {"prompt_id": "p", "answer": "7", "feedback": "no"})
    engine = answering(lambda *_: "12", "fine")
    record = Record()
    reward = reflection(feedback=feedback, feedback_only=True, rounds=2)
    [scores] = reward.score([group("7", "8", "none")], record.context(engine=engine))
    assert values([scores]) == [[0.0, None, 0.0]]
    assert [parts_of(question)[0] for question in engine.asked] == ["R"], "12 has no comment: it is what 7 came to"
    assert scores[1].evidence["reflections"] == [{"note": "nobody has a comment on it"}]
    assert record.counts == {"commented": 1, "asked": 1, "failed": 0, "tokens": len("12"), "unanswered": 1}


def test_a_batch_that_the_file_says_nothing_about_shows_in_the_counts(tmp_path: Path) -> None:
    feedback = comments(tmp_path, {"prompt_id": "another", "feedback": "no"})
    record = Record()
    reward = reflection(feedback=feedback, feedback_only=True)
    [scores] = reward.score([group("7")], record.context(engine=answering(lambda *_: "12", "fine")))
    assert values([scores]) == [[None]]
    assert record.counts == {"commented": 0}


# -- configs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pay": "gain"}, "pay: gain needs `measure`"),
        ({"learn": ["revision"]}, "learn: it needs `measure`"),
        ({**MAJORITY, "learn": ["critique"]}, "critiques of at least 2"),
        ({**MAJORITY, "learn": ["critique"], "critiques": 2, "by": {"kind": "frozen"}}, "by: policy"),
        (
            {**MAJORITY, "learn": ["critique"], "critiques": 2, "feedback": "f", "feedback_only": True},
            "the policy writes no critique",
        ),
        ({"feedback_only": True}, "there is no feedback file"),
        (
            {"measure": {"kind": "weighted_sum", "components": {"p": {"reward": {"kind": "sequence_probability"}}}}},
            "measure.components.p.reward: sequence_probability of model: policy is how likely a revision was",
        ),
        ({"critiques": 2, "temperature": 0}, "a temperature above 0"),
        ({"critique_template": "{question}"}, r"critique_template lacks \{answer\}"),
        ({"revision_template": "{question}{answer}"}, r"revision_template lacks \{critique\}"),
        (
            {
                "by": {"kind": "openai", "model": "m"},
                "measure": {"kind": "gate", "condition": {"kind": "majority"}, "reward": {"kind": "length_penalty"}},
            },
            "measure.reward: length_penalty goes by the policy's own tokens",
        ),
    ],
)
def test_settings_that_cannot_work_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ReflectionConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "paid"),
    [({}, "survival"), (MAJORITY, "gain"), ({**MAJORITY, "pay": "revised"}, "revised")],
)
def test_what_is_paid_by_default_depends_on_the_measure(settings: dict[str, Any], paid: str) -> None:
    assert ReflectionConfig(**settings).pays == paid


# -- the real path -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab() -> Engine:
    return lab_engine()


@pytest.mark.parametrize("chat", [True, False])
def test_a_real_model_reflects_the_same_way_for_the_same_seed(lab: Engine, chat: bool) -> None:
    reflected = reflect_on_sums(lab, chat=chat)
    assert reflect_on_sums(lab, chat=chat) == reflected != reflect_on_sums(lab, chat=chat, seed=1)
    assert all(score.value == 0.0 - score.components["gain"] for group in reflected.scores for score in group)
    assert len({score.value for group in reflected.scores for score in group}) > 2
    distinct = sum(len({r.text for r in group}) for group in reflected.rollouts)
    assert reflected.counts["asked"] == distinct * (3 + 3), "no critique was empty"
    assert {lesson.kind for lesson in reflected.lessons} == {"critique", "revision"}
    tokenizer = load_tokenizer(LAB_DIR)
    for lesson in reflected.lessons:
        assert {r.prompt_ids for r in lesson.rollouts} == {encode_prompt(tokenizer, lesson.prompt)}
        assert all(len(r.logprobs) == len(r.completion_ids) > 0 for r in lesson.rollouts)
