import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rollouts.config import TransformersEngineConfig
from rollouts.transformers_engine import TransformersEngine
from rollouts.types import EngineError, Prompt, SamplingParams
from tests.rollouts_tiny import EOS, VOCABULARY, save_adapter, save_model, trainer_logprobs

PROMPTS = [Prompt(id=f"p{index}", task="t", content=" ".join(["t9"] * index + ["t6"])) for index in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def adapters(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    narrow = {"r": 2, "target_modules": ["q_proj", "down_proj"], "use_rslora": True}
    return [
        save_adapter(folder, root / "1", seed=1),
        save_adapter(folder, root / "2", seed=2),
        save_adapter(folder, root / "3", seed=3, **narrow),
    ]


def _engine(folder, **config) -> TransformersEngine:
    return TransformersEngine(folder, TransformersEngineConfig(**config))


def _flat(groups):
    return [rollout for group in groups for rollout in group]


def _pairs(rollouts):
    return [(rollout.prompt_ids, rollout.completion_ids) for rollout in rollouts]


def _assert_close(left, right, atol=2e-5):
    np.testing.assert_allclose(np.concatenate(left), np.concatenate(right), atol=atol, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_behaviour_logprobs_are_the_trainers(folder, temperature):
    sampling = SamplingParams(temperature=temperature, max_tokens=12, n=5)
    rollouts = _flat(_engine(folder, max_batch=7).generate(PROMPTS, sampling, seed=3))
    assert len(rollouts) == 30
    expected = trainer_logprobs(folder, None, _pairs(rollouts), temperature)
    _assert_close([rollout.logprobs for rollout in rollouts], expected)
    _assert_close(_engine(folder).score_tokens(_pairs(rollouts), temperature=temperature), expected)


def test_completions_end_where_they_should(folder):
    rollouts = _flat(_engine(folder).generate(PROMPTS, SamplingParams(max_tokens=20, n=16), seed=0))
    stopped = [rollout for rollout in rollouts if rollout.finish_reason == "stop"]
    cut = [rollout for rollout in rollouts if rollout.truncated]
    assert stopped and cut
    for rollout in stopped:  # 0 is an end token of the generation config, 1 the tokenizer's
        assert rollout.completion_ids[-1] in (0, EOS)
        assert not {0, EOS} & set(rollout.completion_ids[:-1])
        assert f"t{EOS}" not in rollout.text.split()
    for rollout in cut:
        assert len(rollout.completion_ids) == 20 and not {0, EOS} & set(rollout.completion_ids)


def test_samples_follow_the_models_distribution(folder):
    """The generation config saved with the model (top_k 3, repetition penalty) must not shape them."""
    rollouts = _flat(_engine(folder).generate(PROMPTS[:1], SamplingParams(max_tokens=1, n=4000), seed=0))
    counts = np.bincount([rollout.completion_ids[0] for rollout in rollouts], minlength=VOCABULARY) / 4000
    ids = rollouts[0].prompt_ids
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1).numpy()
    assert np.abs(counts - expected).max() < 4 * np.sqrt(0.25 / 4000)


@pytest.mark.parametrize("shape", [{"top_k": 4}, {"top_p": 0.5}])
def test_truncated_sampling_reports_the_renormalised_distribution(folder, shape):
    rollouts = _flat(_engine(folder).generate(PROMPTS[:1], SamplingParams(max_tokens=1, n=400, **shape), seed=0))
    by_token = {rollout.completion_ids[0]: rollout.logprobs[0] for rollout in rollouts}
    assert len(by_token) == 4 if "top_k" in shape else len(by_token) < VOCABULARY
    assert sum(np.exp(list(by_token.values()))) == pytest.approx(1, abs=0.02)


def test_greedy_takes_the_likeliest_token_each_time(folder):
    sampling = SamplingParams(temperature=0.0, max_tokens=6, n=2)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for group in _engine(folder).generate(PROMPTS, sampling, seed=0):
        assert group[0].completion_ids == group[1].completion_ids
        ids = list(group[0].prompt_ids)
        for token in group[0].completion_ids:
            with torch.no_grad():
                assert model(input_ids=torch.tensor([ids])).logits[0, -1].argmax() == token
            ids.append(token)
    expected = trainer_logprobs(folder, None, _pairs(group))
    _assert_close([rollout.logprobs for rollout in group], expected)


def test_stop_strings_end_a_completion_and_stay_in_it(folder):
    engine = _engine(folder)
    free = _flat(engine.generate(PROMPTS, SamplingParams(max_tokens=20, n=8), seed=5))
    assert any("t7" in rollout.text for rollout in free)
    rollouts = _flat(engine.generate(PROMPTS, SamplingParams(max_tokens=20, n=8, stop=("t7", "t8 t9")), seed=5))
    hit = [rollout for rollout in rollouts if rollout.text.endswith("t7")]
    assert hit and all(rollout.finish_reason == "stop" and rollout.completion_ids[-1] == 7 for rollout in hit)
    assert all("t7" not in rollout.text[:-2] for rollout in rollouts)
    assert all(len(rollout.logprobs) == len(rollout.completion_ids) for rollout in rollouts)


def test_same_seed_same_rollouts_and_the_callers_random_state_is_left_alone(folder):
    sampling = SamplingParams(max_tokens=8, n=4)
    torch.manual_seed(11)
    random.seed(11)
    state, python = torch.get_rng_state(), random.getstate()
    engine = _engine(folder)
    first = engine.generate(PROMPTS, sampling, seed=3)
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python
    assert _engine(folder).generate(PROMPTS, sampling, seed=3) == first
    other = engine.generate(PROMPTS, sampling, seed=4)
    assert [rollout.completion_ids for rollout in _flat(other)] != [rollout.completion_ids for rollout in _flat(first)]


def test_rollouts_are_in_order_with_ids_of_their_own(folder):
    groups = _engine(folder, max_batch=3).generate(PROMPTS, SamplingParams(max_tokens=2, n=4), seed=3)
    assert [[rollout.prompt_id for rollout in group] for group in groups] == [[f"p{i}"] * 4 for i in range(6)]
    assert [len(group[0].prompt_ids) for group in groups] == [1, 2, 3, 4, 5, 6]
    assert len({rollout.id for rollout in _flat(groups)}) == 24
    assert all(len({rollout.group_id for rollout in group}) == 1 for group in groups)


@pytest.mark.parametrize("sync", ["adapter", "merge"])
def test_synced_adapter_is_what_peft_computes(folder, adapters, sync):
    engine = _engine(folder, sync=sync)
    probe = _pairs(_flat(engine.generate(PROMPTS, SamplingParams(max_tokens=10, n=2), seed=1)))
    untouched = engine.score_tokens(probe)
    assert (engine.version, engine.fingerprint) == (0, None)
    state = torch.get_rng_state()
    first = None
    for version, index in enumerate((0, 1, 2, 0), start=1):
        engine.sync(adapters[index], version)
        scores = engine.score_tokens(probe)
        _assert_close(scores, trainer_logprobs(folder, adapters[index], probe), atol=5e-5)
        assert engine.version == version
        assert np.abs(np.concatenate(scores) - np.concatenate(untouched)).max() > 0.1
        rollout = engine.generate(PROMPTS[:1], SamplingParams(max_tokens=3), seed=1)[0][0]
        assert rollout.policy_version == version
        first = first or scores
    assert scores == first  # no trace of what was served in between, to the last bit
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("sync", ["adapter", "merge"])
def test_a_refused_adapter_changes_nothing(folder, adapters, tmp_path, sync):
    engine = _engine(folder, sync=sync)
    engine.sync(adapters[0], 1)
    before = engine.score_tokens([((5, 6), (7, 8))])
    with pytest.raises(EngineError, match="cannot read"):
        engine.sync(tmp_path / "nowhere", 2)
    assert engine.version == 1 and engine.score_tokens([((5, 6), (7, 8))]) == before


def test_the_given_model_is_copied(folder, adapters):
    model = AutoModelForCausalLM.from_pretrained(folder)
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    engine = TransformersEngine(model, TransformersEngineConfig(sync="merge"))
    engine.sync(adapters[0], 1)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_too_long_prompts_are_refused_before_anything_runs(folder):
    sampling = SamplingParams(max_tokens=60)
    with pytest.raises(EngineError, match=r"'p4' is too long \(and 1 more prompts\): 5 prompt tokens"):
        _engine(folder).generate(PROMPTS, sampling, seed=0)
    with pytest.raises(EngineError, match="max_model_len is 100, but the model was built for 64"):
        _engine(folder, max_model_len=100)


def test_a_closed_engine_says_so(folder):
    engine = _engine(folder)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="transformers engine is closed; create a new engine"):
        engine.generate(PROMPTS, SamplingParams(), seed=0)


def test_a_failing_engine_gives_one_clear_error_and_is_not_used_again(folder, monkeypatch):
    engine = _engine(folder)
    engine._model.model.layers = None
    with pytest.raises(EngineError, match="failed while generating") as raised:
        engine.generate(PROMPTS, SamplingParams(max_tokens=2), seed=0)
    assert raised.value.__cause__ is not None
    with pytest.raises(EngineError, match=r"failed while generating .* create a new engine"):
        engine.score_tokens([((5,), (6,))])


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(EngineError, match="cannot load the model"):
        _engine(tmp_path / "nowhere")


def test_empty_completions_and_no_prompts(folder):
    engine = _engine(folder)
    assert engine.score_tokens([((5, 6), ()), ((5,), (6,))])[0] == []
    assert engine.score_tokens([]) == [] and engine.generate([], SamplingParams(), seed=0) == []
