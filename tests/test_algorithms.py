"""What all algorithms have in common: they learn, repeat themselves exactly, resume exactly, and stop before harm."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reward.types import Score
from rlsf.algorithms import create_algorithm
from rlsf.algorithms.diagnostics import TokenDiagnostics
from rlsf.algorithms.samples import TokenTensors, minibatches
from rlsf.algorithms.update import fail_with_batch
from rlsf.config.algorithms import DpoConfig, GrpoConfig, PpoConfig
from rlsf.errors import TrainingError
from rlsf.forward import PaddedBatch
from rlsf.policy import REFERENCE
from tests.tiny_policy import make_groups, make_policy, perturb, share_of

CONFIGS = {
    "grpo": GrpoConfig(learning_rate=1e-2),
    "ppo": PpoConfig(learning_rate=1e-2, value_learning_rate=1e-2),
    "dpo": DpoConfig(learning_rate=1e-2, pairs="all"),
}
every_algorithm = pytest.mark.parametrize("kind", CONFIGS)


def changed(config, **settings):
    return type(config).model_validate({**config.model_dump(), **settings})


def make(config, policy, folder: Path, *, total_steps: int = 20):
    if not policy.has_reference:
        policy.freeze_reference()
    return create_algorithm(config, policy, total_steps=total_steps, seed=3, dump_dir=folder / "failures")


def rewards_of(groups):
    return [reward for group in groups for reward in group.rewards]


def with_rewards(group, rewards):
    pairs = zip(group.experiences, rewards, strict=True)
    return replace(group, experiences=tuple(replace(e, score=Score(reward)) for e, reward in pairs))


@pytest.mark.parametrize("nats", [-100.0, -60.0, 50.0, 100.0])
def test_a_policy_far_from_its_samples_is_still_measured(nats: float):
    """Ratios whose squares, or which themselves, leave the range of single precision."""
    mask = torch.ones(1, 3)
    batch = PaddedBatch(torch.zeros(1, 2), mask[:, :2], torch.zeros(1, 3), mask)
    zeros = torch.zeros(1, 3)
    tokens = TokenTensors(batch, behaviour=zeros, reference=zeros, advantages=zeros, fresh=torch.tensor([True]))
    diagnostics = TokenDiagnostics()
    diagnostics.add(tokens, zeros + nats, zeros)
    metrics = diagnostics.metrics()
    assert metrics["train/fresh/ratio_mean"] == pytest.approx(math.exp(nats))
    assert metrics["train/fresh/ess"] == pytest.approx(1.0)
    assert metrics["policy/kl"] == pytest.approx(math.exp(-nats) - 1 + nats)


@every_algorithm
def test_it_learns_by_learning(kind: str, tmp_path: Path):
    """Share of one token in sampled completions, before and after a few updates on its own samples."""
    policy = make_policy()
    algorithm = make(changed(CONFIGS[kind], learning_rate=3e-2), policy, tmp_path)
    first = []
    for iteration in range(1, 13):
        groups = make_groups(policy, share_of(7), iteration=iteration, prompts=4, n=8, seed=iteration)
        first += rewards_of(groups) if iteration <= 2 else []
        algorithm.update(groups, iteration=iteration, seed=iteration)
    last = rewards_of(make_groups(policy, share_of(7), prompts=16, n=8, seed=99))
    assert np.mean(first) < 0.1
    assert np.mean(last) > np.mean(first) + 0.2


@every_algorithm
def test_the_same_run_twice_gives_the_same_adapter_bit_for_bit(kind: str, tmp_path: Path):
    digests = set()
    for _ in range(2):
        policy = make_policy(dropout=0.2)
        algorithm = make(changed(CONFIGS[kind], minibatches=2, epochs=2), policy, tmp_path)
        groups = make_groups(policy, share_of(7))
        torch.rand(3)  # whatever the global generator does in between
        algorithm.update(groups, iteration=1, seed=11)
        digests.add(policy.adapter_digest())
    assert len(digests) == 1
    policy = make_policy(dropout=0.2)
    algorithm = make(changed(CONFIGS[kind], minibatches=2, epochs=2), policy, tmp_path)
    algorithm.update(make_groups(policy, share_of(7)), iteration=1, seed=12)
    assert policy.adapter_digest() not in digests, "the seed has no effect on dropout"


@every_algorithm
def test_a_resumed_run_equals_one_that_was_left_alone_bit_for_bit(kind: str, tmp_path: Path):
    """Moments, schedule, critic, KL coefficient: anything forgotten shows in the second update."""
    config = changed(CONFIGS[kind], schedule="cosine", warmup_steps=1, epochs=2)
    if kind == "ppo":
        config = changed(config, kl_target=1.0, kl_horizon=20)

    def second(policy, algorithm, old):
        fresh = make_groups(policy, share_of(7), iteration=2, seed=2)
        return algorithm.update([*fresh, *old], iteration=2, seed=2)

    policy = make_policy(dropout=0.1)
    algorithm = make(config, policy, tmp_path)
    old = make_groups(policy, share_of(7), seed=1)
    perturb(policy, scale=0.02)
    algorithm.update(old, iteration=1, seed=1)
    policy.save(tmp_path / "policy")
    algorithm.save(tmp_path / "algorithm")
    result = second(policy, algorithm, old)

    resumed = make_policy(dropout=0.1, seed=8)
    resumed.load(tmp_path / "policy")
    other = make(config, resumed, tmp_path)
    other.load(tmp_path / "algorithm")
    assert second(resumed, other, old) == result
    assert resumed.adapter_digest() == policy.adapter_digest()
    if kind == "ppo":
        assert resumed.adapter_digest("value") == policy.adapter_digest("value")


@pytest.mark.parametrize(
    "config",
    [
        *(GrpoConfig(loss=loss, kl_coef=0.1) for loss in ("grpo", "bnpo", "dr_grpo", "dapo")),
        PpoConfig(),
        DpoConfig(pairs="all"),
    ],
    ids=lambda config: f"{config.kind}-{config.loss}" if config.kind == "grpo" else config.kind,
)
def test_the_step_does_not_depend_on_micro_batches(config, tmp_path: Path):
    results = []
    for budget in (8192, 64):
        policy = make_policy()
        groups = make_groups(policy, share_of(7), prompts=5)
        policy.freeze_reference()
        perturb(policy)
        algorithm = make(changed(config, micro_batch_tokens=budget), policy, tmp_path)
        results.append(algorithm.update(groups, iteration=1, seed=0).metrics)
    whole, split = results
    assert whole.keys() == split.keys()
    for name in whole:
        assert split[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6), name


@every_algorithm
def test_gradient_checkpointing_changes_nothing_but_memory(kind: str, tmp_path: Path):
    results = []
    for checkpointing in (False, True):
        policy = make_policy()
        algorithm = make(changed(CONFIGS[kind], gradient_checkpointing=checkpointing), policy, tmp_path)
        results.append(algorithm.update(make_groups(policy, share_of(7)), iteration=1, seed=0).metrics)
    for name, value in results[0].items():
        assert results[1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@every_algorithm
def test_a_bfloat16_base_can_be_trained(kind: str, tmp_path: Path):
    policy = make_policy(dtype="bfloat16")
    algorithm = make(CONFIGS[kind], policy, tmp_path)
    before = policy.adapter_digest()
    algorithm.update(make_groups(policy, share_of(7)), iteration=1, seed=0)
    assert policy.adapter_digest() != before
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}


@every_algorithm
def test_only_the_intended_weights_change(kind: str, tmp_path: Path):
    policy = make_policy()
    algorithm = make(CONFIGS[kind], policy, tmp_path)
    before = {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}
    for iteration in (1, 2):
        algorithm.update(make_groups(policy, share_of(7), iteration=iteration), iteration=iteration, seed=0)
    moved = {name for name, p in policy.model.named_parameters() if not torch.equal(before[name], p)}
    allowed = (".default.", ".value.") if kind == "ppo" else (".default.",)
    assert moved and all(any(adapter in name for adapter in allowed) for name in moved)
    assert policy.score_tokens([((3, 4), (5, 6))], adapter=REFERENCE) == make_policy().score_tokens([((3, 4), (5, 6))])


@every_algorithm
def test_replayed_rollouts_are_weighed_by_the_policy_that_sampled_them(kind: str, tmp_path: Path):
    """The ratio is not silently 1, and fresh and replayed tokens are told apart."""
    policy = make_policy()
    algorithm = make(CONFIGS[kind], policy, tmp_path)
    old = make_groups(policy, lambda rollout: float(rollout.completion_ids[0] % 2), iteration=1, seed=1)
    perturb(policy, scale=0.1)
    fresh = make_groups(policy, share_of(7), iteration=2, seed=2)
    trained = _trained(kind, old)
    now = policy.logprobs(trained)
    ratios = np.exp(np.concatenate([np.subtract(row, r.logprobs) for row, r in zip(now, trained, strict=True)]))
    metrics = algorithm.update([*fresh, *old], iteration=2, seed=0).metrics
    assert metrics["train/fresh/ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert metrics["train/fresh/ess"] == pytest.approx(1, abs=1e-4)
    assert ratios.std() > 0.1
    assert metrics["train/replayed/ratio_mean"] == pytest.approx(ratios.mean(), rel=1e-3)
    assert metrics["train/replayed/ess"] == pytest.approx(ratios.sum() ** 2 / len(ratios) / (ratios**2).sum(), rel=1e-3)
    k3 = (ratios - 1 - np.log(ratios)).mean()
    assert metrics["train/replayed/kl_behaviour"] == pytest.approx(k3, rel=1e-3)
    if kind != "dpo":
        assert metrics["train/replayed/clip_fraction"] > 0 == metrics["train/fresh/clip_fraction"]


def _trained(kind: str, groups):
    """The rollouts whose tokens enter the loss, as often as they do."""
    if kind == "ppo":
        return [e.rollout for group in groups for e in group.experiences]
    informative = [group for group in groups if len(set(group.rewards)) > 1]
    if kind == "grpo":
        return [e.rollout for group in informative for e in group.experiences]
    pairs = []
    for group in informative:
        ordered = sorted(group.experiences, key=lambda e: e.score.value, reverse=True)
        found = [(a, b) for i, a in enumerate(ordered) for b in ordered[i + 1 :] if a.score.value > b.score.value]
        found.sort(key=lambda pair: pair[0].score.value - pair[1].score.value, reverse=True)
        pairs += found[:4]
    return [e.rollout for pair in pairs for e in pair]


@pytest.mark.parametrize("kind", ["grpo", "dpo"])
def test_groups_without_signal_are_skipped(kind: str, tmp_path: Path):
    policy = make_policy()
    algorithm = make(CONFIGS[kind], policy, tmp_path)
    groups = make_groups(policy, share_of(7), prompts=4, n=4)
    rewards = [[1.0] * 4, [None] * 4, [None, 1.0, None, None], [1.0, None, 1.0, 0.0]]
    groups = [with_rewards(group, values) for group, values in zip(groups, rewards, strict=True)]
    before = policy.adapter_digest()
    idle = algorithm.update(groups[:3], iteration=1, seed=0)
    assert policy.adapter_digest() == before
    assert idle.metrics["train/skipped_groups"] == 3 and "train/loss" not in idle.metrics
    result = algorithm.update(groups, iteration=1, seed=0)
    assert result.metrics["train/skipped_groups"] == 3 and result.metrics["train/groups"] == 1
    assert [result.priorities[group.id] > 0 for group in groups] == [False, False, False, True]


@every_algorithm
def test_rollouts_without_an_opinion_have_no_part_in_the_update(kind: str, tmp_path: Path):
    """An update with them equals one in which they were never sampled."""
    digests = set()
    for drop in (False, True):
        policy = make_policy()
        algorithm = make(CONFIGS[kind], policy, tmp_path)
        groups = [with_rewards(g, [1.0, None, 0.0, None]) for g in make_groups(policy, share_of(7), prompts=2)]
        if drop:
            groups = [replace(g, experiences=(g.experiences[0], g.experiences[2])) for g in groups]
        algorithm.update(groups, iteration=1, seed=0)
        digests.add(policy.adapter_digest())
    assert len(digests) == 1


@every_algorithm
@pytest.mark.parametrize("broken", ["reward", "logprobs"])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_change(kind: str, broken: str, tmp_path: Path):
    policy = make_policy()
    algorithm = make(CONFIGS[kind], policy, tmp_path)
    groups = make_groups(policy, lambda rollout: float(rollout.completion_ids[0] % 2), prompts=4, n=8)
    first = groups[0].experiences[0]
    if broken == "reward":
        bad = replace(first, score=Score(math.nan))
    else:
        length = len(first.rollout.completion_ids)
        nan = (math.nan,) * length
        bad = replace(first, rollout=replace(first.rollout, logprobs=nan), reference_logprobs=nan)
        bad = replace(bad, score=Score(5.0))  # sure to be in a pair
    groups[0] = replace(groups[0], experiences=(bad, *groups[0].experiences[1:]))
    before = policy.adapter_digest()
    with pytest.raises(TrainingError, match="iteration 1") as error:
        algorithm.update(groups, iteration=1, seed=0)
    assert policy.adapter_digest() == before
    assert not policy.model.training
    (path,) = (tmp_path / "failures").iterdir()
    assert str(path) in str(error.value)
    saved = json.loads(path.read_text())
    assert first.rollout.id in {row["rollout_id"] for row in saved["batch"]}
    assert all(row["completion_ids"] and row["group_id"] for row in saved["batch"])


def test_the_reason_is_kept_where_the_batch_cannot_be(tmp_path: Path):
    (tmp_path / "failures").write_text("no folder, as on a full disk")
    with pytest.raises(
        TrainingError, match=r"iteration 3: the loss is nan, .* cannot be saved in .*lower the learning"
    ):
        fail_with_batch(tmp_path / "failures", "iteration 3", [])("the loss is nan")


def test_missing_reference_log_probabilities_are_computed_and_given_ones_are_kept(tmp_path: Path):
    results = []
    for given in (False, True):
        policy = make_policy()
        groups = make_groups(policy, share_of(7))
        algorithm = make(GrpoConfig(kl_coef=0.5), policy, tmp_path)
        perturb(policy)
        if given:
            rows = iter(policy.logprobs([e.rollout for g in groups for e in g.experiences], adapter=REFERENCE))
            groups = [
                replace(g, experiences=tuple(replace(e, reference_logprobs=tuple(next(rows))) for e in g.experiences))
                for g in groups
            ]
        results.append(algorithm.update(groups, iteration=1, seed=0).metrics)
    assert results[0]["policy/kl"] > 0
    for name, value in results[0].items():
        assert results[1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_minibatches_cover_everything_once_and_tear_no_group_apart():
    groups = [[(group, member) for member in range(3)] for group in range(7)]
    parts = list(minibatches(groups, 3, seed=1, epoch=0))
    assert len(parts) == 3
    assert sorted(member for part in parts for member in part) == [member for group in groups for member in group]
    assert all({(g, m) for g, _ in part for m in range(3)} == set(part) for part in parts)
    assert parts == list(minibatches(groups, 3, seed=1, epoch=0)) != list(minibatches(groups, 3, seed=1, epoch=1))
    assert len(list(minibatches(groups[:2], 5, seed=0, epoch=0))) == 2
    assert list(minibatches([], 3, seed=0, epoch=0)) == []


def test_the_schedule_lives_for_the_whole_run(tmp_path: Path):
    policy = make_policy()
    config = GrpoConfig(learning_rate=1e-2, schedule="linear", warmup_steps=2)
    algorithm = make(config, policy, tmp_path, total_steps=6)
    rates = [
        algorithm.update(make_groups(policy, share_of(7), iteration=i), iteration=i, seed=i).metrics[
            "train/learning_rate"
        ]
        for i in range(1, 7)
    ]
    np.testing.assert_allclose(rates, [0, 0.005, 0.01, 0.0075, 0.005, 0.0025], atol=1e-9)
