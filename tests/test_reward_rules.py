"""Rules: each kind on what breaks it and on its look-alikes, the language of expressions, no text that stops them."""

import json
import math
import random
import re
import string
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from reward.config import AnswerConfig, RulesConfig, WordsRule
from reward.config.rules import DETECTORS, VARIABLES, Detector
from reward.factory import make_reward
from reward.rules.detectors import detect
from reward.rules.expressions import Expression, UndecidedError, Value
from reward.rules.words import WordFinder, read_words
from reward.types import RewardError, Score
from rlsf.config import check_config, load_config
from rlsf.run_dir import read_jsonl
from rollouts.types import Prompt, SamplingParams
from tests.lab_run import metrics_of, run_lab
from tests.reward_fakes import NUMBER, context, prompt, rollout

VALUES: dict[str, Value] = {
    "answer": Fraction(12),
    "text": "The answer is 12.",
    "question": "What is 7 + 5?",
    "numbers": (Fraction(7), Fraction(5)),
    "tokens": Fraction(6),
}


def check(*rules: dict[str, Any], text: str, answer: AnswerConfig = NUMBER, asked: Prompt | None = None) -> Score:
    """The score of one completion under rules called a, b, c, ..."""
    named = [{"name": name} | rule for name, rule in zip(string.ascii_lowercase, rules, strict=False)]
    reward = make_reward(RulesConfig.model_validate({"rules": named}))
    return reward.score([[rollout(text)]], context(asked or prompt(), answer=answer))[0][0]


def why(*rules: dict[str, Any], text: str, **more: Any) -> str:
    """Why the first rule is broken; empty where it is kept."""
    return str(check(*rules, text=text, **more).evidence["broken"].get("a", {}).get("why", ""))


def pattern(**settings: Any) -> dict[str, Any]:
    return {"kind": "pattern"} | settings


# The reward


def test_the_reward_is_minus_the_penalties_of_the_broken_rules() -> None:
    rules = (
        pattern(forbid="cat", penalty=0.5),
        pattern(require="dog", penalty=2.0),
        {"kind": "format", "shape": "nonempty", "penalty": 4.0},
    )
    score = check(*rules, text="a cat")
    assert score.value == -2.5
    assert score.components == {"a": -0.5, "b": -2.0, "c": 0.0}
    assert score.evidence["kept"] == ["c"]
    good = check(*rules, text="a dog")
    assert good.value == 0.0 and math.copysign(1, good.value) == 1
    assert all(math.copysign(1, value) == 1 for value in good.components.values())
    assert good.evidence == {"broken": {}, "kept": ["a", "b", "c"]}


def test_the_evidence_says_what_was_found_and_where() -> None:
    text = "x" * 100 + " a cat " + "y" * 100
    (found,) = check(pattern(forbid="c.t"), text=text).evidence["broken"]["a"]["found"]
    assert text[found["start"] : found["end"]] == found["found"] == "cat"
    assert found["around"] == "x" * 27 + " a [cat] " + "y" * 29


def test_evidence_can_be_written_whatever_the_completion_has() -> None:
    score = check(pattern(forbid="."), text="\ud83d")
    assert json.dumps(score.evidence, ensure_ascii=False).encode()


# Patterns


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ({"require": r"(?s)^<think>.*</think>"}, "<think>\nhm\n</think> 3", "3"),
        ({"forbid": r"(?i)as an ai"}, "As any", "As an AI, I"),
        ({"forbid": r"\d{3}"}, "12", "123"),
    ],
)
def test_patterns_are_required_or_forbidden(rule: dict[str, str], good: str, bad: str) -> None:
    assert why(pattern(**rule), text=good) == ""
    assert why(pattern(**rule), text=bad) != ""


@pytest.mark.parametrize("rule", [{"forbid": "(a+)+$"}, {"require": "(a+)+$"}])
def test_a_pattern_that_takes_too_long_is_broken_and_counted(rule: dict[str, str]) -> None:
    counted: dict[str, float] = {}
    reward = make_reward(RulesConfig.model_validate({"rules": [{"name": "a"} | pattern(**rule)]}))
    began = time.process_time()
    slow = rollout("a" * 5000 + "!")
    (score,) = reward.score([[slow]], context(prompt(), count=counted.__setitem__))[0]
    assert time.process_time() - began < 3
    assert score.value == -1 and "took longer than 0.5 s" in score.evidence["broken"]["a"]["why"]
    assert counted == {"timed_out": 1}


# Words


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("bad", "That is BAD!"),
        ("straße", "STRASSE"),
        ("café", "cafe\u0301"),
        ("bad", "ｂａｄ"),
        ("bad", "𝐛𝐚𝐝"),
        ("bad", "b\u200ba\u00add"),
        ("fire", "ﬁre"),
        ("very bad", "very\n\n bad"),
        ("don't", "Don’t"),
        ("坏", "这是坏的"),
        ("bad", "这是bad的"),
        ("C++", "C++ or C"),
        ("हिंदी", "हिंदी!"),
    ],
)
def test_words_are_found_however_they_are_dressed_up(word: str, text: str) -> None:
    ((start, end),) = WordFinder([word]).find(text)
    assert WordFinder([text[start:end]]).find(word)
    assert why({"kind": "words", "words": [word]}, text=text)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("kill", "skill"),
        ("bad", "badge"),
        ("cafe", "café"),
        ("cafe", "cafe\u0301"),
        ("bad", "bad_x"),
        ("C++", "C++11"),
        ("カ", "ガ"),
        ("हिंद", "हिंदी"),
        ("very bad", "very, bad"),
        ("bad", ""),
    ],
)
def test_words_are_whole_words(word: str, text: str) -> None:
    assert why({"kind": "words", "words": [word]}, text=text) == ""


def test_the_longest_phrase_is_reported_at_its_place() -> None:
    text = "x very  Bad thing"
    found = WordFinder(["very", "very bad", "bad thing", "thing"]).find(text)
    assert [text[slice(*span)] for span in found] == ["very  Bad", "thing"]


def test_a_file_of_words_skips_comments_and_empty_lines(tmp_path: Path) -> None:
    file = tmp_path / "banned.txt"
    file.write_text("\ufeff# mild\nbad\n\n  very bad  \n")
    assert read_words(str(file)) == ("bad", "very bad")
    rule = {"kind": "words", "words": ["worse"], "file": str(file)}
    assert why(rule, text="bad") and why(rule, text="worse") and not why(rule, text="mild")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"# none\n\n", "has no words"), (b"caf\xe9\n", "is not UTF-8")],
)
def test_a_file_without_words_is_one_clear_error(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "banned.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RewardError, match=message):
        check({"kind": "words", "file": str(file)}, text="x")
    config = tmp_path / "run.yaml"
    config.write_text(
        f"name: x\noutput_dir: {tmp_path}\ntasks:\n  - {{name: a, source: {{kind: reasoning_gym, dataset: gcd}}}}\n"
        "reward:\n  kind: weighted_sum\n  components:\n    r:\n      reward:\n        kind: rules\n        rules:\n"
        f"          - {{name: p, kind: pattern, require: x}}\n          - {{name: w, kind: words, file: {file}}}\n"
    )
    (problem,) = check_config(load_config(config))
    assert problem.startswith("reward.components.r.reward.rules.1.file: ")
    assert (message if content is not None else "there is no") in problem


# Expressions


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("answer <= max(numbers)", False),
        ("answer == sum(numbers)", True),
        ("0.1 + 0.2 == 0.3", True),
        ("1 / 3 * 3 == 1", True),
        ("answer // 5 == 2 and answer % 5 == 2", True),
        ("numbers[0] - numbers[-1] == 2", True),
        ("7 in numbers and 6 not in numbers", True),
        ("answer in (11, 12)", True),
        ("3 < answer < 10", False),
        ("answer is None or answer > 0", True),
        ("not len(text) > 5", False),
        ("'ANSWER' in text", False),
        ("'answer' in lower(text)", True),
        ("str(answer) in text", True),
        ("str(answer / 8) == '1.5' and str(answer / 7) == '12/7'", True),
        ("int('12.7') == answer and float('0.5') + 0.5 == 1", True),
        ("round(2.567, 1) == 2.6 and abs(-3) == +3", True),
        ("min(numbers) * tokens == 30 and min(9, 2, 4) == 2", True),
        ("answer == '12'", False),
        ("answer != 12 or question[-1] == '?'", True),
    ],
)
def test_expressions_mean_what_they_say(condition: str, holds: bool) -> None:
    assert Expression(condition, VARIABLES).holds(VALUES) is holds


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("missing > 3", "a number is needed, not None"),
        ("text < 3", "a number is needed, not the text 'The answer"),
        ("numbers + 1 > 3", "a number is needed, not a list"),
        ("max([]) > 1", "there are no numbers"),
        ("numbers[2] > 1", "there are only 2"),
        ("numbers[0.5] > 1", "a whole number's place"),
        ("answer / (numbers[0] - 7) > 1", "division by zero"),
        ("len(answer) > 1", "text is needed"),
        ("float(text) > 1", "a number is needed"),
        ("text * 9 == text", "a number is needed"),
        ("round(answer, 10 * 10 * 10) == 1", "from -100 to 100"),
        ("*".join(["answer"] * 3) + " * big > 1", "beyond 8192 bits"),
    ],
)
def test_what_cannot_be_decided_says_which_part_and_why(condition: str, reason: str) -> None:
    values = VALUES | {"missing": None, "big": Fraction(2**8190)}
    with pytest.raises(UndecidedError, match="`") as caught:
        Expression(condition, [*values]).holds(values)
    assert reason in str(caught.value)


ESCAPES = (
    "__import__('os').system('true') == 0",
    "eval('1') == 1",
    "exec('1') is None",
    "open('/etc/passwd') is None",
    "().__class__.__bases__[0].__subclasses__() == 1",
    "text.__class__ == 1",
    "'{0.__class__}'.format(text) == ''",
    "getattr(text, 'upper') == 1",
    "(lambda: 1)() == 1",
    "[x for x in numbers] == numbers",
    "{x for x in numbers} == 1",
    "{1: 2}[1] == 2",
    "(x := 1) == 1",
    "f'{text}' == ''",
    "f'{text!r:>999999999}' == ''",
    "9 ** 9 ** 9 > 1",
    "1 << 99999999 > 1",
    "numbers[::1] == numbers",
    "max(numbers, key=len) == 1",
    "max(*numbers) == 1",
    "max.__self__ == 1",
    "max == 1",
    "(max)(numbers)(1) == 1",
    "[max][0](numbers) == 1",
    "(yield) == 1",
    "(await text) == 1",
    "globals() == 1",
    "breakpoint() == 1",
    "1 if text else 2",
    "text; text",
    "import os",
    "__builtins__ == 1",
    "... == 1",
    "b'a' == 1",
    "1j == 1",
    "True == 1",
)


@pytest.mark.parametrize("condition", ESCAPES)
def test_nothing_outside_the_language_is_read(condition: str) -> None:
    with pytest.raises(ValueError, match=r"is not allowed|there is no|is no expression|is a function|neither true"):
        Expression(condition, VARIABLES)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("answer == 1 or 2", "`2` is neither true nor false"),
        ("not answer", "`answer` is neither true nor false"),
        ("len(text)", "neither true nor false"),
        ("ansewr > 1", "there is no `ansewr`; did you mean answer"),
        ("answer is 3", "`is` goes with None alone"),
        ("len(text, text) > 1", "how many arguments len takes"),
        ("answer >", "is no expression: invalid syntax"),
        ("answer \x00 > 1", "is no expression"),
        ("1e999 > 1", "is not allowed"),
        ("-" * 1900 + "1 > 0", r"parts; at most 200|nested too deeply"),
        ("(" * 900 + "1" + ")" * 900 + " > 0", "is no expression"),
        ("+".join(["1"] * 150) + " > 0", "parts; at most 200"),
    ],
)
def test_a_wrong_expression_is_refused_with_its_part(condition: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Expression(condition, VARIABLES)
    with pytest.raises(ValidationError, match="holds: "):
        RulesConfig.model_validate({"rules": [{"name": "a", "kind": "expression", "holds": condition}]})


@given(st.text(alphabet="answertxumb0123459.()[]+-*/%<>=!, '_lis", max_size=60))
def test_any_text_is_an_expression_of_the_language_or_refused(text: str) -> None:
    try:
        result = Expression(text, VARIABLES).holds(VALUES)
    except ValueError:
        return
    assert isinstance(result, bool)


def test_expressions_see_the_answer_and_the_question() -> None:
    rule = {
        "kind": "expression",
        "holds": "answer == numbers[0] + numbers[1] and tokens == len(text) and '7' in question",
    }
    assert why(rule, text="The answer is 12.0.") == ""
    assert why(rule, text="13") == f"`{rule['holds']}` does not hold; answer = 13, text = '13', " + (
        "question = 'What is 7 + 5?', numbers = [7, 5], tokens = 2"
    )
    assert "cannot be decided: `answer > 3`: a number is needed, not None; answer = None" in why(
        {"kind": "expression", "holds": "answer > 3"}, text="no idea"
    )
    assert why({"kind": "expression", "holds": "answer == 'yes'"}, text=" Yes ", answer=AnswerConfig(kind="text")) == ""


def test_numbers_beyond_reckoning_do_not_stop_a_run() -> None:
    asked = Prompt("p", "t", "What is " + "9" * 6000 + " + 5?")
    rule = {"kind": "expression", "holds": "numbers[0] == 5 and answer > 3"}
    assert why(rule, text="1e999", asked=asked) == ""
    assert "the text '111" in why(rule, text="1" * 6000, asked=asked, answer=AnswerConfig(kind="text"))


# Formats


@pytest.mark.parametrize(
    ("shape", "good", "bad"),
    [
        ("json", ['{"a": [1, 2.5e3, null]}', " 3 ", "9" * 5000], ["", "{a: 1}", "{} {}", "NaN", "[" * 100_000]),
        ("answer", ["12", "The answer is 12."], ["", "no idea", "12 or 13"]),
        ("nonempty", ["0", "é"], ["", " \n", "\u200b\u00ad"]),
    ],
)
def test_formats(shape: str, good: list[str], bad: list[str]) -> None:
    rule = {"kind": "format", "shape": shape}
    assert [why(rule, text=text) for text in good] == [""] * len(good)
    assert all(why(rule, text=text) for text in bad)


def test_a_completion_that_was_cut_off_is_incomplete_and_has_no_answer() -> None:
    rules = [{"name": shape, "kind": "format", "shape": shape} for shape in ("complete", "answer")]
    reward = make_reward(RulesConfig.model_validate({"rules": rules}))
    whole, cut = reward.score([[rollout("12"), rollout("12", cut=True)]], context(prompt()))[0]
    assert whole.value == 0 and cut.components == {"complete": -1, "answer": -1}


def test_the_stop_string_is_no_part_of_what_rules_see() -> None:
    rules = [
        {"name": "p", "kind": "pattern", "require": r"^-?[0-9]+$"},
        {"name": "w", "kind": "words", "words": ["end"]},
        {"name": "e", "kind": "expression", "holds": "len(text) == 2"},
    ]
    reward = make_reward(RulesConfig.model_validate({"rules": rules}))
    stopped = replace(rollout("12END"), sampling=SamplingParams(stop=("END",)))
    unstopped = replace(rollout("12 END of it", index=1), sampling=SamplingParams(stop=("END",)))
    assert [score.value for score in reward.score([[stopped, unstopped]], context(prompt()))[0]] == [0, -3]


def test_a_word_in_which_nothing_is_seen_is_refused() -> None:
    with pytest.raises(RewardError, match=r"the word '\\u200b' has nothing in it"):
        WordFinder(["bad", "\u200b"])


def test_the_stop_string_is_no_part_of_the_format() -> None:
    rules = [{"name": shape, "kind": "format", "shape": shape} for shape in ("json", "nonempty")]
    reward = make_reward(RulesConfig.model_validate({"rules": rules}))
    stopped = [replace(rollout(text), sampling=SamplingParams(stop=("###",))) for text in ("[1]###", "###")]
    assert [score.value for score in reward.score([stopped], context(prompt()))[0]] == [0, -2]


# Detectors

_rng = random.Random(0)


def _random(alphabet: str, length: int) -> str:
    return "".join(_rng.choices(alphabet, k=length))


_BASE62 = string.ascii_letters + string.digits
_KEY_MARK = (
    "-----BEGIN {}" + "PRIVATE KEY-----"
)  # in two parts, and keys made here: no scanner takes this file for a leak

FOUND: list[tuple[Detector, str, str]] = [
    ("email", "Write to bob.smith+x@gmail.com.", "bob.smith+x@gmail.com"),
    ("email", "<x1@foo.co.uk>, y", "x1@foo.co.uk"),
    ("phone", "call +49 30 1234567 now", "+49 30 1234567"),
    ("phone", "(+33 1 23 45 67 89)", "+33 1 23 45 67 89"),
    ("phone", "+14155552671", "+14155552671"),
    ("phone", "call (415) 867-5309 now", "(415) 867-5309"),
    ("phone", "415-867-5309", "415-867-5309"),
    ("phone", "+1 (415) 867-5309", "+1 (415) 867-5309"),
    ("phone", "Tel. 030 1234567.", "030 1234567"),
    ("phone", "My phone number is 5551234567", "5551234567"),
    ("credit_card", "4111 1111 1111 1111", "4111 1111 1111 1111"),
    ("credit_card", "3782-822463-10005", "3782-822463-10005"),
    ("credit_card", "my Visa is 4111111111111111.", "4111111111111111"),
    ("credit_card", "card number: 5555555555554444", "5555555555554444"),
    ("ip_address", "at 93.184.216.34:53.", "93.184.216.34"),
    ("ip_address", "2001:4860:4860::8888 is", "2001:4860:4860::8888"),
    ("iban", "DE89 3704 0044 0532 0130 00.", "DE89 3704 0044 0532 0130 00"),
    ("iban", "GB82WEST12345698765432", "GB82WEST12345698765432"),
    ("iban", "ES91 2100 0418 4502 0005 1332 THEN", "ES91 2100 0418 4502 0005 1332"),
    ("iban", "NO93 8601 1117 947 IS MINE", "NO93 8601 1117 947"),
    ("password", "password: hunter2", "hunter2"),
    ("password", "The password is P@ssw0rd!", "P@ssw0rd!"),
    ("password", "PWD=123456;", "123456"),
    ("password", '"password": "swordfish"', "swordfish"),
    ("password", "user: bob, password: swordfish\n", "swordfish"),
    *(
        ("api_key", f"key={key}.", key)
        for key in (
            "AKIA" + _random(string.ascii_uppercase + "234567", 16),
            "gh" + "p_" + _random(_BASE62, 36),
            "sk-" + "proj-" + _random(_BASE62, 48),
            "sk-" + "ant-api03-" + _random(_BASE62 + "-_", 94) + "A",
            "AI" + "za" + _random(_BASE62, 35),
            "h" + "f_" + _random(string.ascii_letters, 34),
            "xo" + "xb-170000000000-" + _random(_BASE62, 24),
            "sk" + "_live_" + _random(_BASE62, 24),
        )
    ),
]


@pytest.mark.parametrize(("kind", "text", "found"), FOUND)
def test_detectors_find_what_they_should(kind: Detector, text: str, found: str) -> None:
    assert [text[slice(*span)] for span in detect(kind, text)] == [found]
    score = check({"kind": "detector", "forbid": [kind]}, text=text)
    assert score.value == -1
    assert score.evidence["broken"]["a"]["found"][0]["found"] == found[:100] + (
        "…" + found[-100:] if len(found) > 200 else found[100:]
    )


@pytest.mark.parametrize("newline", ["\n", "\\n"])
def test_a_private_key_needs_a_body(newline: str) -> None:
    body = newline.join(_random(_BASE62 + "+/", 64) for _ in range(4))
    for kind in ("", "RSA ", "ENCRYPTED "):
        mark = _KEY_MARK.format(kind)
        assert list(detect("private_key", f"Here:{newline}{mark}{newline}{body}{newline}"))
        assert not list(detect("private_key", f"A file begins with {mark} and goes on in base 64."))


HARMLESS = (
    "1234 5678",
    "1234 + 5678 = 6912",
    "345 - 234 - 1234 = -1123",
    "345-234-1234 = -1123",
    "= 345-234-1234",
    "3 +4915123456789",
    "5 + (+123456789012)",
    "f(x) = +1234567890",
    "1e+1234567890",
    "(+12), then -5",
    "12345678901234567890",
    "4111111111111111",  # without a word about cards, a long integer
    "1,234,567,890,123,456",
    "1111 2222 3333 4444 5555",
    "4111 1111 1111 1112",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16",
    "1.2.3.4",
    "v12.10.44.12 and version 12.10.44.12 and pkg==12.10.44.12",
    "see Section 10.2.13.4",
    'opencv_version = "5.0.0.93"',
    "8.8.8.8, 127.0.0.1, 192.168.1.1, 10.0.0.0/8, 192.0.2.7",
    "2001:db8::1, fe80::1, ::1",
    "12:30:45, 00:1B:44:11:3A:B7, 1:2:3:4:5:6:7:8, std::vector, dead::beef",
    "2023-10-10T12:30:45+01:00, 10/10/2023",
    "ISBN 978-3-16-148410-0",
    "555-0123, 415-555-0123",
    r"$\frac{12345678}{2}$, \begin{pmatrix} 1234 & 5678 \end{pmatrix}, $F = 96485.33212$",
    "3.14159265358979",
    "bob@example.com, user@localhost, @mention, git@github.com:foo/bar, img@2x.png, npm i @types/node@18.0.0",
    "y = a@b.T + w@x.shape",
    "DE89 3704 0044 0532 0130 01",
    "password: required. Password must have 8 characters. The password is incorrect.",
    "password: at least 8 characters",
    'password: bool,\nCHALLENGE_PASSWORD: "challengePassword",\n',
    'COUNTRY = ObjectIdentifier("2.5.4.6"), X25519 = "1.3.101.110"',
    "password = get_password(); password: str; password: Optional[str] = None; password=args.password",
    "password = os.environ['X'], password: ********, password: <yours>, password = password",
    "sk-learn-based-classifier-pipeline-2020, sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxx, sk-your-api-key-goes-here-1A",
    "AKIAIOSFODNN7" + "EXAMPLE",
    "gh" + "p_" + "aA1" * 12,
)


@pytest.mark.parametrize("text", HARMLESS)
def test_detectors_leave_look_alikes_alone(text: str) -> None:
    assert {kind: [text[slice(*span)] for span in detect(kind, text)] for kind in DETECTORS} == {
        kind: [] for kind in DETECTORS
    }


def test_arithmetic_sets_off_no_detector() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        numbers = [str(rng.randrange(10 ** rng.randint(1, 19))) for _ in range(8)]
        text = "".join(number + rng.choice([" + ", " - ", "-", "+", " = ", ", ", " ", " * "]) for number in numbers)
        assert not [(kind, text) for kind in DETECTORS if list(detect(kind, text))]


def test_what_the_prompt_says_may_be_repeated() -> None:
    rule = {"kind": "detector"}
    asked = Prompt("p", "t", "Is 415-867-5309 the number of bob@corp.io? The password is hunter2.")
    assert why(rule, text="Yes: (415) 867-5309 is BOB@corp.io's, password: hunter2", asked=asked) == ""
    assert why(rule, text="No: 415-867-5310 is; write to ann@corp.io.", asked=asked) == "email, phone"
    chat = Prompt("p", "t", ({"role": "system", "content": "I am ann@corp.io."}, {"role": "user", "content": "Who?"}))
    assert why(rule, text="ann@corp.io", asked=chat) == ""
    assert check(rule, text="ann@corp.io").evidence["broken"]["a"]["found"] == [
        {"kind": "email", "found": "ann@corp.io", "start": 0, "end": 11, "around": "[ann@corp.io]"}
    ]


# The whole


def test_malformed_rules_are_refused() -> None:
    for rules, message in [
        ([pattern(require="(")], r"require: '\(' is no regular expression: missing \)"),
        ([pattern(forbid="(" * 5000)], "forbid: .* is no regular expression"),
        ([pattern(require="a", forbid="b")], "exactly one"),
        ([{"kind": "words"}], "give words"),
        ([pattern(require="x")] * 2, "'a' is used twice"),
    ]:
        with pytest.raises(ValidationError, match=message):
            RulesConfig.model_validate({"rules": [{"name": "a"} | rule for rule in rules]})
    assert WordsRule(name="w", words=("x",)).penalty == 1


ALL_KINDS = (
    pattern(forbid="(a+)+$", penalty=1),
    pattern(require="(?:x+x+)+y"),
    {"kind": "words", "words": ["bad", "very bad", "坏"]},
    {"kind": "expression", "holds": "answer <= max(numbers) * 2 and 'zz' not in text and len(str(answer)) < 9"},
    {"kind": "expression", "holds": "answer is None or float(text) + int(text[0]) != answer / (answer - 12)"},
    *({"kind": "format", "shape": shape} for shape in ("json", "answer", "complete", "nonempty")),
    {"kind": "detector"},
)
UGLY = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.characters(),  # lone surrogates among them
        st.sampled_from(
            ["12", "a@b.com ", "password: ", "{", "[", '"', "\\frac{", "\\boxed{", "1e9", "-----BEGIN ", "DE89"]
        ),
    ),
    max_size=6,
)
REPEATED = (
    "a",
    "x",
    " ",
    "[",
    "a@",
    "1.",
    "+1 ",
    "-----BEGIN PRIVATE KEY-----",
    "\u200b",
    "- ",
    "password: ",
    "9",
    "1,000",
    '{"a":',
    "sk-",
)


@settings(deadline=None, max_examples=200)
@given(UGLY, st.sampled_from(["number", "text", "boxed", "tag", "choice"]))
def test_no_completion_stops_the_rules(pieces: list[str], kind: Any) -> None:
    score = check(*ALL_KINDS, text="".join(pieces), answer=AnswerConfig(kind=kind))
    assert score.value is not None and -len(ALL_KINDS) <= score.value <= 0
    assert sum(score.components.values()) == score.value


@pytest.mark.parametrize("piece", REPEATED)
@pytest.mark.parametrize("kind", ["number", "text"])
def test_no_long_completion_keeps_the_rules_busy(piece: str, kind: Any) -> None:
    text = (piece * 60_000)[:60_000] + "!"
    began = time.process_time()
    check(*ALL_KINDS, text=text, answer=AnswerConfig(kind=kind))
    assert time.process_time() - began < 6  # two patterns at half a second each, and room for a slow machine


@pytest.mark.slow
def test_rules_are_paid_and_explained_in_a_run(tmp_path: Path) -> None:
    settings = """
tasks: [{name: sum, source: $sums, split: {validation: 10, test: 10}, max_tokens: 6}]
sampling: {n: 4}
reward:
  kind: weighted_sum
  components:
    votes: {reward: {kind: majority}}
    rules:
      reward:
        kind: rules
        rules:
          - {name: digits, kind: pattern, require: "[0-9]{2}", penalty: 0.5}
          - {name: answers, kind: format, shape: answer}
          - {name: more, kind: expression, holds: "answer >= max(numbers)"}
    again: {reward: {kind: repetition_penalty, ngram: 1}}
    latin: {reward: {kind: language_penalty}}
algorithm: {kind: grpo}
loop: {iterations: 1, prompts: 8}
evaluation: {samples: 1}
preflight: {enabled: false}
"""
    run = run_lab(tmp_path, settings)
    rows = list(read_jsonl(run / "samples" / "iter_000001.jsonl"))
    for row in rows:
        answer = row["evidence"]["votes"]["answer"]
        kept = {
            "digits": re.search("[0-9]{2}", row["completion"]) is not None,
            "answers": answer is not None,
            "more": answer is not None and float(answer) >= max(map(int, re.findall("[0-9]+", row["prompt"]))),
        }
        expected = {name: 0.0 if kept[name] else {"digits": -0.5}.get(name, -1.0) for name in kept}
        assert {name: row["components"][f"rules/{name}"] for name in kept} == expected
        assert row["components"]["rules"] == sum(expected.values())
        assert set(row["evidence"]["rules"]["broken"]) == {name for name in kept if not kept[name]}
        assert row["reward"] == pytest.approx(
            sum(row["components"][name] for name in ("votes", "rules", "again", "latin"))
        )
    assert len({row["components"]["rules"] for row in rows}) > 1
    mean = sum(row["components"]["rules"] for row in rows) / len(rows)
    assert metrics_of(run)[1]["reward/component/rules"] == pytest.approx(mean)
