"""Functions with TRL's signature, TRL's own among them."""

import asyncio
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from reward.config import (
    FunctionConfig,
)
from reward.factory import make_reward
from reward.rewards.combination import Component, WeightedSumReward
from reward.rewards.function import FunctionReward, load_function
from reward.types import RewardContext, RewardError, Score
from rollouts.types import Message, Prompt
from tests.reward_fakes import context, group, prompt, values


def score_with(function: Any, *texts: str, ctx: RewardContext | None = None, **settings: Any) -> list[Score]:
    return FunctionReward(function, **settings).score([group(*texts)], ctx or context(prompt("12")))[0]


def test_function_gets_what_trl_would_pass() -> None:
    seen: dict[str, Any] = {}

    def keep(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float | None]:
        seen.update(columns, prompts=prompts, completions=completions, completion_ids=completion_ids)
        return [1.0, None, 0]

    chat = Prompt("c", "t", (Message(role="user", content="Hi"),), reference="SECRET", metadata={"level": 3})
    plain = Prompt("p", "t", "7 + 5 =", metadata={"reference": "SECRET"})
    ctx = context(chat, plain, iteration=7)
    scores = FunctionReward(keep).score([group("a", "bc", prompt_id="c"), group("d")], ctx)
    assert values(scores) == [[1.0, None], [0.0]]
    assert seen["prompts"] == [[{"role": "user", "content": "Hi"}]] * 2 + ["7 + 5 ="]
    assert seen["completions"] == [
        [{"role": "assistant", "content": "a"}],
        [{"role": "assistant", "content": "bc"}],
        "d",
    ]
    assert seen["completion_ids"] == [[0], [0, 1], [0]]
    assert seen["level"] == [3, 3, None]
    assert seen["trainer_state"].global_step == 7
    assert "reference" not in seen and "SECRET" not in repr(seen)


def test_function_gets_references_only_if_it_asks() -> None:
    def check(completions: list[str], reference: list[str], **_: Any) -> list[float]:
        return [float(c == r) for c, r in zip(completions, reference, strict=True)]

    assert [s.value for s in score_with(check, "12", "13", needs_reference=True)] == [1, 0]
    with pytest.raises(RewardError, match="reference"):
        score_with(check, "12")


def test_function_without_kwargs_gets_what_it_names() -> None:
    def length(completions: list[str]) -> list[int]:
        return [len(text) for text in completions]

    assert [s.value for s in score_with(length, "12", "134")] == [2, 3]


def test_function_may_return_an_array_and_be_a_coroutine() -> None:
    async def lengths(completions: list[str], **_: Any) -> np.ndarray:
        await asyncio.sleep(0)
        return np.array([len(text) for text in completions], dtype=np.float32)

    assert [s.value for s in score_with(lengths, "12", "134")] == [2, 3]

    async def inside_a_loop() -> list[Score]:
        return score_with(lengths, "12")

    assert asyncio.run(inside_a_loop())[0].value == 2


def test_what_a_function_logs_is_kept_as_evidence() -> None:
    def noisy(completions: list[str], log_extra: Any, log_metric: Any, **_: Any) -> list[float]:
        log_extra("parsed", [SimpleNamespace(text=text) for text in completions])
        log_metric("seen", 1.0)
        log_metric("seen", 2.0)
        return [1.0] * len(completions)

    evidence = score_with(noisy, "12", "13")[1].evidence
    assert evidence == {"parsed": "namespace(text='13')", "metrics": {"seen": 1.5}}


def test_what_a_function_logs_for_the_batch_becomes_a_metric() -> None:
    def measuring(completions: list[str], log_metric: Any, **_: Any) -> list[float]:
        log_metric("seen", 1.0)
        log_metric("seen", 2.0)
        log_metric("odd", math.nan)
        return [1.0] * len(completions)

    logged: list[tuple[str, float]] = []
    ctx = context(prompt("12"), log_metric=lambda *metric: logged.append(metric))
    score_with(measuring, "12", "13", ctx=ctx)
    combined = WeightedSumReward({"mine": Component(FunctionReward(measuring))})
    combined.score([group("12")], ctx)
    assert logged == [("seen", 1.5), ("mine/seen", 1.5)]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0], r"returned 1 rewards for 2 completions.*'p-0', 'p-1'"),
        ([1.0, math.nan], r"'p-1'.*nan"),
        ([math.inf, 1.0], r"'p-0'.*inf"),
        ([1.0, -2e9], r"'p-1' a value of -2000000000.0; .* no larger than 1e\+09"),
        ([1.0, "good"], r"'good' for rollout 'p-1'"),
        ([1.0, [1.0]], r"\[1.0\] for rollout 'p-1'"),
        ([1.0, 10**400], "too large for a float for rollout 'p-1'"),
        (np.zeros((2, 2)), r"returned ndarray of shape \(2, 2\) for rollouts 'p-0', 'p-1'; a list was expected"),
        (np.float64(1.0), r"returned float64 of shape \(\)"),
        ([np.zeros(2), np.zeros(2)], r"array\(\[0., 0.\]\) for rollout 'p-0': neither a number"),
        ({1.0, 2.0}, "returned set for .*; a list was expected, .* in their order"),
        (None, "NoneType"),
        (1.0, "float"),
        ("12", "str"),
    ],
)
def test_what_is_no_reward_is_an_error_naming_function_and_rollout(result: Any, message: str) -> None:
    def broken(**_: Any) -> Any:
        return result

    with pytest.raises(RewardError, match=message) as caught:
        score_with(broken, "12", "13")
    assert "'broken'" in str(caught.value)


def test_a_function_that_wants_labels_must_be_given_them() -> None:
    def strict(completions: list[str], reference: list[str], **_: Any) -> list[float]:
        return [float(c == r) for c, r in zip(completions, reference, strict=True)]

    with pytest.raises(RewardError, match="set needs_reference: true"):
        FunctionReward(strict)
    assert FunctionReward(strict, needs_reference=True).needs == {"reference"}


def test_evidence_that_cannot_be_written_is_an_error() -> None:
    def odd(completions: list[str], log_extra: Any, **_: Any) -> list[float]:
        log_extra("note", ["\udc80"] * len(completions))
        return [1.0] * len(completions)

    with pytest.raises(RewardError, match=r"'p-0' is no JSON.*surrogates"):
        score_with(odd, "12")


def test_an_exception_names_function_and_rollouts_and_keeps_its_cause() -> None:
    def broken(**_: Any) -> list[float]:
        raise KeyError("boom")

    with pytest.raises(
        RewardError, match=r"'broken' raised KeyError\('boom'\) .*'p-0', 'p-1' \(at .*\.py:\d+\)"
    ) as caught:
        score_with(broken, "12", "13")
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_function_that_ends_the_program_is_an_error(tmp_path: Path) -> None:
    def leaving(**_: Any) -> list[float]:
        sys.exit(0)

    async def leaving_later(**_: Any) -> list[float]:
        sys.exit(0)

    for function in (leaving, leaving_later):
        with pytest.raises(RewardError, match=r"'leaving\w*' raised SystemExit\(0\) while scoring"):
            score_with(function, "12")
    (tmp_path / "leave.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(RewardError, match=r"cannot be imported: SystemExit\(0\)"):
        load_function(f"{tmp_path / 'leave.py'}:f")


def test_a_file_may_define_dataclasses_under_postponed_annotations(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Found:\n    length: int\n\n"
        "def short(completions, **_):\n    return [-Found(len(c)).length for c in completions]\n"
    )
    reward = make_reward(FunctionConfig(path=f"{tmp_path / 'json.py'}:short"))
    assert values(reward.score([group("12")], context(prompt()))) == [[-2.0]]
    assert sys.modules["json"] is json


def test_the_example_reads_digits_that_int_does_not() -> None:
    function = load_function(f"{Path(__file__).parent.parent / 'examples' / 'my_reward.py'}:short_and_even")
    assert [score.value for score in score_with(function, "12", "²")] == pytest.approx([0.98, -0.01])


def test_trls_own_functions_drop_in() -> None:
    from trl.rewards import accuracy_reward, get_soft_overlong_punishment, think_format_reward

    chat = Prompt("p", "t", (Message(role="user", content="?"),), metadata={"solution": r"\frac{1}{3}"})
    texts = (r"My answer is \boxed{\frac{1}{3}}", r"My answer is \boxed{\frac{1}{2}}", "<think>\nhm\n</think>\n3")
    scores = score_with(accuracy_reward, *texts, ctx=context(chat))
    assert [s.value for s in scores] == [1, 0, 0]
    assert scores[0].evidence["gold_parsed"].startswith("[1/3")
    assert [s.value for s in score_with(think_format_reward, *texts, ctx=context(chat))] == [0, 0, 1]
    overlong = get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=10)
    assert [s.value for s in score_with(overlong, "x" * 10, "x" * 15, "x" * 21)] == [0, -0.5, -1]


def test_function_is_loaded_from_a_file_or_a_module(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def short(completions, **_):\n    return [-len(c) for c in completions]\n")
    reward = make_reward(FunctionConfig(path=f"{file}:short"))
    assert reward.name == "short"
    assert values(reward.score([group("12")], context(prompt()))) == [[-2.0]]
    assert load_function("math:sqrt") is math.sqrt


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:f", "no_such_module cannot be imported"),
        ("no/such/file.py:f", "no file"),
        ("math:no_such", "has no function 'no_such'"),
        ("math:pi", "has no function 'pi'"),
    ],
)
def test_a_function_that_is_not_there_is_one_clear_error(path: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        make_reward(FunctionConfig(path=path))


def test_a_file_that_raises_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(RewardError, match="ZeroDivisionError"):
        load_function(f"{tmp_path / 'bad.py'}:f")


def test_a_function_cannot_change_the_data() -> None:
    def spoil(completions: list[str], tags: list[list[str]], **_: Any) -> list[float]:
        for row in tags:
            row.append("spoiled")
        return [0.0] * len(completions)

    asked = prompt(metadata={"tags": ["fine"]})
    score_with(spoil, "1", "2", ctx=context(asked))
    assert asked.metadata == {"tags": ["fine"]}


@pytest.mark.parametrize("error", [GeneratorExit, asyncio.CancelledError, SystemExit])
def test_whatever_a_function_raises_is_one_error(error: type[BaseException]) -> None:
    def fail(completions: list[str], **_: Any) -> list[float]:
        raise error

    with pytest.raises(RewardError, match=error.__name__):
        score_with(fail, "1", "2")
