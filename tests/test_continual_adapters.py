"""Adapters of tasks: merged as peft's formulas say, kept, set aside and found again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer

from rlsf.config.strategies import AdaptersConfig
from rlsf.continual.adapters import AdapterBank
from rlsf.policy import POLICY, Policy
from tests.tiny_policy import make_policy, perturb

COMBINATIONS = ("linear", "ties", "dare_linear", "dare_ties", "svd", "magnitude_prune")


def changes_of(policy: Policy) -> list[torch.Tensor]:
    """ΔW = scaling · B A of every adapted layer, as the model applies it."""
    return [
        module.scaling[POLICY] * module.lora_B[POLICY].weight.detach() @ module.lora_A[POLICY].weight.detach()
        for module in policy.model.modules()
        if isinstance(module, LoraLayer)
    ]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    assert max(float(theirs.abs().max()) for theirs in expected) > 100 * tolerance


def bank_of(policy: Policy, folder: Path, **settings: object) -> AdapterBank:
    return AdapterBank(AdaptersConfig(**settings), policy, folder, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_equal_adapters_are_merged_into_themselves(combination: str, rslora: bool, tmp_path: Path) -> None:
    """Whatever the adapters' scaling: peft works it into the weights."""
    policy = make_policy(r=4, alpha=16.0, use_rslora=rslora)
    perturb(policy)
    expected = changes_of(policy)
    for tasks in (["a"], ["a", "b", "c"]):
        bank = bank_of(policy, tmp_path / str(len(tasks)), combination=combination, density=1.0)
        for task in tasks:
            bank.keep(task, 1)
        bank.serve("", tasks)
        assert_same(changes_of(policy), expected)
        policy.load_adapter(bank.folder_of("a"))


def test_svd_is_the_mean_of_the_changes(tmp_path: Path) -> None:
    policy = make_policy(r=4, alpha=16.0)
    bank = bank_of(policy, tmp_path, combination="svd")
    changes = []
    for number, task in enumerate(("a", "b")):
        perturb(policy, seed=number, scale=0.2)
        for name, parameter in zip(policy.parameter_names(), policy.parameters(), strict=True):
            kept = slice(2 * number, 2 * number + 2)  # of rank 2 each, so that rank 4 holds both
            mask = torch.zeros(4)
            mask[kept] = 1
            parameter.data *= mask[:, None] if name.endswith("lora_A") else mask[None, :]
        bank.keep(task, 1)
        changes.append(changes_of(policy))
    bank.serve("", ["a", "b"])
    assert_same(changes_of(policy), [(a + b) / 2 for a, b in zip(*changes, strict=True)])
    assert (bank.merged / "adapter_config.json").exists()


def test_each_task_is_answered_by_its_own_and_training_goes_on_where_it_was(tmp_path: Path) -> None:
    policy = make_policy()
    policy.freeze_reference()
    bank = bank_of(policy, tmp_path, use="own")
    digests = {"start": policy.adapter_digest()}
    for number, task in enumerate(("a", "b")):
        assert bank.begin(task, ["a", "b"][:number]) == (number > 0)
        assert policy.adapter_digest() == digests["start"]  # init: start
        perturb(policy, seed=number)
        digests[task] = policy.adapter_digest()
        if task == "a":
            bank.keep("a", 3)
    bank.set_aside("b")
    for name in ("a", "b", "start"):
        bank.serve(name, ["a", "b"])
        assert policy.adapter_digest() == digests[name]
    bank.take_back()
    assert policy.adapter_digest() == digests["b"]
    bank.keep("b", 5)
    assert bank.begin("a", ["a", "b"])
    assert policy.adapter_digest() == digests["a"]


def test_a_bank_goes_back_to_what_a_checkpoint_knew(tmp_path: Path) -> None:
    policy = make_policy()
    bank = bank_of(policy, tmp_path, use="own")
    bank.keep("a", 3)
    then, state = policy.adapter_digest(), bank.state()
    state = {**state, "kept": dict(state["kept"])}
    perturb(policy)
    bank.keep("a", 6)
    again = bank_of(policy, tmp_path, use="own")
    again.restore(state)
    again.begin("a", ["a"])
    assert policy.adapter_digest() == then


def test_a_prompt_goes_where_it_resembles_whatever_else_is_asked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bank = bank_of(make_policy(), tmp_path, use="route")
    assert bank.route(rng.normal(size=(2, 40))) == ["", ""]
    centres = {name: rng.normal(size=40) * 4 for name in ("a", "b", "c")}
    for name, centre in centres.items():
        bank.remember(name, (centre + rng.normal(size=(30, 40))).astype(np.float32))
    asked = {name: (centre + rng.normal(size=(20, 40))).astype(np.float32) for name, centre in centres.items()}
    for name, points in asked.items():
        assert bank.route(points) == [name] * 20
        assert bank.route(points[:1]) == [name]
    restored = bank_of(make_policy(), tmp_path, use="route")
    restored.restore(bank.state())
    assert restored.route(asked["b"]) == ["b"] * 20
