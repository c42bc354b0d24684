"""The policy: adapters, their files, the frozen reference, and what it thinks of tokens."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlsf.config.schema import LoraConfig, ModelConfig
from rlsf.errors import ModelError
from rlsf.policy import REFERENCE, Policy
from rollouts.adapter import read_adapter
from rollouts.config import TransformersEngineConfig
from rollouts.transformers_engine import TransformersEngine
from tests.tiny_policy import make_groups, make_policy, model_folder, perturb

SEQUENCES = [((3, 4, 5), (6, 7, 1)), ((8, 9), (2,))]


def test_the_seed_decides_the_adapter_and_a_fresh_one_changes_nothing():
    state = torch.random.get_rng_state()
    first, again, other = make_policy(seed=3), make_policy(seed=3), make_policy(seed=4)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator moved"
    assert first.adapter_digest() == again.adapter_digest() != other.adapter_digest()
    base = AutoModelForCausalLM.from_pretrained(model_folder())
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        assert torch.equal(first.causal_lm(input_ids=ids).logits, base(input_ids=ids).logits)


def test_only_the_adapter_takes_gradients():
    policy = make_policy()
    trainable = {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    assert trainable and all(".default." in name for name in trainable)
    assert len(trainable) == len(policy.parameters())


def test_adapter_survives_its_files_bit_for_bit_and_peft_reads_them(tmp_path: Path):
    policy = make_policy()
    perturb(policy)
    policy.save_adapter(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "a",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    other = make_policy(seed=9)
    other.load_adapter(tmp_path / "a")
    assert other.adapter_digest() == policy.adapter_digest()
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder()), tmp_path / "a")
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        assert torch.equal(by_peft(input_ids=ids).logits, policy.model(input_ids=ids).logits)


def test_saving_replaces_an_older_adapter_and_writes_the_same_bytes(tmp_path: Path):
    policy = make_policy()
    policy.save_adapter(tmp_path / "a")
    perturb(policy)
    policy.save_adapter(tmp_path / "a")
    policy.save_adapter(tmp_path / "b")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    targets = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)


@pytest.mark.parametrize("sync", ["adapter", "merge"])
@pytest.mark.parametrize(
    ("lora", "scaling"),
    [({}, 8 / 4), ({"use_rslora": True}, 8 / 2), ({"target_modules": r".*\.0\..*_proj", "use_rslora": True}, 8 / 2)],
)
def test_an_engine_serves_the_adapter_with_the_policys_scale(tmp_path: Path, sync: str, lora: dict, scaling: float):
    policy = make_policy(**lora)
    perturb(policy)
    policy.save_adapter(tmp_path / "a")
    assert read_adapter(tmp_path / "a").scaling == scaling  # alpha / r, or alpha / √r
    engine = TransformersEngine(model_folder(), TransformersEngineConfig(sync=sync), policy.tokenizer)
    engine.sync(tmp_path / "a", 1)
    for served, trained in zip(engine.score_tokens(SEQUENCES), policy.score_tokens(SEQUENCES), strict=True):
        np.testing.assert_allclose(served, trained, atol=1e-5)


@pytest.mark.parametrize("broken", ["missing", "garbage", "rank", "alpha", "scale"])
def test_adapters_that_do_not_fit_are_refused(tmp_path: Path, broken: str):
    other = {"rank": {"r": 8}, "alpha": {"alpha": 16.0}, "scale": {"use_rslora": True}}.get(broken, {})
    make_policy(**other).save_adapter(tmp_path / "a")
    if broken == "missing":
        (tmp_path / "a" / "adapter_model.safetensors").unlink()
    if broken == "garbage":
        (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"no tensors here")
    policy = make_policy()
    before = policy.adapter_digest()
    with pytest.raises(ModelError, match=str(tmp_path / "a")):
        policy.load_adapter(tmp_path / "a")
    assert policy.adapter_digest() == before


def test_a_new_adapter_does_not_switch_dropout_on():
    """PEFT adds adapters in training mode, whatever the mode of the model."""
    policy = make_policy(dropout=0.5)
    perturb(policy)
    policy.freeze_reference()
    assert policy.score_tokens(SEQUENCES, adapter=REFERENCE) == policy.score_tokens(SEQUENCES)


def test_the_reference_is_the_policy_of_that_moment_and_stays(tmp_path: Path):
    policy = make_policy()
    with pytest.raises(ModelError, match="freeze_reference"):
        policy.score_tokens(SEQUENCES, adapter=REFERENCE)
    perturb(policy, seed=1)
    then = policy.score_tokens(SEQUENCES)
    policy.freeze_reference()
    perturb(policy, seed=2)
    assert policy.score_tokens(SEQUENCES, adapter=REFERENCE) == then != policy.score_tokens(SEQUENCES)
    assert not any(parameter.requires_grad for parameter in policy.parameters(REFERENCE))
    assert all(parameter.requires_grad for parameter in policy.parameters())

    policy.save(tmp_path / "policy")
    restored = make_policy(seed=5)
    restored.load(tmp_path / "policy")
    assert restored.adapter_digest() == policy.adapter_digest()
    assert restored.score_tokens(SEQUENCES, adapter=REFERENCE) == then
    assert not any(parameter.requires_grad for parameter in restored.parameters(REFERENCE))


def test_log_probabilities_do_not_depend_on_micro_batches_and_use_the_sampling_temperature():
    policy = make_policy()
    perturb(policy)
    rollouts = [e.rollout for g in make_groups(policy, lambda r: 0.0, temperature=0.6) for e in g.experiences]
    whole = policy.logprobs(rollouts)
    policy.micro_batch_tokens = 64
    for ours, theirs, rollout in zip(policy.logprobs(rollouts), whole, rollouts, strict=True):
        assert len(ours) == len(rollout.completion_ids)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        np.testing.assert_allclose(ours, rollout.logprobs, atol=1e-5)
    assert np.abs(np.subtract(policy.logprobs(rollouts, temperature=1.0)[0], whole[0])).max() > 1e-2


def test_token_stats_have_one_value_per_token():
    policy = make_policy()
    rollouts = [e.rollout for g in make_groups(policy, lambda r: 0.0) for e in g.experiences]
    for stats, rollout in zip(policy.token_stats(rollouts), rollouts, strict=True):
        length = (len(rollout.completion_ids),)
        assert stats.logprob.shape == stats.entropy.shape == stats.self_certainty.shape == stats.top_gap.shape == length
        np.testing.assert_allclose(stats.logprob, rollout.logprobs, atol=1e-5)
        assert (stats.entropy > 0).all() and (stats.entropy < np.log(32)).all()


def test_mixed_temperatures_are_refused():
    policy = make_policy()
    groups = [*make_groups(policy, lambda r: 0.0), *make_groups(policy, lambda r: 0.0, temperature=0.5)]
    with pytest.raises(ModelError, match=r"0\.5, 1\.0"):
        policy.logprobs([e.rollout for g in groups for e in g.experiences])


def test_bfloat16_base_keeps_its_adapter_in_float32():
    policy = make_policy(dtype="bfloat16")
    perturb(policy)
    assert policy.causal_lm.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    exact = make_policy()
    perturb(exact)
    for ours, theirs in zip(policy.score_tokens(SEQUENCES), exact.score_tokens(SEQUENCES), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.15)


@pytest.mark.parametrize("targets", ["lm_head", ["no_such_module"], ["embed_tokens", "q_proj"]])
def test_target_modules_that_cannot_be_trained_are_refused(targets: str | list[str]):
    with pytest.raises(ModelError, match=r"model\.lora\.target_modules"):
        make_policy(target_modules=targets)


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="cannot load"):
        Policy.create(tmp_path, ModelConfig(device="cpu", lora=LoraConfig()), seed=0)
