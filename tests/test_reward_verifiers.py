"""Grades, against reasoning-gym's and math-verify's own opinion."""

import json
import signal
import threading
import time
from pathlib import Path

import pytest
import reasoning_gym

from reward.config import AnswerConfig, VerifierConfig
from reward.math_process import MathProcess
from reward.types import RewardError
from reward.verifiers import Grade, make_verifier
from rollouts.types import Prompt
from tests.reward_fakes import NUMBER, prompt, rollout

TEXT = AnswerConfig(kind="text")
BOXED = AnswerConfig(kind="boxed")


def grade(kind: str, answer: str | None, reference: str, config: AnswerConfig = NUMBER, **settings: float) -> Grade:
    return make_verifier(VerifierConfig(kind=kind, **settings), config).grade(answer, prompt(reference))


def gym_prompt(name: str, index: int = 0, **params: object) -> Prompt:
    entry = reasoning_gym.create_dataset(name, seed=3, size=index + 1, **params)[index]
    grading = {"dataset": name, "entry": json.loads(json.dumps(entry)), "params": params}
    return Prompt(f"{name}-{index}", name, entry["question"], reference=entry["answer"], grading=grading)


@pytest.mark.parametrize("kind", ["exact", "numeric", "math", "auto"])
def test_no_answer_is_wrong_and_a_truncated_rollout_has_none(kind: str) -> None:
    verifier = make_verifier(VerifierConfig(kind=kind), NUMBER)
    for answer in (None, "", rollout("12", cut=True), rollout("no idea")):
        assert verifier.grade(answer, prompt("12")) == Grade(0.0, False, {"answer": None})
    assert verifier.grade(rollout("The answer is 12."), prompt("12")).correct


@pytest.mark.parametrize("kind", ["exact", "numeric", "math", "auto", "reasoning_gym"])
def test_a_prompt_without_labels_is_an_error_that_names_it(kind: str) -> None:
    with pytest.raises(RewardError, match="'p'"):
        make_verifier(VerifierConfig(kind=kind), NUMBER).grade("12", prompt("12").without_labels())


@pytest.mark.parametrize(
    ("answer", "reference", "config", "correct"),
    [
        ("12.0", "12", NUMBER, True),
        ("1,234", "1234", NUMBER, True),
        ("12", "13", NUMBER, False),
        (" Paris", "paris", TEXT, True),
        ("Paris.", "paris", TEXT, False),
        ("12.0", "12", TEXT, False),
        ("b", "(B)", AnswerConfig(kind="choice"), True),
        ("x", "X", BOXED, False),
    ],
)
def test_exact(answer: str, reference: str, config: AnswerConfig, correct: bool) -> None:
    assert grade("exact", answer, reference, config).correct is correct


@pytest.mark.parametrize(
    ("answer", "reference", "correct"),
    [
        ("12", "12", True),
        ("-12", "12", False),
        ("3.1415926", "3.1415925", True),
        ("3.15", "3.14", False),
        ("0.0000001", "0", True),
        ("0.001", "0", False),
        ("12345679", "12345678", False),  # relatively close, yet another integer
        ("10000000000000000000001", "10000000000000000000000", False),  # beyond a float's digits
        ("0.5", "1/2", True),
        ("1/2", "1/2", True),
        ("7/2", "3.5", False),  # the question itself, not its answer
        ("14/4", "7/2", False),
        ("twelve", "12", False),
        ("1,234.50", "$1,234.5", True),
        ("12", "7 + 5 = 12\n#### 12", True),  # GSM8K's column as it stands
        ("12", "12 Stunden", True),  # any word is a unit in a reference
        ("12 wrong", "12", False),
    ],
)
def test_numeric(answer: str, reference: str, correct: bool) -> None:
    assert grade("numeric", answer, reference).correct is correct


def test_numeric_tolerance_is_relative_and_configurable() -> None:
    assert grade("numeric", "101.5", "100.2", tolerance=0.02).correct
    assert not grade("numeric", "103.5", "100.2", tolerance=0.02).correct
    assert not grade("numeric", "0.50000001", "0.5", tolerance=0.0).correct


def test_numeric_refuses_a_reference_that_is_no_number() -> None:
    with pytest.raises(RewardError, match="'Paris' is no number"):
        grade("numeric", "12", "Paris")


@pytest.mark.parametrize(
    ("answer", "reference", "correct"),
    [
        ("12", "12", True),
        ("12.0", "12", True),
        ("x = 12", "12", True),
        (r"\frac{1}{2}", "0.5", True),
        ("0.5", r"\frac{1}{2}", True),
        ("1/2", r"$\frac{1}{2}$", True),
        ("1,234", "1234", True),
        (r"12\text{ cm}", "12", True),
        (r"1.2 \times 10^{3}", "1200", True),
        ("-5", "5", False),
        ("13", "12", False),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        ("(x+1)^2", "x^2+2x+1", True),
        ("(x+1)^2", "x^2+2x+2", False),
        (r"\{2, 1\}", r"\{1,2\}", True),
        ("(1, 2)", "(1,2)", True),
        ("(2, 1)", "(1,2)", False),
        (r"\pi", "3.14159", False),
        # left undone: math-verify by itself takes these for equal
        ("7 + 5", "12", False),
        (r"\frac{24}{2}", "12", False),
        (r"\frac{2}{4}", "0.5", False),
        ("3 \\cdot 4", "12", False),
        (r"\sqrt{144}", "12", False),
        ("12 maybe 13", "12", False),
        (r"\frac{24}{48}", r"\frac12", False),
        (r"\frac{24}{48}", r"\frac 12", False),
        (r"\frac{1}{2}", r"\frac12", True),
        ("7 + 5", r"12\text{ cm}", False),
        ("12", r"12\text{ cm}", True),
        ("100+80", r"180^\circ", False),
        ("180", r"180^\circ", True),
        ("1000+234", "1{,}234", False),
        ("1234", "1{,}234", True),
        # several candidates before the equals sign
        (r"\{11,12\} = 12", "12", False),
        ("11 or 12 = 12", "12", False),
        ("12 = 13", "12", False),
        ("1{,}000 + 234 = 1{,}234", "1234", True),
        (r"\theta = 30^\circ", r"30^\circ", True),
        # words, which math-verify reads as products of letters
        ("silent", "listen", False),
        (r"\text{Paris}", "Paris", True),
        ("dog bites man", "man bites dog", False),
        ("sqrt(2)*x", "x*sqrt(2)", True),
    ],
)
def test_math(answer: str, reference: str, correct: bool) -> None:
    assert grade("math", answer, reference, BOXED).correct is correct


def test_math_reads_latex_in_the_answer_where_it_stands() -> None:
    verifier = make_verifier(VerifierConfig(kind="math"), BOXED)
    assert verifier.grade(rollout(r"Thus \boxed{\dfrac{x}{2}}."), prompt(r"\frac{x}{2}")).correct
    assert not verifier.grade(rollout(r"Thus \dfrac{x}{2}."), prompt(r"\frac{x}{2}")).correct


def test_math_works_in_threads_and_leaves_the_alarm_alone() -> None:
    handler = signal.getsignal(signal.SIGALRM)
    results: list[bool] = []

    def work() -> None:
        results.extend(grade("math", rf"\frac{{{2 * x + 1}}}{{2}}", f"{x}.5", BOXED).correct for x in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 20
    assert signal.getsignal(signal.SIGALRM) is handler


def test_math_kills_a_comparison_that_does_not_end_and_goes_on() -> None:
    process = MathProcess(timeout=2.0)
    try:
        assert process.compare("x", "x").equal
        start = time.monotonic()
        verdict = process.compare("x", "9^{9^{9^{9}}}+x")
        assert verdict.equal is False
        assert time.monotonic() - start < 30
        assert process.compare("y", "y").equal
    finally:
        process.close()


def test_math_reads_integers_of_thousands_of_digits() -> None:
    process = MathProcess()
    try:
        verdict = process.compare("x", r"\binom{20000}{10000}")
        assert verdict.equal is False and verdict.parsed is not None and len(verdict.parsed) == 500
    finally:
        process.close()


@pytest.mark.parametrize("answer", ["1e3", "1.0e+3", "x = 1e3", "1,000"])
def test_math_reads_scientific_notation(answer: str) -> None:
    assert grade("math", answer, "1000", TEXT).correct


def test_math_outlives_an_answer_that_ends_its_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker = tmp_path / "math_worker.py"
    worker.write_text(
        "import json, sys\nprint(json.dumps({'ready': True}), flush=True)\nfor line in sys.stdin:\n"
        "    if 'deadly' in line: sys.exit(7)\n    print(json.dumps({'equal': True, 'parsed': 'x'}), flush=True)\n"
    )
    monkeypatch.setattr("reward.math_process._WORKER", worker)
    process = MathProcess()
    try:
        verdict = process.compare("x", "deadly")
        assert verdict.equal is False and verdict.note == "math-verify's process ended over it, with status 7"
        assert process.compare("x", "x").equal
        assert process._process is not None
        process._process.kill()  # while it has nothing to do: that is not the answer's doing
        assert process.compare("x", "x").equal
    finally:
        process.close()


def test_math_says_which_reference_it_cannot_read() -> None:
    with pytest.raises(RewardError, match="cannot read the reference"):
        grade("math", "12", "\\", BOXED)


@pytest.mark.parametrize("name", ["chain_sum", "gcd", "products", "decimal_arithmetic", "fraction_simplification"])
def test_reasoning_gym_gives_its_own_answers_full_marks(name: str) -> None:
    verifier = make_verifier(VerifierConfig(kind="reasoning_gym"), TEXT)
    for index in range(5):
        p = gym_prompt(name, index)
        result = verifier.grade(rollout(p.reference), p)
        assert (result.value, result.correct) == (1.0, True)


def test_reasoning_gym_agrees_with_its_own_scorer_on_words() -> None:
    dataset = reasoning_gym.create_dataset("spell_backward", seed=3, size=5)
    verifier = make_verifier(VerifierConfig(kind="reasoning_gym"), TEXT)
    for index, entry in enumerate(dataset):
        p = gym_prompt("spell_backward", index)
        for answer in (entry["answer"], entry["answer"][:-1], entry["metadata"]["word"] + "x", "zzz"):
            assert verifier.grade(answer, p).value == dataset.score_answer(answer, entry)


def test_reasoning_gym_spellings_that_are_one_vote_get_one_grade() -> None:
    p = gym_prompt("chain_sum")
    verifier = make_verifier(VerifierConfig(kind="reasoning_gym"), NUMBER)
    for text in (p.reference, f"{p.reference}.0", f"The answer is {int(p.reference):,}.", f"= {p.reference}"):
        assert verifier.grade(rollout(text), p).correct


def test_reasoning_gym_gives_no_credit_for_containing_the_answer() -> None:
    p = gym_prompt("gcd")
    assert reasoning_gym.get_score_answer_fn("gcd")(f"1{p.reference}", p.grading["entry"]) > 0  # its default would
    result = make_verifier(VerifierConfig(kind="reasoning_gym"), NUMBER).grade(f"1{p.reference}", p)
    assert (result.value, result.correct) == (0.0, False)


def test_reasoning_gym_takes_the_scorer_of_the_params_it_was_made_with() -> None:
    p = gym_prompt("puzzle24", min_value=1, max_value=6)
    verifier = make_verifier(VerifierConfig(kind="reasoning_gym"), TEXT)
    assert verifier.grade(p.grading["entry"]["answer"], p).correct


def test_reasoning_gym_answer_that_breaks_the_scorer_is_wrong_and_says_so() -> None:
    p = gym_prompt("prime_factorization")
    with pytest.raises(ValueError):
        reasoning_gym.get_score_answer_fn("prime_factorization")("no idea", p.grading["entry"])
    result = make_verifier(VerifierConfig(kind="reasoning_gym"), TEXT).grade("no idea", p)
    assert (result.value, result.correct) == (0.0, False)
    assert "ValueError" in result.evidence["note"]


def test_reasoning_gym_broken_entry_is_an_error() -> None:
    good = gym_prompt("prime_factorization")
    broken = Prompt(
        good.id,
        good.task,
        good.content,
        grading={"dataset": "prime_factorization", "entry": {"answer": "two times three"}},
    )
    with pytest.raises(RewardError, match=good.id):
        make_verifier(VerifierConfig(kind="reasoning_gym"), TEXT).grade("no idea", broken)


def test_reasoning_gym_unknown_dataset_is_an_error() -> None:
    with pytest.raises(RewardError, match="no_such_set"):
        make_verifier(VerifierConfig(kind="reasoning_gym"), TEXT).grade(
            "1", prompt("2", grading={"dataset": "no_such_set", "entry": {"answer": "2"}})
        )


def test_reasoning_gym_grids_survive_json() -> None:
    p = gym_prompt("rearc")  # its scorer compares with tuples, which JSON made lists
    entry = p.grading["entry"]
    spaced = "\n".join(" ".join(map(str, row)) for row in entry["metadata"]["output"]) + "\n "
    assert make_verifier(VerifierConfig(kind="reasoning_gym"), TEXT).grade(spaced, p).correct


@pytest.mark.parametrize(
    ("answer", "reference", "config", "correct"),
    [
        ("12.0", "12", NUMBER, True),
        ("Paris", "paris", AnswerConfig(kind="tag"), True),
        ("0.33333333", "1/3", NUMBER, True),
        ("7.0", "7", TEXT, False),  # text is text
    ],
)
def test_auto_without_reasoning_gym(answer: str, reference: str, config: AnswerConfig, correct: bool) -> None:
    assert grade("auto", answer, reference, config).correct is correct


def test_auto_takes_the_scorer_of_the_data_set() -> None:
    p = gym_prompt("spell_backward")
    result = make_verifier(VerifierConfig(), TEXT).grade(p.reference[:-1], p)
    assert result.evidence["scorer"] == "spell_backward"


def test_evidence_is_json() -> None:
    for kind in ("exact", "numeric", "math"):
        json.dumps(grade(kind, "12", "12").evidence)
    json.dumps(make_verifier(VerifierConfig(), NUMBER).grade("12", gym_prompt("chain_sum")).evidence)
