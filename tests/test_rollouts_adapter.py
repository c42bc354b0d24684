import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rollouts.adapter import check_fit, linear_shapes, merge, read_adapter
from rollouts.types import EngineError
from tests.rollouts_tiny import save_adapter, save_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tiny"))


def test_scaling_with_and_without_rank_stabilisation(model_folder, tmp_path):
    plain = read_adapter(save_adapter(model_folder, tmp_path / "plain", seed=0))
    stabilised = read_adapter(save_adapter(model_folder, tmp_path / "rs", seed=0, use_rslora=True))
    assert (plain.scaling, stabilised.scaling, plain.rank) == (8 / 4, 8 / 2, 4)
    assert plain.fingerprint != stabilised.fingerprint  # the tensors are the same


def test_merge_is_the_written_out_sum():
    generator = torch.Generator().manual_seed(0)
    weight, a, b = (torch.randn(shape, generator=generator) for shape in ((5, 7), (2, 7), (5, 2)))
    merged = merge(weight.bfloat16(), (a, b), 0.5)
    expected = weight.bfloat16().double() + 0.5 * (b.double() @ a.double())
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged.double(), expected, atol=1e-6, rtol=0)


def test_fingerprint_sees_one_bit(model_folder, tmp_path):
    folder = save_adapter(model_folder, tmp_path / "a", seed=0)
    before = read_adapter(folder).fingerprint
    assert read_adapter(folder).fingerprint == before
    tensors = load_file(folder / "adapter_model.safetensors")
    name = max(tensors)
    tensors[name].view(torch.int32).view(-1)[0] ^= 1
    save_file(tensors, folder / "adapter_model.safetensors")
    assert read_adapter(folder).fingerprint != before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"rank_pattern": {"q_proj": 8}}, "ranks that differ"),
        ({"init_lora_weights": "pissa_niter_16"}, "changes the base weights"),
    ],
)
def test_what_is_no_plain_lora_is_refused_with_the_reason(model_folder, tmp_path, change, reason):
    folder = save_adapter(model_folder, tmp_path / "a", seed=0)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(EngineError, match=reason):
        read_adapter(folder)


@pytest.mark.parametrize("breakage", ["no folder", "no tensors", "cut off", "config is no json"])
def test_unreadable_adapters_are_refused(model_folder, tmp_path, breakage):
    folder = save_adapter(model_folder, tmp_path / "a", seed=0)
    weights = folder / "adapter_model.safetensors"
    if breakage == "no folder":
        folder = tmp_path / "nowhere"
    elif breakage == "no tensors":
        weights.unlink()
    elif breakage == "cut off":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        (folder / "adapter_config.json").write_text("{")
    with pytest.raises(EngineError, match="cannot read the adapter"):
        read_adapter(folder)


def test_half_a_pair_is_refused(model_folder, tmp_path):
    folder = save_adapter(model_folder, tmp_path / "a", seed=0)
    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(EngineError, match=r"lacks one of lora_A and lora_B for model\.layers\.1\.mlp\.up_proj"):
        read_adapter(folder)


def test_an_adapter_for_another_model_is_refused(model_folder, tmp_path):
    shapes = linear_shapes(AutoModelForCausalLM.from_pretrained(model_folder))
    assert shapes["lm_head"] == (32, 32)
    adapter = read_adapter(save_adapter(model_folder, tmp_path / "a", seed=0))
    check_fit(adapter, shapes, "here")
    with pytest.raises(EngineError, match=r"does not fit model\.layers\.0\.mlp\.down_proj"):
        check_fit(adapter, shapes | {"model.layers.0.mlp.down_proj": (32, 65)}, "here")
    with pytest.raises(EngineError, match=r"targets model\.layers\.0\.mlp\.down_proj"):
        check_fit(adapter, {name: shape for name, shape in shapes.items() if "down" not in name}, "here")


def test_a_tied_output_layer_is_no_target(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(save_model(tmp_path, tied=True))
    assert "lm_head" not in linear_shapes(model)
