"""Which answers are one vote, for every kind of answer and of equivalence, and in the evaluation as in the rewards."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

import reward.equivalence
import reward.expressions
from reward.config import AnswerConfig, EquivalenceConfig
from reward.equivalence import embedding_clusters, make_equivalent, math_clusters, spell_alike
from reward.math_process import Verdict
from reward.rewards.majority import MajorityReward
from reward.types import RewardError
from rlsf.config.schema import TaskConfig
from rlsf.evaluation.evaluate import evaluate
from rlsf.evaluation.grading import Grader
from rollouts.types import SamplingParams
from tests.reward_fakes import ScriptedEngine, context, group, prompt, rollout

SPELLING = EquivalenceConfig()
MATH = EquivalenceConfig(kind="math")
MEANING = EquivalenceConfig(kind="embedding", max_distance=0.1)
TASK = {"name": "sums", "source": {"kind": "file", "path": "x.jsonl"}}


def by_first_letter(texts: Sequence[str]) -> np.ndarray:
    """An embedding that knows nothing but how a text begins."""
    return np.eye(128)[[ord(text[0]) for text in texts]]


def votes(texts: Sequence[str], answer: AnswerConfig, equivalence: EquivalenceConfig) -> dict[str, int]:
    """As `MajorityReward` counts them."""
    ctx = context(prompt(), answer=answer, equivalent=make_equivalent(equivalence, by_first_letter))
    return MajorityReward().score([group(*texts)], ctx)[0][0].evidence["votes"]


@pytest.mark.parametrize(
    ("answer", "texts", "counts"),
    [
        ({"kind": "number"}, ["1/2", "0.5", r"$\frac12$", r"It is \frac{1}{2}.", "50%", ""], {"1/2": 4, "50": 1}),
        ({"kind": "number"}, ["12", "12.0", "7 + 5 = 12", "1,200", "7 + 5"], {"12": 3, "1200": 1}),
        ({"kind": "boxed"}, [r"\boxed{\frac{1}{2}}", r"so \boxed{0.5}", r"\boxed{.50}", r"\boxed{}"], {"0.5": 3}),
        ({"kind": "boxed"}, [r"\boxed{2\sqrt{2}}", r"\boxed{\sqrt{8}}", r"\boxed{\sqrt8}"], {r"2\sqrt{2}": 3}),
        ({"kind": "boxed"}, [r"\boxed{(x+1)^2}", r"\boxed{x^2+2x+1}", r"\boxed{x^2}"], {"(x+1)^2": 2, "x^2": 1}),
        ({"kind": "boxed"}, [r"\boxed{x = 12}", r"\boxed{12}", r"\boxed{x=12}"], {"12": 3}),
        ({"kind": "boxed"}, [r"\boxed{\text{Paris}}", r"\boxed{Paris}", r"\boxed{Pairs}"], {"Paris": 2, "Pairs": 1}),
        ({"kind": "tag"}, ["<answer>3/4</answer>", "<answer>0.75</answer>", "<answer> </answer>"], {"0.75": 2}),
        ({"kind": "regex", "pattern": "A:(.*)"}, ["A: 1/4", r"A: \frac{1}{4}", "A: 0.25", "A: "], {"1/4": 3}),
        ({"kind": "text"}, [r"\frac{1}{4}", "0.25", " ", "a quarter"], {"0.25": 2, "a quarter": 1}),
        ({"kind": "choice"}, ["(B)", "b.", "The answer is B", "**B**", "A", "", "A or B"], {"B": 4, "A": 1}),
    ],
)
def test_spellings_of_one_answer_are_one_vote(answer: dict[str, str], texts: list[str], counts: dict[str, int]) -> None:
    assert votes(texts, AnswerConfig(**answer), MATH) == counts


@pytest.mark.parametrize("equivalence", [SPELLING, MATH, MEANING], ids=lambda e: e.kind)
def test_choices_are_one_vote_however_they_are_written(equivalence: EquivalenceConfig) -> None:
    texts = ["(B)", "b.", "The answer is B", "B) Paris", "C"]
    assert votes(texts, AnswerConfig(kind="choice"), equivalence) == {"B": 4, "C": 1}


def test_free_text_is_one_vote_where_it_is_close_in_meaning() -> None:
    texts = ["Paris", "paris ", "paris, france", "Rome", "Paris", ""]
    assert votes(texts, AnswerConfig(kind="text"), MEANING) == {"paris": 4, "rome": 1}
    assert votes(texts, AnswerConfig(kind="text"), SPELLING) == {"paris": 3, "paris, france": 1, "rome": 1}


@pytest.mark.parametrize("equivalence", [SPELLING, MATH, MEANING], ids=lambda e: e.kind)
@pytest.mark.parametrize("kind", ["number", "text", "boxed", "tag", "choice"])
def test_empty_answers_cast_no_vote(kind: str, equivalence: EquivalenceConfig) -> None:
    """Clustered together, they would be rewarded for agreeing."""
    equivalent = make_equivalent(equivalence, by_first_letter)
    silent = {"boxed": r"\boxed{ }", "tag": "<answer></answer>"}.get(kind, " \n")
    said = {"boxed": r"\boxed{7}", "tag": "<answer>7</answer>", "choice": "B"}.get(kind, "7")
    rollouts = [*group(silent, silent, silent, said, ""), rollout(said, cut=True, index=5)]
    ctx = context(prompt(), answer=AnswerConfig(kind=kind), equivalent=equivalent)
    assert [score.value for score in MajorityReward().score([rollouts], ctx)[0]] == [0, 0, 0, 1, 0, 0]
    assert [score.value for score in MajorityReward().score([rollouts[:3]], ctx)[0]] == [None] * 3


def test_what_is_left_to_work_out_is_no_vote_for_the_result() -> None:
    """Else repeating the question would be an answer to it."""
    number = AnswerConfig(kind="number")
    assert votes(["12/4"] * 3 + ["3"] * 2, number, MATH) == {"12/4": 3, "3": 2}
    assert votes(["2/4", "4/8", "1/2", "0.5"], number, MATH) == {"0.5": 2, "2/4": 1, "4/8": 1}
    boxed = AnswerConfig(kind="boxed")
    texts = [rf"\boxed{{{text}}}" for text in ("7 + 5", "5 + 7", "x = 7 + 5", r"\sqrt{144}", "12", "12.0")]
    assert votes(texts, boxed, MATH)["12"] == 2


def test_math_merges_nothing_by_way_of_a_third_answer() -> None:
    """50\\% equals 50 to math-verify, and 0.5 too."""
    assert math_clusters([r"x = 50\%", "50", "0.5"]) == [0, 0, 1]


def test_equal_to_math_is_what_equals_in_both_directions() -> None:
    """An interval passes for an inequality, and not the other way round."""
    assert math_clusters(["x>3", r"(3,\infty)"]) == [0, 1]


def test_math_reads_no_words_as_products_of_letters() -> None:
    answers = ["listen", "silent", "no idea", "idea no", "dog bites man", "man bites dog"]
    assert len(set(math_clusters(answers))) == len(answers)


def test_what_math_verify_cannot_read_equals_nothing_else() -> None:
    assert len(set(math_clusters(["\\", "\\\\", "?!", "$$"]))) == 4


class Slow:
    """Stands for math-verify's process; runs out of time on everything with a tower of powers in it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def compare(self, reference: str, answer: str) -> Verdict:
        self.asked.append((reference, answer))
        if "^{9" in reference + answer:
            return Verdict(False, None, "no verdict within 5 s")
        return Verdict(reference[-1] == answer[-1], answer)


def test_an_answer_that_runs_out_of_time_does_so_once_and_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Slow()
    monkeypatch.setattr(reward.equivalence, "shared_process", lambda: process)
    monkeypatch.setattr(reward.expressions, "shared_process", lambda: process)
    answers = ["y+9^{9^{9}}", "9^{9^{9^{9}}}+y", *(f"{i}z+{'abc'[i % 3]}" for i in range(6))]
    assert math_clusters(answers) == [0, 1, 2, 3, 4, 2, 3, 4]
    assert sum("^{9" in reference + answer for reference, answer in process.asked) == 2


def test_numbers_and_prose_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Slow()
    monkeypatch.setattr(reward.equivalence, "shared_process", lambda: process)
    monkeypatch.setattr(reward.expressions, "shared_process", lambda: process)
    assert len(set(math_clusters([str(i / 4) for i in range(-32, 32)]))) == 64
    prose = [" ".join(["that is", "an answer"] * 200), *(f"answer of kind {letter}" for letter in "abc"), "12"]
    assert len(set(math_clusters(prose))) == 5
    assert process.asked == []


@settings(deadline=None)  # math-verify may have to be started
@given(st.permutations(["1/2", "0.5", "2/4", "x = 0.5", "x", "x+y", "y+x", "12", "twelve", r"\text{twelve}"]))
def test_math_clusters_do_not_depend_on_the_order(answers: list[str]) -> None:
    equivalent = make_equivalent(MATH)
    assert equivalent is not None
    found = dict(zip(answers, equivalent(answers), strict=True))
    together = {frozenset(a for a in answers if found[a] == cluster) for cluster in found.values()}
    assert together == {
        frozenset(c) for c in [("1/2", "0.5", "x = 0.5"), ("2/4",), ("x",), ("x+y", "y+x"), ("12",)]
    } | {frozenset(["twelve", r"\text{twelve}"])}


def by_length(answers: Sequence[str]) -> list[int]:
    assert all(answers)
    return [len(answer) for answer in answers]


def test_the_most_frequent_spelling_is_taken_then_the_first_in_the_alphabet() -> None:
    assert spell_alike(["b", "a", None, "bb", "", "b"], by_length) == ["b", "b", None, "bb", None, "b"]
    assert spell_alike(["b", "a"], by_length) == ["a", "a"]
    assert spell_alike(["b", "a", ""], None) == ["b", "a", None]
    assert spell_alike([], by_length) == []


@given(st.lists(st.sampled_from(["a", "b", "c", "aa", "bb", "", None]), max_size=12), st.randoms())
def test_spelling_alike_does_not_depend_on_the_order_and_is_stable(answers: list[str | None], random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(answers)))
    random.shuffle(order)
    alike = spell_alike(answers, by_length)
    assert spell_alike([answers[i] for i in order], by_length) == [alike[i] for i in order]
    assert spell_alike(alike, by_length) == alike
    assert [answer is None for answer in alike] == [not answer for answer in answers]


def test_a_set_of_answers_is_embedded_once() -> None:
    asked = []

    def embed(texts: Sequence[str]) -> np.ndarray:
        asked.append(list(texts))
        return by_first_letter(texts)

    equivalent = make_equivalent(MEANING, embed)
    assert equivalent is not None
    first, second = equivalent(["b", "ac", "ab"]), equivalent(["ab", "b", "ac"])
    assert first == [second[1], second[2], second[0]]
    assert equivalent(["ab", "ab"]) == [0, 0]  # the same twice is no trouble
    assert asked == [["ab", "ac", "b"], ["ab"]]


@pytest.mark.parametrize("max_distance", [0.2, 0.6, 1.0, 1.4])
def test_embedding_clusters_are_those_of_average_linkage(max_distance: float) -> None:
    for seed in range(20):
        vectors = np.random.default_rng(seed).normal(size=(12, 3)).astype(np.float32)
        expected = fcluster(linkage(pdist(vectors, "cosine"), "average"), max_distance, "distance")
        found = np.array(embedding_clusters(vectors, max_distance))
        np.testing.assert_array_equal(found[:, None] == found, expected[:, None] == expected)


def test_embedding_clusters_of_what_has_no_direction_or_no_company() -> None:
    assert embedding_clusters(np.zeros((0, 4)), 0.4) == []
    assert embedding_clusters(np.ones((1, 4)), 0.4) == [0]
    assert len(set(embedding_clusters(np.ones((5, 4)) * np.arange(1, 6)[:, None], 1e-6))) == 1  # length means nothing
    zeros = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    assert len(set(embedding_clusters(zeros, 0.4))) == 3
    at_right_angles = np.eye(2)
    assert len(set(embedding_clusters(at_right_angles, 1.0))) == 1  # no larger than max_distance
    assert len(set(embedding_clusters(at_right_angles, 0.999))) == 2
    with pytest.raises(RewardError, match="not finite"):
        embedding_clusters(np.array([[np.nan, 1.0], [1.0, 0.0]]), 0.4)


def test_equivalence_by_spelling_is_none_and_by_meaning_wants_an_embedding() -> None:
    assert make_equivalent(SPELLING, by_first_letter) is None
    with pytest.raises(RewardError, match="embeds answers"):
        make_equivalent(MEANING)
    with pytest.raises(RewardError, match="embeds answers"):
        Grader(TaskConfig.model_validate(TASK | {"answer": {"kind": "text", "equivalence": {"kind": "embedding"}}}))


def majority(texts: Sequence[str], reference: str, equivalence: str) -> float:
    """Of an evaluation of one prompt, through the evaluation's own code."""
    answer = {"kind": "text" if reference.isalpha() else "number", "equivalence": {"kind": equivalence}}
    grader = Grader(TaskConfig.model_validate(TASK | {"answer": answer}), by_first_letter)
    engine = ScriptedEngine(lambda _, index: texts[index])
    measured = evaluate(
        engine, grader, "test", [prompt(reference)], SamplingParams(), samples=len(texts), greedy=False, seed=0
    )
    return measured.majority().value


def test_the_evaluation_counts_votes_as_the_rewards_do() -> None:
    texts = ["1/3", "0.3333333", "1/3", "0.25", "0.25"]
    assert majority(texts, "1/3", "math") == 1
    texts = ["1/2", "1/2", "0.5", "3", "3"]
    assert majority(texts, "3", "spelling") == 0.5
    assert majority(texts, "3", "math") == 0
    assert majority(["Paris", "paris, france", "Rome", "London", "London"], "London", "spelling") == 1
    assert majority(["Paris", "paris, france", "paris!", "London", "London"], "London", "embedding") == 0


def test_a_majority_whose_spellings_are_graded_differently_is_right_in_part() -> None:
    """1/2 is no answer to "what is 1/2 as a decimal?"."""
    assert majority(["1/2", "1/2", "0.5", "3"], "0.5", "math") == pytest.approx(1 / 3)
    assert majority(["0.5", "1/2", "1/2", "3"], "0.5", "math") == pytest.approx(1 / 3)
