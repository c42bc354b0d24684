"""Repetition and foreign scripts, against independent counts and the public code."""

import math
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from reward.config import LanguagePenaltyConfig, RepetitionPenaltyConfig
from reward.factory import make_reward
from reward.types import Score
from rollouts.types import Prompt
from tests.reward_fakes import context, prompt, rollout


def repetition(text: str = "", *, ids: Any = None, **settings: Any) -> Score:
    reward = make_reward(RepetitionPenaltyConfig(**settings))
    return reward.score([[rollout(text, ids=ids)]], context(prompt()))[0][0]


def language(text: str, *, asked: str = "What?", **settings: Any) -> Score:
    reward = make_reward(LanguagePenaltyConfig(**settings))
    return reward.score([[rollout(text)]], context(Prompt("p", "t", asked)))[0][0]


def published_repetition(text: str, n: int) -> float:
    """The authors' `get_repetition_penalty` with max_penalty −1: 1 − |set of n-grams| / their number."""
    words = text.lower().split()
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return -(1 - len(set(ngrams)) / len(ngrams)) if ngrams else 0.0


def test_repetition_worked_example() -> None:
    # 3-grams of 1 2 3 1 2 3 1: 123 231 312 123 231, of which two occurred before
    score = repetition(ids=[1, 2, 3, 1, 2, 3, 1])
    assert score.value == pytest.approx(-2 / 5)
    assert score.evidence == {
        "ngrams": 5,
        "repeated": 2,
        "share": 0.4,
        "most_repeated": {"tokens": [1, 2, 3], "times": 2},
    }


@given(st.text(alphabet="ab cA\n", max_size=40), st.integers(1, 4))
def test_repetition_of_words_is_the_authors(text: str, n: int) -> None:
    assert repetition(text, unit="words", ngram=n).value == pytest.approx(published_repetition(text, n))


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(1, 4), st.floats(0, 0.99))
def test_the_free_share_costs_nothing_and_the_rest_is_stretched_to_one(ids: list[int], n: int, free: float) -> None:
    share = -(repetition(ids=ids, ngram=n).value or 0.0)
    value = repetition(ids=ids, ngram=n, free_share=free).value
    assert value == pytest.approx(0.0 if share <= free else -(share - free) / (1 - free))
    assert value is not None and -1 <= value <= 0 and (value < 0 or math.copysign(1, value) == 1)


@pytest.mark.parametrize("ids", [[], [1], [1, 1], [1, 1, 1]])
def test_no_more_units_than_an_ngram_has_repeat_nothing(ids: list[int]) -> None:
    score = repetition(ids=ids, ngram=3)
    assert score.value == 0 and "most_repeated" not in score.evidence
    assert repetition(ids=[1, 1, 1, 1], ngram=3).value == -0.5


def test_a_loop_costs_almost_everything() -> None:
    assert repetition("so " * 1000, unit="words").value == pytest.approx(-997 / 998)
    assert repetition("So so", unit="words", ngram=1).value == -0.5


def test_language_worked_example() -> None:
    score = language("ab, кот 12!")  # 2 Latin and 3 Cyrillic letters
    assert score.value == pytest.approx(-3 / 5)
    assert score.evidence["letters"] == {"CYRILLIC": 3, "LATIN": 2}
    assert score.evidence["first_unwanted"] == {"found": "к", "start": 4, "end": 5, "around": "ab, [к]от 12!"}
    assert language("ab, кот", scripts=("latin", "Cyrillic")).value == 0
    assert language("ab, кот", scripts=("CYRILLIC",)).value == pytest.approx(-2 / 5)


@pytest.mark.parametrize("text", ["", "12 + 3 = 15", "naïve Straße", "𝑥 = ｘ²ʰ", "𝐚𝐛"])
def test_what_has_no_foreign_letter_costs_nothing(text: str) -> None:
    value = language(text).value
    assert value == 0 and math.copysign(1, value) == 1


def test_japanese_is_three_scripts_and_its_marks_none() -> None:
    score = language("漢字ひらがなカタカナーｶ々", scripts=("CJK", "HIRAGANA", "KATAKANA"))
    assert score.value == 0 and score.evidence["letters"] == {"KATAKANA": 5, "HIRAGANA": 4, "CJK": 2}


def test_the_scripts_of_the_prompt_may_be_allowed() -> None:
    assert language("да, yes", asked="Правда?", same_as_prompt=True).value == 0
    assert language("да, yes", asked="Правда?").value == pytest.approx(-2 / 5)
    assert language("да, 是", asked="Правда?", same_as_prompt=True).value == pytest.approx(-1 / 3)


@given(st.text(max_size=50))
def test_the_share_is_that_of_an_independent_count(text: str) -> None:
    letters = [c for c in text if unicodedata.category(c) in ("Lu", "Ll", "Lt", "Lo")]
    names = [unicodedata.name(unicodedata.normalize("NFKC", c)[0], "?") for c in letters]
    foreign = sum(not name.startswith("LATIN ") for name in names)
    assert language(text).value == pytest.approx(-foreign / len(letters) if letters else 0)


@pytest.mark.parametrize(
    ("script", "message"),
    [("LATN", "no letter is LATN; did you mean LATIN?"), ("cyrilic", "did you mean CYRILLIC?"), ("", "no letter is ")],
)
def test_a_script_that_no_letter_has_is_refused_with_the_nearest_name(script: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LanguagePenaltyConfig(scripts=("LATIN", script))
    assert message in str(caught.value)
