"""Rewards from configs, and what they may see."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from reward.config import (
    AnswerConfig,
    ConfidenceConfig,
    FunctionConfig,
    JudgeConfig,
    LanguagePenaltyConfig,
    LengthPenaltyConfig,
    MajorityConfig,
    PTrueConfig,
    RepetitionPenaltyConfig,
    RewardConfig,
    SelfCertaintyConfig,
    SemanticEntropyConfig,
    SequenceProbabilityConfig,
    TokenEntropyConfig,
    VerifierConfig,
    VerifierRewardConfig,
)
from reward.factory import make_reward
from reward.types import RewardError
from reward.verifiers import make_verifier
from rollouts.types import Message, Prompt
from tests.reward_fakes import NUMBER, ScriptedEngine, context, group, prompt, stats_of, values


@pytest.mark.parametrize(
    "config",
    [
        MajorityConfig(),
        MajorityConfig(soft=True),
        SemanticEntropyConfig(),
        SelfCertaintyConfig(),
        ConfidenceConfig(),
        TokenEntropyConfig(),
        SequenceProbabilityConfig(),
        PTrueConfig(),
        JudgeConfig(),
        LengthPenaltyConfig(),
        RepetitionPenaltyConfig(),
        LanguagePenaltyConfig(),
    ],
)
def test_label_free_rewards_run_without_labels(config: RewardConfig) -> None:
    reward = make_reward(config)
    assert "reference" not in reward.needs
    one = stats_of([[0.7, 0.1, 0.1, 0.1]] * 2)
    ctx = context(
        prompt(),
        engine=ScriptedEngine(lambda *_: "5"),
        token_stats=lambda rs, which: [one for _ in rs],
        likelihood=lambda questions, continuations, which: np.zeros((len(questions), len(continuations))),
        answer_tokens=lambda rollout: (0, 2),
    )
    scores = reward.score([group("12", "13")], ctx)[0]
    assert all(score.value is not None for score in scores)
    assert all(json.dumps(score.evidence) for score in scores)


@pytest.mark.parametrize("content", ["12?", (Message(role="user", content="12?"),)], ids=["text", "chat"])
@pytest.mark.parametrize("chat", [None, True, False])
@pytest.mark.parametrize("kind", ["judge", "pairwise_judge", "meta_judge", "reflection", "p_true"])
def test_questions_are_put_as_a_chat_or_not(kind: str, chat: bool | None, content: Any) -> None:
    adapter: TypeAdapter[RewardConfig] = TypeAdapter(RewardConfig)
    replies = ["Grade: 5", "Grade: 4"]  # two competitors for the meta-judge
    engine = ScriptedEngine(lambda question, sample: replies[sample % 2] if kind == "meta_judge" else "12")
    asked: list[Prompt] = []

    def likelihood(questions: Sequence[Prompt], continuations: Sequence[str], which: str) -> np.ndarray:
        asked.extend(questions)
        return np.zeros((len(questions), len(continuations)))

    ctx = context(Prompt("p", "sums", content), engine=engine, likelihood=likelihood)
    make_reward(adapter.validate_python({"kind": kind, "chat": chat})).score([group("12", "13")], ctx)
    asked += engine.asked
    as_chat = {not isinstance(question.content, str) for question in asked}
    assert as_chat == {not isinstance(content, str) if chat is None else chat}
    stages = {"reflection": ("/critique", "/revision"), "meta_judge": ("/judge", "/against/")}.get(kind, ())
    assert all(any(stage in question.id for question in asked) for stage in stages)


@pytest.mark.parametrize(("config", "need"), [(JudgeConfig(), "engine"), (SelfCertaintyConfig(), "token_stats")])
def test_a_reward_that_is_not_given_what_it_needs_says_so(config: RewardConfig, need: str) -> None:
    with pytest.raises(RewardError, match=need):
        make_reward(config).score([group("12")], context(prompt()))


def test_verifier_reward_grades_each_task_its_own_way() -> None:
    graders = {
        "sums": make_verifier(VerifierConfig(), NUMBER),
        "words": make_verifier(VerifierConfig(), AnswerConfig(kind="text")),
    }
    reward = make_reward(VerifierRewardConfig(), graders=graders)
    ctx = context(prompt("12"), prompt("Paris", id="w", task="words"))
    scores = reward.score([group("= 12", "12 or 13"), group("paris", "Rome", prompt_id="w")], ctx)
    assert values(scores) == [[1, 0], [1, 0]]
    assert scores[1][1].evidence == {"answer": "Rome", "reference": "Paris"}
    strict = make_reward(VerifierRewardConfig(verifier=VerifierConfig(kind="exact")), graders=graders)
    assert values(strict.score([group("paris", prompt_id="w")], ctx)) == [[1]]


def test_verifier_reward_passes_on_partial_credit_only_if_told() -> None:
    import reasoning_gym

    entry = reasoning_gym.create_dataset("spell_backward", seed=3, size=1)[0]
    almost = entry["answer"][:-1] + "#"
    credit = reasoning_gym.get_score_answer_fn("spell_backward")(almost, entry)
    assert 0 < credit < 1
    ctx = context(prompt(entry["answer"], grading={"dataset": "spell_backward", "entry": entry}))
    grader = make_verifier(VerifierConfig(), AnswerConfig(kind="text"))
    for partial, expected in ((True, credit), (False, 0.0)):
        reward = make_reward(VerifierRewardConfig(partial_credit=partial), graders=grader)
        assert values(reward.score([group(almost)], ctx)) == [[expected]]


def test_verifier_reward_without_labels_or_for_an_unknown_task_is_an_error() -> None:
    with pytest.raises(RewardError, match=r"rollout 'p-0'.*prompt 'p' has no reference"):
        make_reward(VerifierRewardConfig()).score([group("12")], context(prompt()))
    graders = {"words": make_verifier(VerifierConfig(), NUMBER)}
    with pytest.raises(RewardError, match="no verifier for task 'sums'"):
        make_reward(VerifierRewardConfig(), graders=graders).score([group("12")], context(prompt("12")))


def test_a_rollout_whose_prompt_is_missing_is_an_error() -> None:
    with pytest.raises(RewardError, match="'p-0'"):
        make_reward(VerifierRewardConfig()).score([group("12")], context())


def test_composition_from_yaml_like_data() -> None:
    config = TypeAdapter(RewardConfig).validate_python(
        {
            "kind": "weighted_sum",
            "components": {
                "votes": {"weight": 1.0, "normalize": "group", "reward": {"kind": "majority"}},
                "length": {"weight": 0.5, "reward": {"kind": "length_penalty", "max_tokens": 4}},
            },
        }
    )
    reward = make_reward(config)
    assert reward.needs == frozenset()
    scores = reward.score([group("12", "12", "7")], context(prompt()))[0]
    # votes 1, 1, 0: mean 2/3, sample deviation 1/√3; lengths 2, 2, 1 of 4
    assert [s.value for s in scores] == pytest.approx(
        [1 / 3 * 3**0.5 - 0.25, 1 / 3 * 3**0.5 - 0.25, -2 / 3 * 3**0.5 - 0.125]
    )
    assert scores[0].components == {"votes": 1.0, "length": -0.5}


@pytest.mark.parametrize(
    ("config", "settings", "word"),
    [
        (JudgeConfig, {"low": 5, "high": 5}, "must be below"),
        (JudgeConfig, {"template": "Is {answer} right?"}, "{question}"),
        (LengthPenaltyConfig, {"free_tokens": 256}, "must be below"),
        (FunctionConfig, {"path": "just_a_name"}, "path"),
    ],
)
def test_a_useless_reward_config_is_refused(config: Any, settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        config(**settings)
