"""The delivery check in bfloat16, where the same weights in two programs lie far apart: real engine, real trainer."""

from pathlib import Path

import pytest
import torch

from rlsf.config.schema import ModelConfig
from rlsf.models import resolve_model
from rlsf.policy import Policy
from rollouts.config import DeliveryConfig, TransformersEngineConfig
from rollouts.delivery import DeliveryCheck, limits_for, take_probe
from rollouts.transformers_engine import TransformersEngine
from rollouts.types import EngineError, Prompt, SamplingParams

PROMPTS = [
    Prompt(f"p{index}", "sums", ({"role": "user", "content": f"{7 * index % 50 + 3} + {13 * index % 40 + 2} ="},))
    for index in range(40)
]


class Delivery:
    """A policy and an engine on the lab model, and the check between them, which has passed at version 0."""

    def __init__(self, sync: str, folder: Path) -> None:
        source = resolve_model("lab")
        self.folder = folder
        self.policy = Policy.create(source, ModelConfig(dtype="bfloat16", device="cpu"), seed=0)
        self.engine = TransformersEngine(
            source, TransformersEngineConfig(sync=sync), self.policy.tokenizer, dtype=torch.bfloat16
        )
        groups = self.engine.generate(PROMPTS, SamplingParams(max_tokens=8), seed=0)
        self.check = DeliveryCheck(DeliveryConfig(), take_probe([group[0] for group in groups], 64))
        assert self.verify(0) == "baseline"

    def train(self, version: int, size: float) -> Path:
        """Give the policy other weights and save them."""
        generator = torch.Generator().manual_seed(version)
        for name, parameter in self.policy.model.named_parameters():
            if "lora_B" in name:
                parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
        return self.save(f"v{version}")

    def save(self, name: str) -> Path:
        self.policy.save_adapter(self.folder / name)
        return self.folder / name

    def scale(self, factor: float) -> None:
        for name, parameter in self.policy.model.named_parameters():
            if "lora_B" in name:
                parameter.data.mul_(factor)

    def verify(self, version: int, adapter: Path | None = None) -> str:
        trainer = self.policy.score_tokens(self.check.probe)
        return self.check.verify(self.engine, version, trainer, adapter).verdict


@pytest.fixture(params=["adapter", "merge"])
def delivery(request, tmp_path):
    return Delivery(request.param, tmp_path)


def test_honest_deliveries_pass_at_every_size_of_step(delivery):
    assert delivery.engine.dtype == "bfloat16"
    verdicts = []
    for version, size in enumerate((1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 2e-2), 1):
        adapter = delivery.train(version, size)
        delivery.engine.sync(adapter, version)
        verdicts.append(delivery.verify(version, adapter))
    assert verdicts[0] == "too small to see" and verdicts[-1] == "moved"


def test_altered_weights_are_caught(delivery):
    delivery.train(1, 2e-2)
    delivery.scale(0.5)
    altered = delivery.save("altered")
    delivery.scale(2)
    delivery.engine.sync(altered, 1)
    with pytest.raises(EngineError, match=r"disagree at version 1: .* times as much as at first"):
        delivery.verify(1, altered)


def test_a_dropped_adapter_is_caught_though_the_engine_names_its_version(delivery):
    delivery.train(1, 2e-2)
    delivery.engine._version = 1
    with pytest.raises(EngineError, match="disagree at version 1"):
        delivery.verify(1)


def test_an_engine_one_version_late_is_caught(delivery):
    adapters = {}
    for version in (1, 2):
        adapters[version] = delivery.train(version, 1e-2)
        delivery.engine.sync(adapters[version], version)
        delivery.verify(version, adapters[version])
    delivery.train(3, 1e-2)
    delivery.engine.sync(adapters[2], 3)
    with pytest.raises(EngineError, match="disagree at version 3"):
        delivery.verify(3)


def test_lost_deliveries_are_caught_when_small_steps_add_up(delivery):
    for version in range(1, 40):
        delivery.train(version, 1e-3)
        delivery.engine._version = version
        try:
            delivery.verify(version)
        except EngineError as error:
            assert version > 1 and "disagree" in str(error)
            return
    pytest.fail("39 lost deliveries went unnoticed")


def test_another_model_is_caught_at_version_0(delivery):
    with torch.no_grad():
        for parameter in delivery.engine._model.model.layers[1].mlp.parameters():
            parameter.mul_(0.5)
    check = DeliveryCheck(DeliveryConfig(), delivery.check.probe)
    with pytest.raises(EngineError, match=r"disagree at version 0: .* more than 0\.25"):
        check.verify(delivery.engine, 0, delivery.policy.score_tokens(check.probe))


def test_limits_go_by_precision_unless_a_tolerance_is_given():
    assert limits_for("float32", None).worst == 5e-3
    assert limits_for("float32", 1e-3).worst == 1e-3
    bfloat, half = limits_for("bfloat16", None), limits_for("float16", None)
    assert (bfloat.worst, bfloat.rms) == (None, 0.25) and half.rms == 0.25 / 8
    assert limits_for("bfloat16", 0.3).worst == 0.3


def test_a_version_can_be_synced_again(delivery):
    adapter = delivery.train(1, 1e-2)
    for _ in range(3):
        delivery.engine.sync(adapter, 1)
        assert delivery.engine.version == 1
    assert delivery.verify(1, adapter) == "moved"
