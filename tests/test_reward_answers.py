"""Where an answer stands, and which answers are the same vote."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from reward.answers import answer_in_rollout, answer_span, canonical_answer, find_answer, make_extractor
from reward.config import AnswerConfig
from rollouts.types import Rollout, SamplingParams
from tests.reward_fakes import NUMBER, rollout

STATED = {
    # bare numbers
    "12": "12",
    "12\n": "12",
    "  12  ": "12",
    "12.": "12",
    "+12": "12",
    "-5": "-5",
    "−5": "-5",  # the typographic minus
    "–5": "-5",
    "0": "0",
    "-0": "0",
    "-0.0": "0",
    "007": "7",
    "1234": "1234",
    "1,234": "1234",
    "1,234,567.89": "1234567.89",
    "-1,234": "-1234",
    "3.5": "3.5",
    "3.5.": "3.5",
    "3.50": "3.5",
    ".5": "0.5",
    "12.0": "12",
    "100": "100",
    "1e3": "1000",
    "1E-3": "0.001",
    "2.5e+2": "250",
    "1/2": "1/2",
    "-3/4": "-3/4",
    "$12": "12",
    "$12.50": "12.5",
    "-$12": "-12",
    "12 €": "12",
    "12%": "12",
    "12 %": "12",
    "12 apples": "12",
    "12 apples.": "12",
    "12 cm": "12",
    "12cm": "12",
    "12 m": "12",
    "12 square meters": "12",
    "12 cm^2": "12",
    "90°": "90",
    "12 km/h": "12",
    "12 people": "12",
    "1 apple": "1",
    "12 percent.": "12",
    "= 40 miles/hour": "40",
    # stated at the end
    "The answer is 12.": "12",
    "The answer is 12": "12",
    "The answer is: 12": "12",
    "The answer is **12**.": "12",
    "the answer is -5": "-5",
    "The answer is $12$.": "12",
    r"The answer is \(12\).": "12",
    r"The answer is \boxed{12}.": "12",
    r"$\boxed{-\frac{1}{2}}$": "-1/2",
    "7 + 5 = 12": "12",
    "7+5=12": "12",
    "7 - 12 = -5": "-5",
    "3 + 4 = 7 + 5 = 12": "12",
    "7 + 5 = 11. No: 7 + 5 = 12": "12",
    "x = 1/2": "1/2",
    "2^10 = 1024": "1024",
    "sqrt(2) ≈ 1.414": "1.414",
    "So we get 12 apples.": "12",
    "7 plus 5 equals 12.": "12",
    "That makes 12": "12",
    "It's 12.": "12",
    "The sum is therefore 12": "12",
    "They have a total of 12 apples.": "12",
    "Answer:\n\n12": "12",
    "A: 12": "12",
    "7 + 5 gives 12\n#### 12": "12",
    "gcd(12, 18) -> 6": "6",
    'The answer is "12".': "12",
    r"$\frac12$": "1/2",
    r"-\frac 1{12}": "-1/12",
}

NOT_STATED = [
    "",
    " \n",
    "twelve",
    "5 and 7",
    "5 or 7",
    "The answer is 5 or 7",
    "The answer is 5 because 7",
    "The answer is 12 because 7 + 5",
    "The answer is not 12",
    "The answer isn't 12",
    "The greatest common divisor of 12 and 18",
    "the divisors of 18",
    "Let me add 7 and 5",
    "12 = 7 + 5",
    "7 + 5",
    "7 - 5",
    "7 -5",
    "= 3*4",
    "3 * 4",
    "12 13",
    "12\n13",
    "12, 13",
    "12?",
    "12!",
    "12...",
    "12,",
    "1,23",
    "1,2345",
    "12,34,567",
    "1.2.3",
    "1.234,5",
    "192.168.0.1",
    "10:30",
    "2024-01-15",
    "3-5",
    "3–5",
    "x != 12",
    "x >= 12",
    "x ≠ 12",
    "12 million",
    "12 wrong",
    "5 = 12 False",
    "12 (wrong)",
    "12 maybe",
    "The answer is 12 sorry",
    "Ratio 3 : 4",
    "3 : 4",
    r"\frac123",
    "12 thousand",
    "5 M",
    "2 pi",
    "2 squared",
    "5²",
    "5^2",
    "5x",
    "x12",
    "12th",
    "0x10",
    "1_000",
    "±5",
    "--5",
    "- 5",  # a bullet, or a minus?
    "1 1/2",
    "5/0",
    "1e3000",
    "٣",  # three, but not in ASCII digits
    "１２",
    r"\boxed{3}\boxed{4}",
    "12 is",
    "nan",
    "inf",
    "The answer is 12. What is 3 + 4?",
    "9" * 1001,
]


@pytest.mark.parametrize(("text", "canonical"), STATED.items())
def test_number_is_found_where_it_is_stated(text: str, canonical: str) -> None:
    assert make_extractor(NUMBER)(rollout(text)) == canonical


@pytest.mark.parametrize("text", NOT_STATED)
def test_no_number_is_found_where_none_is_stated(text: str) -> None:
    assert make_extractor(NUMBER)(rollout(text)) is None


def test_a_truncated_completion_has_no_answer() -> None:
    for kind in ("number", "text", "choice"):
        assert make_extractor(AnswerConfig(kind=kind))(rollout("12" if kind != "choice" else "B", cut=True)) is None
    assert make_extractor(AnswerConfig(kind="boxed"))(rollout(r"\boxed{12}", cut=True)) is None


def test_stop_string_is_not_part_of_the_answer() -> None:
    stopped = rollout("12\nQ:")
    with_stop = Rollout(
        **{f: getattr(stopped, f) for f in Rollout.__slots__} | {"sampling": SamplingParams(stop=("\nQ:",))}
    )
    assert answer_in_rollout(with_stop, NUMBER) == "12"
    assert answer_in_rollout(stopped, NUMBER) is None


@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from(["{}", "{}.", "{}.0", "The answer is {}.", "7 + 5 = {}", "{:,}", "{} apples"]),
)
def test_every_integer_is_read_back_from_every_form(number: int, form: str) -> None:
    found = find_answer(form.format(number), NUMBER)
    assert found is not None
    assert canonical_answer(found, NUMBER) == str(number)


@given(st.floats(-1e9, 1e9, allow_subnormal=False))
def test_decimals_are_read_back(number: float) -> None:
    found = find_answer(repr(number), NUMBER)
    assert found is not None
    assert math.isclose(float(canonical_answer(found, NUMBER)), number, abs_tol=0)


@given(st.text(max_size=80))
def test_any_text_is_read_without_error_and_canonical_answers_are_stable(text: str) -> None:
    for kind in ("number", "text", "boxed", "tag", "choice"):
        config = AnswerConfig(kind=kind)
        found = find_answer(text, config)
        if found is not None:
            canonical = canonical_answer(found, config)
            assert canonical
            assert canonical_answer(canonical, config) == canonical


@given(
    st.lists(
        st.sampled_from(["12", " is ", "= ", "-", ".", ",", "and ", "5", "/", "%", " ", "\n", "e", "$", "*"]),
        max_size=12,
    )
)
def test_a_number_found_is_a_number_in_the_text(parts: list[str]) -> None:
    text = "".join(parts)
    found = find_answer(text, NUMBER)
    assert found is None or found.lstrip("-") in text.replace("−", "-")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}} holds", "1/2"),
        (r"\boxed{\frac{x}{y + \sqrt{2}}}", r"\frac{x}{y + \sqrt{2}}"),
        (r"\boxed{1} and \boxed{12.0}", "12"),
        (r"\boxed{X}", "X"),
        (r"\boxed{1} and \boxed{2", None),
        (r"\boxed{}", None),
        ("12", None),
    ],
)
def test_boxed(text: str, answer: str | None) -> None:
    assert make_extractor(AnswerConfig(kind="boxed"))(rollout(text)) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>12.0</answer>", "12"),
        ("<answer>1</answer> no <answer> New  York\n</answer>", "new york"),
        ("<answer>12", None),
        ("<answer> </answer>", None),
        ("<answer>1<answer>2</answer>", "2"),
        ("12", None),
    ],
)
def test_tag(text: str, answer: str | None) -> None:
    assert make_extractor(AnswerConfig(kind="tag"))(rollout(text)) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("(b).", "B"),
        ("**B**", "B"),
        ("The answer is B.", "B"),
        ("Answer: (C)", "C"),
        ("The answer is option D", "D"),
        ("B) Paris", "B"),
        ("A) Rome B) Paris", None),
        ("(A) and (B)", None),
        ("(A) or (B).", None),
        ("A) or B)", None),
        ("A) is wrong (B)", None),
        ("A) Vitamin C.", "A"),
        ("A) Rome, so (A).", "A"),
        ("B or C", None),
        ("A dog", None),
        ("I think", None),
        ("The answer is a", None),
        ("", None),
    ],
)
def test_choice(text: str, answer: str | None) -> None:
    assert make_extractor(AnswerConfig(kind="choice"))(rollout(text)) == answer


@pytest.mark.parametrize(
    ("reference", "letter"),
    [("B) Paris", "B"), ("(b)", "B"), ("B.", "B"), ("Answer: C", "C"), ("b: Paris", "B: PARIS")],
)
def test_choice_reference_may_be_written_out(reference: str, letter: str) -> None:
    assert canonical_answer(reference, AnswerConfig(kind="choice")) == letter


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [
        ("Answer: (.*)", "Answer: 12###", "12"),
        (r"Answer: (\d+)\Z", "Answer: 12###", "12"),
        ("<<(.*?)###", "<<11### <<12###", "12"),
        ("Answer: (.*)", "Answer: 12\nBecause ...", "12"),
        ("(?s)Answer: (.*)", "Answer: a\nb", "a b"),
    ],
)
def test_regex_knows_lines_and_the_stop_string(pattern: str, text: str, answer: str) -> None:
    stopped = replace(rollout(text), sampling=SamplingParams(stop=("###",)))
    assert make_extractor(AnswerConfig(kind="regex", pattern=pattern))(stopped) == answer


def test_regex_takes_group_1_of_the_last_match() -> None:
    extract = make_extractor(AnswerConfig(kind="regex", pattern=r"Result: (\S+)"))
    assert extract(rollout("Result: 7\nResult: 12.0")) == "12"
    assert extract(rollout("no result")) is None


def test_text_is_the_whole_completion_folded() -> None:
    extract = make_extractor(AnswerConfig(kind="text"))
    assert extract(rollout("  New\n YORK ")) == "new york"
    assert extract(rollout(" \n")) is None


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"kind": "regex"}, "needs a pattern"),
        ({"kind": "regex", "pattern": "("}, "no regular expression"),
        ({"kind": "regex", "pattern": "12"}, "0 capturing groups"),
        ({"kind": "number", "pattern": "(1)"}, "regex only"),
    ],
)
def test_a_useless_answer_config_is_refused(settings: dict[str, str], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        AnswerConfig(**settings)


def stands(text: str, *, stop: str = "", **settings: str) -> str | None:
    """The part of the text that the span covers, with a bar at either end in the whole text."""
    completion = replace(rollout(text), sampling=SamplingParams(stop=(stop,) if stop else ()))
    span = answer_span(completion, AnswerConfig(**settings))
    return None if span is None else f"{text[: span[0]]}|{text[slice(*span)]}|{text[span[1] :]}"


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("12", "|12|"),
        (" 12.\n", " |12|.\n"),
        ("5 + 7 = 12. The answer is 12", "5 + 7 = 12. The answer is |12|"),
        ("12 + 0 = 12", "12 + 0 = |12|"),
        ("112 is not it. It is 12", "112 is not it. It is |12|"),
        ("It is -3.5.", "It is |-3.5|."),
        ("It is 1,000 or so = 1,000", "It is 1,000 or so = |1,000|"),
        ("4 - 8 = −4", "4 - 8 = |−4|"),
        ("= +5", "= |+5|"),
        ("It is -$12.50", "It is |-$12.50|"),
        ("It is $-12", "It is $|-12|"),
        ("It costs \\$12 and is \\$12", "It costs \\$12 and is \\$|12|"),
        ("Answer: **2** cm^2", "Answer: **|2|** cm^2"),
        ("1 = 3 m3", "1 = |3| m3"),
        ("the area is 12 cm^2.", "the area is |12| cm^2."),
        ("1/2 = 2/4 = 1/2", "1/2 = 2/4 = |1/2|"),
        (r"1/2 is \frac{1}{2}", r"1/2 is |\frac{1}{2}|"),
        (r"\frac{1}{2} is 1/2", r"\frac{1}{2} is |1/2|"),
        (r"$x = -\dfrac 1{12}$.", r"$x = |-\dfrac 1{12}|$."),
        (r"So \frac12 = \boxed{\frac12}", r"So \frac12 = \boxed{|\frac12|}"),
        (r"= \frac{1}{2} cm^2", r"= |\frac{1}{2}| cm^2"),
        ("1e3 = 1e3 %", "1e3 = |1e3| %"),
        ("5 and 7", None),
    ],
)
def test_span_of_a_number(text: str, marked: str | None) -> None:
    assert stands(text, kind="number") == marked


@pytest.mark.parametrize(
    ("settings", "text", "marked"),
    [
        (
            {"kind": "boxed"},
            r"\boxed{1} is \boxed{ \frac{1}{2} }, not 1/2",
            r"\boxed{1} is \boxed{ |\frac{1}{2}| }, not 1/2",
        ),
        ({"kind": "tag"}, "Rome <answer>\nRome\n</answer> Rome", "Rome <answer>\n|Rome|\n</answer> Rome"),
        ({"kind": "regex", "pattern": "A: (.*)"}, "A: 7\nA: 7 \n", "A: 7\nA: |7| \n"),
        ({"kind": "regex", "pattern": "A: (.*)", "stop": "###"}, "A: 7 ###", "A: |7| ###"),
        ({"kind": "regex", "pattern": r"A: (\d+)\Z", "stop": "###"}, "A: 7###", "A: |7|###"),
        ({"kind": "regex", "pattern": "A: (.*)", "stop": "###"}, "A: ###", None),
        ({"kind": "regex", "pattern": "A: (7)?"}, "A: 7 A: 8", None),
        ({"kind": "text"}, "  New\n York ", "  |New\n York| "),
        ({"kind": "text", "stop": "York"}, "New York", "|New| York"),
        ({"kind": "text"}, " ", None),
        ({"kind": "choice"}, "(b).", "(|b|)."),
        ({"kind": "choice"}, "B is the label. The answer is  **B**", "B is the label. The answer is  **|B|**"),
        ({"kind": "choice"}, "\n`B)`  A Better Bet", "\n`|B|)`  A Better Bet"),
        ({"kind": "choice"}, "A dog", None),
    ],
)
def test_span_of_other_answers(settings: dict[str, str], text: str, marked: str | None) -> None:
    assert stands(text, **settings) == marked


def test_a_truncated_completion_has_no_span() -> None:
    assert answer_span(rollout("12", cut=True), NUMBER) is None


@pytest.mark.parametrize("text", STATED)
def test_the_number_in_the_span_is_the_answer(text: str) -> None:
    _check_span(text, NUMBER)


PIECES = [
    *("12", "2", "3.5", "1,000", ".5", "1/2", "1e3", r"\frac{1}{2}", r"-\frac12", "-", "−", "+"),
    *("$", r"\$", "€", "%", ".", "\n", "  ", "*", "**", "`", r"\boxed{", "}", "İ", "\u2003", "### "),
    *(" is ", "= ", ": ", "The answer is ", " cm^2", " m3", " apples", "B", "(B)", "B) ", "<answer>", "</answer>"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=9))
def test_the_span_says_what_the_answer_says(parts: list[str]) -> None:
    for kind in ("number", "text", "boxed", "tag", "choice"):
        _check_span("".join(parts), AnswerConfig(kind=kind))
    _check_span("".join(parts), AnswerConfig(kind="regex", pattern="is (.*)"))


@given(
    st.one_of(st.integers(-(10**9), 10**9), st.floats(-1e6, 1e6, allow_subnormal=False)),
    st.sampled_from(["{}", "-{}", "{:,}", "{} cm^2", "{0} is {0}", "2 + {0} = {0} apples.", "**{}**", "So $x = {}$."]),
)
def test_the_span_of_a_number_is_the_last_place_where_it_stands(number: float, form: str) -> None:
    text = form.format(number)
    _check_span(text, NUMBER)
    span = answer_span(rollout(text), NUMBER)
    if span is not None:
        assert not any(character.isdigit() for character in text[span[1] :].removesuffix("^2"))


def _check_span(text: str, config: AnswerConfig) -> None:
    """There is a span exactly where there is an answer, and what stands in it is that answer."""
    completion = replace(rollout(text), sampling=SamplingParams(stop=("### ",)))
    span, answer = answer_span(completion, config), make_extractor(config)(completion)
    assert (span is None) == (answer is None)
    if span is not None:
        start, end = span
        assert 0 <= start < end <= len(text)
        assert text[start:end] == text[start:end].strip()
        assert canonical_answer(text[start:end], config) == answer


def test_a_pattern_that_takes_forever_finds_no_answer() -> None:
    hostile = rollout("a" * 40 + "!")
    assert make_extractor(AnswerConfig(kind="regex", pattern="((?:a+)+)$"))(hostile) is None
