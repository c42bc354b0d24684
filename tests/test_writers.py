"""The models beside the engine that rewards put questions to, on the lab model."""

from collections.abc import Iterator

import pytest
import torch

from reward.config import FrozenWriterConfig, JudgeConfig, LocalWriterConfig
from reward.rewards.judge import JudgeReward
from reward.types import RewardError, Writer
from rlsf.config.schema import ModelConfig
from rlsf.models.lab_tasks import LAB_DIR
from rlsf.policy import Policy
from rlsf.writers import Writers
from rollouts.config import TransformersEngineConfig
from rollouts.transformers_engine import TransformersEngine
from rollouts.types import EngineError, Prompt, SamplingParams
from tests.reward_fakes import context, group, prompt
from tests.rollouts_tiny import save_model
from tests.tiny_policy import perturb

QUESTIONS = [Prompt(f"q{index}", "t", f"gcd({6 * index + 12}, {4 * index + 8}) = ") for index in range(6)]
GREEDY = SamplingParams(temperature=0, max_tokens=6)
FROZEN = FrozenWriterConfig()


@pytest.fixture
def policy() -> Policy:
    policy = Policy.create(LAB_DIR, ModelConfig(source="lab", device="cpu"), seed=0)
    perturb(policy, seed=1, scale=0.1)
    return policy


@pytest.fixture
def writers(policy: Policy) -> Iterator[Writers]:
    writers = Writers(policy, 64, lambda tokens: None)
    yield writers
    writers.close()


def test_what_other_models_generate_is_counted(policy: Policy) -> None:
    counted: list[int] = []
    writers = Writers(policy, 64, counted.append)
    local = LocalWriterConfig(source="lab", max_model_len=64)
    for config in (FROZEN, local):
        groups = writers(config).ask(QUESTIONS, GREEDY, seed=1, json_schema=None)
        assert counted.pop() == sum(reply.tokens for replies in groups for reply in replies or []) > 0
    writers.close()
    assert not counted


def texts(writer: Writer, sampling: SamplingParams = GREEDY, *, seed: int = 1) -> list[str]:
    groups = writer.ask(QUESTIONS, sampling, seed=seed, json_schema=None)
    return [reply.text for replies in groups for reply in replies or []]


def own_texts(policy: Policy, folder, sampling: SamplingParams = GREEDY, *, seed: int = 1) -> list[str]:
    """What an engine answers that serves the policy as it is now."""
    policy.save_adapter(folder)
    engine = TransformersEngine(LAB_DIR, TransformersEngineConfig())
    engine.sync(folder, 1)
    return [rollout.text for group in engine.generate(QUESTIONS, sampling, seed=seed) for rollout in group]


def test_the_frozen_copy_answers_as_the_policy_did_when_it_was_frozen(
    policy: Policy, writers: Writers, tmp_path
) -> None:
    own = own_texts(policy, tmp_path / "now")
    assert texts(writers(FROZEN)) == own  # before there is a reference it is the policy
    policy.freeze_reference()
    assert texts(writers(FROZEN)) == own
    perturb(policy, seed=2, scale=0.1)
    assert own_texts(policy, tmp_path / "later") != own
    assert texts(writers(FROZEN)) == own


def test_the_frozen_copy_samples_as_an_engine_does(policy: Policy, writers: Writers, tmp_path) -> None:
    sampling = SamplingParams(max_tokens=6, n=3)
    policy.freeze_reference()
    first = texts(writers(FROZEN), sampling, seed=7)
    assert first == own_texts(policy, tmp_path / "now", sampling, seed=7)
    assert first == texts(writers(FROZEN), sampling, seed=7) != texts(writers(FROZEN), sampling, seed=8)


def test_asking_the_frozen_copy_leaves_the_policy_as_it_was(policy: Policy, writers: Writers) -> None:
    policy.freeze_reference()
    perturb(policy, seed=2)
    settings, digest = policy.causal_lm.generation_config, policy.adapter_digest()
    state = torch.get_rng_state()
    texts(writers(FROZEN), SamplingParams(max_tokens=4, n=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert policy.model.active_adapter == "default" and policy.adapter_digest() == digest
    assert all(parameter.requires_grad for parameter in policy.parameters())
    assert not any(parameter.requires_grad for parameter in policy.parameters("reference"))
    assert policy.causal_lm.generation_config is settings


def test_the_models_own_generation_settings_do_not_shape_the_frozen_copys_replies(
    policy: Policy, writers: Writers
) -> None:
    policy.freeze_reference()
    plain = texts(writers(FROZEN))
    policy.causal_lm.generation_config.repetition_penalty = 5.0
    assert texts(writers(FROZEN)) == plain


def test_the_frozen_copy_says_what_does_not_fit(writers: Writers) -> None:
    long = Prompt("long", "t", "1" * 64)
    none, replies = writers(FROZEN).ask([long, QUESTIONS[0]], GREEDY, seed=1, json_schema=None)
    assert none is None and replies is not None
    assert replies[0].rollout is not None and replies[0].tokens == len(replies[0].rollout.completion_ids)
    with pytest.raises(RewardError, match=r"no question fits; raise engine\.max_model_len"):
        writers(FROZEN).ask([long], GREEDY, seed=1, json_schema=None)


def test_a_local_model_is_itself_whatever_the_policy_learns(policy: Policy, writers: Writers) -> None:
    engine = TransformersEngine(LAB_DIR, TransformersEngineConfig())
    base = [rollout.text for [rollout] in engine.generate(QUESTIONS, GREEDY, seed=1)]
    lab = LocalWriterConfig(source="lab")
    assert texts(writers(lab)) == base != texts(writers(FROZEN))
    assert writers(LocalWriterConfig(source="lab")) is writers(lab)
    assert writers(LocalWriterConfig(source="lab", max_batch=2)) is not writers(lab)


def test_a_local_model_speaks_with_its_own_template_and_limits(writers: Writers) -> None:
    config = LocalWriterConfig(source="lab", chat_template="{{ messages[0]['content'] }}", max_model_len=20)
    question, long = (
        Prompt(text, "t", ({"role": "user", "content": text},)) for text in (str(QUESTIONS[0].content), "1" * 20)
    )
    none, [reply] = writers(config).ask([long, question], GREEDY, seed=1, json_schema=None)  # type: ignore[misc]
    assert none is None
    assert reply.text == texts(writers(LocalWriterConfig(source="lab")))[0]
    with pytest.raises(RewardError, match="no question fits; raise max_model_len of the local model"):
        writers(config).ask([long], GREEDY, seed=1, json_schema=None)


def test_a_local_model_is_loaded_when_it_is_asked(writers: Writers, tmp_path) -> None:
    absent = writers(LocalWriterConfig(source=str(tmp_path / "nowhere")))
    with pytest.raises(RewardError, match=r"the local model '.*nowhere' that a reward asks: (?!model\.source)"):
        texts(absent)
    save_model(tmp_path / "tiny")
    config = LocalWriterConfig(source=str(tmp_path / "tiny"), max_model_len=100)
    with pytest.raises(RewardError, match="max_model_len is 100, but the model was built for 64"):
        texts(writers(config))


def test_closing_frees_the_local_models(writers: Writers) -> None:
    writer = writers(LocalWriterConfig(source="lab"))
    texts(writer)
    writers.close()
    writers.close()
    with pytest.raises(EngineError, match="is closed"):
        texts(writer)


def test_a_judge_asks_the_frozen_copy_and_a_local_model(policy: Policy, writers: Writers) -> None:
    policy.freeze_reference()
    for by in (FROZEN, LocalWriterConfig(source="lab")):
        config = JudgeConfig(by=by, template="gcd({question}, {answer}) = ", low=0, high=9999, max_tokens=6, samples=8)
        [[score]] = JudgeReward(config).score([group("12")], context(prompt(), writers=writers, seed=1))
        assert score.value is None or 0 <= score.value <= 1
        assert len(score.evidence["judgements"]) >= 8 and any(score.evidence["judgements"])
