"""Each strategy against a computation of its own, and at work in an update."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from reward.types import Score
from rlsf import forward
from rlsf.algorithms.additions import Additions, PartWeights, SampleWeight
from rlsf.algorithms.base import create_algorithm
from rlsf.config.algorithms import DpoConfig, GrpoConfig, PpoConfig
from rlsf.config.schema import RunConfig
from rlsf.config.strategies import ContinualConfig, CppoConfig, EwcConfig, L2Config, LayersConfig, OrthogonalConfig
from rlsf.continual.cppo import cppo_weights
from rlsf.continual.fisher import fisher_diagonal
from rlsf.continual.layers import layer_of, layer_rates
from rlsf.continual.penalties import EwcPenalty, L2Penalty, OrthogonalBlocks
from rlsf.continual.strategies import Strategies, newest_experiences
from rlsf.errors import ConfigError
from rlsf.experience import Experience, Group, in_turn
from rlsf.policy import LAST, POLICY, Policy
from tests.tiny_policy import make_groups, make_policy, perturb

ALGORITHMS = {"grpo": GrpoConfig, "ppo": PpoConfig, "dpo": DpoConfig}


def policy_and_groups(**settings: object) -> tuple[Policy, list[Group]]:
    policy = make_policy()
    perturb(policy)
    policy.freeze_reference()
    return policy, make_groups(policy, lambda rollout: sum(rollout.completion_ids) % 7 / 7, **settings)


def experiences_of(groups: Sequence[Group]) -> list[Experience]:
    return [experience for group in groups for experience in group.experiences]


# -- Fisher information ------------------------------------------------------------------------------------------------


def test_fisher_is_the_mean_of_squares_and_not_the_square_of_the_mean() -> None:
    """Against gradients from the model's own logits, one completion at a time."""
    policy, groups = policy_and_groups(prompts=2, n=2)
    experiences = experiences_of(groups)
    squares = [torch.zeros_like(parameter) for parameter in policy.parameters()]
    for experience in experiences:
        rollout = experience.rollout
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
        log_probs = policy.causal_lm(input_ids=ids).logits[0, :-1].log_softmax(-1)
        start = len(rollout.prompt_ids) - 1
        chosen = sum(log_probs[start + t, token] for t, token in enumerate(rollout.completion_ids))
        for square, gradient in zip(squares, torch.autograd.grad(chosen, policy.parameters()), strict=True):
            square += gradient**2 / len(experiences)
    found = fisher_diagonal(policy, experiences)
    for ours, theirs in zip(found, squares, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-10)
    assert all(parameter.grad is None for parameter in policy.parameters())
    with pytest.raises(ValueError, match="at least one"):
        fisher_diagonal(policy, [])


def test_fisher_agrees_with_the_curvature_of_the_kl_divergence() -> None:
    """KL(π_θ ‖ π_θ+δ) = ½ δᵀFδ to second order. One token, all of the vocabulary: no sampling error on either side."""
    policy, [group] = policy_and_groups(prompts=1, n=1, max_tokens=1)
    [experience] = group.experiences
    rollout = experience.rollout
    batch = forward.collate([(rollout.prompt_ids, (0,))], policy.pad_id, policy.device)
    hidden = forward.completion_hidden_states(policy.causal_lm, batch)[:, 0]
    log_p = forward.logits(policy.causal_lm, hidden).log_softmax(-1)[0].double()
    parameter = next(p for p in policy.parameters() if p.abs().sum() > 0)
    diagonal = torch.zeros_like(parameter, dtype=torch.double)
    for token, log_probability in enumerate(log_p):
        gradient = torch.autograd.grad(log_p[token], parameter, retain_graph=True)[0].double()
        diagonal += log_probability.exp().detach() * gradient**2
    index = np.unravel_index(int(diagonal.argmax()), diagonal.shape)
    step = 0.05
    with torch.no_grad():
        parameter[index] += step
        moved = forward.logits(policy.causal_lm, forward.completion_hidden_states(policy.causal_lm, batch)[:, 0])
        divergence = (log_p.exp() * (log_p - moved.log_softmax(-1)[0].double())).sum()
        parameter[index] -= step
    assert divergence.item() == pytest.approx(0.5 * float(diagonal[index]) * step**2, rel=0.1)
    sampled = [
        fisher_diagonal(policy, [replace(experience, rollout=replace(rollout, completion_ids=(token,)))])
        for token in range(len(log_p))
    ]
    position = [p is parameter for p in policy.parameters()].index(True)
    expected = sum(p.exp() * one[position] for p, one in zip(log_p.detach(), sampled, strict=True))
    torch.testing.assert_close(expected.double(), diagonal, rtol=1e-4, atol=1e-12)


# -- penalties on the weights ------------------------------------------------------------------------------------------


def weights(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def test_l2_pulls_to_where_the_last_task_ended() -> None:
    parameters = weights((2, 3), (4,))
    penalty = L2Penalty(L2Config(coef=0.4), parameters)
    assert penalty() is None
    penalty.consolidate()
    parameters[0].data += 2.0
    value = penalty()
    assert value is not None and value.item() == pytest.approx(0.5 * 0.4 * 6 * 4.0)
    value.backward()
    assert torch.allclose(parameters[0].grad, torch.full((2, 3), 0.4 * 2.0))
    again = L2Penalty(L2Config(coef=0.4), parameters)
    again.load_state_dict(penalty.state_dict())
    assert again().item() == value.item()


def test_ewc_holds_what_mattered_and_forgets_slowly() -> None:
    parameters = weights((2,))
    penalty = EwcPenalty(EwcConfig(coef=2.0, decay=0.5, normalize=False), parameters)
    assert penalty() is None
    penalty.consolidate([torch.tensor([4.0, 0.0])])
    parameters[0].data += torch.tensor([1.0, 10.0])
    assert penalty().item() == pytest.approx(0.5 * 2.0 * 4.0)
    penalty.consolidate([torch.tensor([0.0, 1.0])])  # F = 0.5 · (4, 0) + (0, 1), anchored anew
    parameters[0].data += torch.tensor([1.0, 3.0])
    assert penalty().item() == pytest.approx(0.5 * 2.0 * (2.0 * 1 + 1.0 * 9))
    scaled = EwcPenalty(EwcConfig(coef=1.0, normalize=True), parameters)
    scaled.consolidate([torch.tensor([3e-9, 1e-9])])
    torch.testing.assert_close(scaled.fisher[0], torch.tensor([1.5, 0.5]))
    nothing = EwcPenalty(EwcConfig(), parameters)
    nothing.consolidate([torch.zeros(2)])
    assert nothing().item() == 0.0


def test_the_orthogonal_penalty_against_loops_and_its_guard() -> None:
    names = ["layers.0.q.lora_A", "layers.0.q.lora_B", "layers.1.q.lora_A", "layers.1.q.lora_B"]
    parameters = weights((6, 5), (7, 6), (6, 4), (3, 6))
    blocks = OrthogonalBlocks(OrthogonalConfig(rank=2, coef=0.3), parameters, names)
    assert blocks.blocks == 3
    assert blocks.begin("a") and blocks() is None
    assert blocks.begin("b") and blocks.begin("c")
    expected = 0.0
    for a in (parameters[0].detach().numpy(), parameters[2].detach().numpy()):
        for row in a[4:6]:
            for other in a[:4]:
                expected += (row @ other / np.linalg.norm(row) / np.linalg.norm(other)) ** 2
    assert blocks().item() == pytest.approx(0.3 * expected, rel=1e-5)

    plain = OrthogonalBlocks(OrthogonalConfig(rank=2, coef=0.3, normalize=False), parameters, names)
    for task in "abc":
        plain.begin(task)
    before, guarded = plain().item(), blocks().item()
    with torch.no_grad():
        for parameter in (parameters[0], parameters[2]):
            parameter[4:6] *= 1e-3
    assert plain().item() == pytest.approx(1e-6 * before, rel=1e-3)  # the way out that the guard closes
    assert blocks().item() == pytest.approx(guarded, rel=1e-4)
    gradients = torch.autograd.grad(blocks(), [parameters[0]])[0]
    assert not gradients[:4].any() and gradients[4:].any()  # the earlier blocks are not pushed
    assert abs(float((gradients[4] * parameters[0][4]).sum())) < 1e-5  # nor is the length of a row


def test_a_task_that_comes_back_gets_its_own_block_and_the_last_one_is_shared() -> None:
    names, parameters = ["q.lora_A", "q.lora_B"], weights((4, 5), (7, 4))
    blocks = OrthogonalBlocks(OrthogonalConfig(rank=2), parameters, names)
    assert [blocks.begin(task) for task in ("a", "b", "a", "c")] == [True, True, True, False]
    assert blocks.block == 1
    mask_a, mask_b = blocks.rates()
    assert mask_a.shape == (4, 1) and mask_b.shape == (1, 4)
    assert mask_a.flatten().tolist() == mask_b.flatten().tolist() == [0, 0, 1, 1]
    again = OrthogonalBlocks(OrthogonalConfig(rank=2), parameters, names)
    again.load_state_dict(blocks.state_dict())
    assert again.begin("a") and again.block == 0


# -- layers ------------------------------------------------------------------------------------------------------------


def test_rates_of_layers() -> None:
    names = [f"model.layers.{layer}.q.lora_A" for layer in (0, 1, 2)]
    assert [layer_of(name) for name in names] == [0, 1, 2]
    assert layer_of("transformer.h.11.attn.lora_B") == 11
    assert layer_rates(LayersConfig(freeze=(0, -1), decay=0.5), names, None) == [0.0, 0.5, 0.0]
    fisher = [torch.full((2,), value) for value in (4.0, 1.0, 1.0)]  # mean 2: layer 0 matters twice as much as the mean
    assert layer_rates(LayersConfig(importance=3.0), names, fisher) == pytest.approx([1 / 7, 1 / 2.5, 1 / 2.5])
    assert layer_rates(LayersConfig(importance=3.0), names, [torch.zeros(2)] * 3) == [1.0, 1.0, 1.0]
    with pytest.raises(ConfigError, match="no numbered layer"):
        layer_of("lm_head.lora_A")
    with pytest.raises(ConfigError, match="layers 0 to 1, and no 2"):
        Strategies(ContinualConfig(layers=LayersConfig(freeze=(2,))), make_policy(), micro_batch_tokens=512)


def test_frozen_layers_do_not_move_from_the_task_on_that_is_named(tmp_path: Path) -> None:
    policy, groups = policy_and_groups()
    strategies = Strategies(
        ContinualConfig(layers=LayersConfig(freeze=(0,), from_task=2)), policy, micro_batch_tokens=512
    )
    algorithm = create_algorithm(
        GrpoConfig(learning_rate=1e-2, weight_decay=0.1),
        policy,
        total_steps=9,
        seed=0,
        dump_dir=tmp_path,
        additions=strategies,
    )

    def moved() -> dict[str, bool]:
        before = [parameter.detach().clone() for parameter in policy.parameters()]
        algorithm.update(groups, iteration=1, seed=0)
        changed = [not torch.equal(old, new) for old, new in zip(before, policy.parameters(), strict=True)]
        return dict(zip(policy.parameter_names(), changed, strict=True))

    strategies.begin_task("a")
    assert all(moved().values())
    strategies.end_task([])
    strategies.begin_task("b")
    for name, changed in moved().items():
        assert changed == (".layers.1." in f".{name}"), name


def test_a_factor_of_the_rate_is_what_a_smaller_rate_would_do(tmp_path: Path) -> None:
    class Halved(Additions):
        def rates(self) -> Sequence[Tensor]:
            return [torch.tensor(0.5)] * len(policy.parameters())

    results = []
    for rate, additions in ((1e-2, True), (5e-3, False)):
        policy, groups = policy_and_groups()
        algorithm = create_algorithm(
            GrpoConfig(learning_rate=rate, weight_decay=0.1),
            policy,
            total_steps=9,
            seed=0,
            dump_dir=tmp_path,
            additions=Halved() if additions else Additions(),
        )
        for seed in range(2):
            algorithm.update(groups, iteration=1, seed=seed)
        results.append([parameter.detach().clone() for parameter in policy.parameters()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


# -- weights of samples and of parts -----------------------------------------------------------------------------------


class Recording(Additions):
    """Keeps the gradient of a step, before it is clipped."""

    def __init__(self, policy: Policy, parts: PartWeights | None = None, weights: SampleWeight | None = None) -> None:
        self.part_weights = parts
        self._policy = policy
        self._weights = weights
        self.gradient = torch.zeros(0)

    def rates(self) -> None:
        self.gradient = torch.cat([p.grad.flatten().clone() for p in self._policy.parameters() if p.grad is not None])

    def weigh(self, experiences: Sequence[Experience]) -> Mapping[str, SampleWeight]:
        return {e.rollout.id: self._weights for e in experiences} if self._weights is not None else {}


def gradient(
    kind: str,
    folder: Path,
    chosen: slice,
    parts: PartWeights | None = None,
    weight: SampleWeight | None = None,
    **settings: object,
) -> Tensor:
    policy, groups = policy_and_groups(prompts=6)
    recording = Recording(policy, parts, weight)
    config = ALGORITHMS[kind](max_grad_norm=1e6, **settings)
    algorithm = create_algorithm(config, policy, total_steps=1, seed=0, dump_dir=folder, additions=recording)
    earlier = {group.id for group in groups[:2]}
    algorithm.update(groups[chosen], iteration=1, seed=0, earlier=earlier)
    return recording.gradient


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("grpo", {"kl_coef": 0.1, "micro_batch_tokens": 64}),
        ("grpo", {"loss": "grpo"}),
        ("grpo", {"loss": "bnpo", "micro_batch_tokens": 64}),
        ("grpo", {"loss": "dr_grpo"}),
        ("ppo", {"whiten_advantages": False}),
        ("dpo", {"micro_batch_tokens": 64}),
    ],
)
def test_transfer_is_the_weighted_sum_of_two_losses(kind: str, settings: dict[str, object], tmp_path: Path) -> None:
    """Two of six groups are of an earlier task: source · L_s + target · L_t, each averaged by itself."""
    source = gradient(kind, tmp_path, slice(0, 2), **settings)
    target = gradient(kind, tmp_path, slice(2, 6), **settings)
    both = gradient(kind, tmp_path, slice(0, 6), PartWeights(0.3, 2.0), **settings)
    torch.testing.assert_close(both, 0.3 * source + 2.0 * target, rtol=1e-3, atol=1e-7)
    pooled = gradient(kind, tmp_path, slice(0, 6), **settings)
    assert not torch.allclose(pooled, both, rtol=1e-2)


def test_weights_of_samples_scale_their_advantages_and_hold_on_to_the_reference(tmp_path: Path) -> None:
    plain = gradient("grpo", tmp_path, slice(0, 6), kl_coef=0.0)
    doubled = gradient("grpo", tmp_path, slice(0, 6), weight=SampleWeight(learning=2.0), kl_coef=0.0)
    torch.testing.assert_close(doubled, 2 * plain, rtol=1e-3, atol=1e-7)
    held = gradient("grpo", tmp_path, slice(0, 6), weight=SampleWeight(learning=0.0, retention=1.0), kl_coef=1e-9)
    assert float(held.abs().max()) < 1e-6  # the policy is the reference: nothing to go back to


def test_retention_is_the_squared_distance_from_the_reference(tmp_path: Path) -> None:
    policy, groups = policy_and_groups(prompts=2)
    perturb(policy, seed=3)
    experiences = experiences_of(groups)
    sequences = [(e.rollout.prompt_ids, e.rollout.completion_ids) for e in experiences]
    now, then = policy.score_tokens(sequences), policy.score_tokens(sequences, adapter="reference")
    count = sum(len(row) for row in now)
    expected = sum(((np.array(a) - np.array(b)) ** 2).sum() for a, b in zip(now, then, strict=True)) / count
    recording = Recording(policy, weights=SampleWeight(learning=0.0, retention=1.0))
    algorithm = create_algorithm(
        GrpoConfig(kl_coef=1e-9), policy, total_steps=1, seed=0, dump_dir=tmp_path, additions=recording
    )
    update = algorithm.update(groups, iteration=1, seed=0)
    assert update.metrics["train/loss"] == pytest.approx(expected, rel=1e-3)


def test_cppo_weights_of_every_kind_of_sample() -> None:
    _, [group, *_] = policy_and_groups(prompts=1, n=5)
    cases = {  # mean log-probability and reward; the last one is in the middle of both
        "knowledge": (-0.1, 1.0),
        "ingrained mistake": (-0.1, 0.0),
        "lucky find": (-4.0, 1.0),
        "noise": (-4.0, 0.0),
        "normal": (-2.05, 0.5),
    }
    experiences = [
        replace(
            e,
            rollout=replace(e.rollout, id=name, logprobs=(likelihood,) * len(e.rollout.completion_ids)),
            score=Score(reward),
        )
        for e, (name, (likelihood, reward)) in zip(group.experiences, cases.items(), strict=True)
    ]
    config = CppoConfig(spread=0.5, more=2.0, less=0.25, coef=0.1)
    found = {name: (w.learning, w.retention) for name, w in cppo_weights(config, experiences).items()}
    assert found == {
        "knowledge": (2.0, pytest.approx(0.2)),
        "ingrained mistake": (2.0, pytest.approx(0.025)),
        "lucky find": (2.0, pytest.approx(0.025)),
        "noise": (0.25, pytest.approx(0.025)),
        "normal": (1.0, 0.1),
    }
    alike = [replace(e, score=Score(0.5)) for e in experiences]
    assert {w.learning for w in cppo_weights(config, alike).values()} == {1.0}
    unscored = [replace(e, score=Score(None)) for e in experiences]
    assert cppo_weights(config, unscored) == {}


# -- distillation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_distillation_is_the_mean_divergence_from_the_last_policy(direction: str) -> None:
    policy, groups = policy_and_groups(prompts=3)
    config = ContinualConfig(distill={"coef": 0.5, "groups": 3, "direction": direction})
    strategies = Strategies(config, policy, micro_batch_tokens=40)
    assert strategies.distilled_groups == 0
    strategies.end_task([])
    assert strategies.distilled_groups == 3
    strategies.replay(groups)
    assert sum(value.item() for value in strategies.penalties()) == pytest.approx(0, abs=1e-7)
    perturb(policy, seed=5, scale=0.1)
    divergences = [d for e in experiences_of(groups) for d in divergences_from_last(policy, e, direction)]
    values = list(strategies.penalties())
    assert len(values) > 1  # in micro-batches
    assert sum(value.item() for value in values) == pytest.approx(0.5 * np.mean(divergences), rel=1e-4)
    assert strategies.metrics()["continual/distill"] == pytest.approx(np.mean(divergences), rel=1e-4)


def divergences_from_last(
    policy: Policy, experience: Experience, direction: str, *, temperature: float = 1.0
) -> list[float]:
    rollout = experience.rollout
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
    rows = slice(len(rollout.prompt_ids) - 1, ids.shape[1] - 1)
    with torch.no_grad():
        log_p = (policy.causal_lm(input_ids=ids).logits[0, rows] / temperature).log_softmax(-1)
        with policy.using(LAST):
            log_q = (policy.causal_lm(input_ids=ids).logits[0, rows] / temperature).log_softmax(-1)
    first, second = (log_q, log_p) if direction == "forward" else (log_p, log_q)
    return (first.exp() * (first - second)).sum(-1).tolist()


def test_distillation_compares_on_some_completions_a_step_and_on_each_in_its_turn() -> None:
    policy, groups = policy_and_groups(prompts=3)
    strategies = Strategies(ContinualConfig(distill={"batch_size": 5}), policy, micro_batch_tokens=4096)
    strategies.end_task([])
    perturb(policy, seed=5, scale=0.1)
    turns = in_turn(groups)
    assert [e.rollout.group_id for e in turns[:3]] == [group.id for group in groups]
    assert sorted(e.rollout.id for e in turns) == sorted(e.rollout.id for e in experiences_of(groups))
    strategies.replay(groups)
    for first in (0, 5, 10):
        compared = [turns[i % len(turns)] for i in range(first, first + 5)]
        expected = np.mean([d for e in compared for d in divergences_from_last(policy, e, "forward")])
        assert sum(value.item() for value in strategies.penalties()) == pytest.approx(expected, rel=1e-4)


def test_distillation_brings_the_policy_back(tmp_path: Path) -> None:
    """Against rewards that have nothing to do with the answers."""
    policy, groups = policy_and_groups(prompts=3)
    flat = [
        replace(
            group, experiences=tuple(replace(e, score=Score(index % 2)) for index, e in enumerate(group.experiences))
        )
        for group in groups
    ]
    strategies = Strategies(ContinualConfig(distill={"coef": 50.0}), policy, micro_batch_tokens=512)
    strategies.end_task([])
    perturb(policy, seed=5, scale=0.1)
    algorithm = create_algorithm(
        GrpoConfig(learning_rate=1e-2), policy, total_steps=30, seed=0, dump_dir=tmp_path, additions=strategies
    )
    distances = []
    for step in range(30):
        strategies.replay(groups)
        algorithm.update(flat, iteration=1, seed=step)
        distances.append(strategies.metrics()["continual/distill"])
    assert distances[-1] < 0.2 * distances[0]


# -- all together ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALGORITHMS)
@pytest.mark.parametrize("strategy", ["l2", "ewc"])
def test_a_strong_pull_keeps_every_algorithm_where_it_was(kind: str, strategy: str, tmp_path: Path) -> None:
    moved = {}
    for coef in (None, 1e6):
        policy, groups = policy_and_groups()
        section = {} if coef is None else {strategy: {"coef": coef}}
        strategies = Strategies(ContinualConfig(**section), policy, micro_batch_tokens=512)
        strategies.end_task(experiences_of(groups))
        start = [parameter.detach().clone() for parameter in policy.parameters()]
        algorithm = create_algorithm(
            ALGORITHMS[kind](learning_rate=1e-3),
            policy,
            total_steps=20,
            seed=0,
            dump_dir=tmp_path,
            additions=strategies,
        )
        for step in range(20):
            algorithm.update(groups, iteration=1, seed=step)
        distance = sum(float(((a - b) ** 2).sum()) for a, b in zip(start, policy.parameters(), strict=True))
        moved[coef] = distance**0.5
    assert moved[1e6] < 0.5 * moved[None]


def test_the_reference_moves_with_the_task_where_it_should() -> None:
    policy, _ = policy_and_groups()
    strategies = Strategies(ContinualConfig(reference="last_task"), policy, micro_batch_tokens=512)
    perturb(policy, seed=9)
    assert policy.adapter_digest("reference") != policy.adapter_digest(POLICY)
    strategies.end_task([])
    for ours, theirs in zip(policy.parameters("reference"), policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_strategies_go_on_where_they_were_saved(tmp_path: Path) -> None:
    config = ContinualConfig(
        l2={}, ewc={}, distill={}, orthogonal={"rank": 2}, layers={"importance": 1.0, "from_task": 2}
    )
    policy, groups = policy_and_groups()
    strategies = Strategies(config, policy, micro_batch_tokens=512)
    for task in ("a", "b"):
        strategies.begin_task(task)
        strategies.end_task(experiences_of(groups))
        perturb(policy, seed=len(task))
    strategies.save(tmp_path)
    again = Strategies(config, policy, micro_batch_tokens=512)
    again.load(tmp_path)
    for one in (strategies, again):
        one.begin_task("c")
        one.replay(groups)
    assert [v.item() for v in strategies.penalties()] == [v.item() for v in again.penalties()]
    ours, theirs = strategies.rates(), again.rates()
    assert ours is not None and theirs is not None
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_newest_completions_come_from_as_many_groups_as_there_are() -> None:
    _, groups = policy_and_groups(prompts=3, n=4)

    def newest() -> Iterator[Group]:
        yield from groups

    found = newest_experiences(newest(), 5)
    assert [e.rollout.group_id for e in found] == [groups[i].id for i in (0, 1, 2, 0, 1)]
    assert len(newest_experiences(newest(), 99)) == 12
    assert [e.rollout.group_id for e in newest_experiences(newest(), 2)] == [groups[0].id, groups[1].id]


# -- what went unnoticed once ------------------------------------------------------------------------------------------


def test_fisher_and_distillation_leave_dropout_off_and_keep_the_temperature() -> None:
    policy = make_policy(dropout=0.5)
    perturb(policy, scale=0.2)
    groups = make_groups(policy, lambda rollout: 0.0, prompts=2, temperature=0.5)
    experiences = experiences_of(groups)
    strategies = Strategies(ContinualConfig(distill={}), policy, micro_batch_tokens=512)
    strategies.end_task([])
    strategies.replay(groups)
    calm = fisher_diagonal(policy, experiences)
    with policy.training():
        for ours, theirs in zip(fisher_diagonal(policy, experiences), calm, strict=True):
            torch.testing.assert_close(ours, theirs)
        assert policy.model.training
    warmer = [
        replace(e, rollout=replace(e.rollout, sampling=replace(e.rollout.sampling, temperature=1.0)))
        for e in experiences
    ]
    assert not torch.allclose(fisher_diagonal(policy, warmer)[0], calm[0], rtol=0.05)
    assert sum(value.item() for value in strategies.penalties()) == pytest.approx(0, abs=1e-7)
    with policy.training():  # the policy's own dropout is on, the last one's is off
        targets = [strategies._distillation._target(batch_of(policy, experiences)) for _ in range(2)]  # type: ignore[union-attr]
    torch.testing.assert_close(*targets, rtol=0, atol=0)
    perturb(policy, seed=3, scale=0.2)
    value = sum(value.item() for value in strategies.penalties())
    expected = [d for e in experiences for d in divergences_from_last(policy, e, "forward", temperature=0.5)]
    assert value == pytest.approx(np.mean(expected), rel=1e-3)


def batch_of(policy: Policy, experiences: Sequence[Experience]) -> forward.PaddedBatch:
    return forward.collate(
        [(e.rollout.prompt_ids, e.rollout.completion_ids) for e in experiences], policy.pad_id, policy.device
    )


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_retention_holds_on_without_a_kl_penalty_and_from_the_second_task_on(kind: str, tmp_path: Path) -> None:
    def trained(coef: float, *, ended: bool, budget: int = 4096) -> str:
        policy, groups = policy_and_groups(prompts=3, n=4)
        config = ContinualConfig(reference="last_task", cppo={"coef": coef})
        strategies = Strategies(config, policy, micro_batch_tokens=512)
        if ended:
            strategies.end_task([])
        perturb(policy, seed=5, scale=0.1)
        settings = {"learning_rate": 1e-2, "micro_batch_tokens": budget, "kl_coef": 0.0}
        algorithm = create_algorithm(
            ALGORITHMS[kind](**settings), policy, total_steps=3, seed=0, dump_dir=tmp_path, additions=strategies
        )
        assert algorithm.needs_reference == (coef > 0)
        update = algorithm.update(groups, iteration=1, seed=0)
        assert ("continual/retention" in update.metrics) == (coef > 0 and ended)
        return policy.adapter_digest()

    without = trained(0.0, ended=True)
    assert trained(10.0, ended=False) == without  # there is no policy of a task before to hold on to
    assert trained(10.0, ended=True) != without


def test_retention_is_the_same_in_micro_batches(tmp_path: Path) -> None:
    found = []
    for budget in (4096, 64):
        policy, groups = policy_and_groups(prompts=3, n=4)
        strategies = Strategies(
            ContinualConfig(reference="last_task", cppo={"coef": 5.0}), policy, micro_batch_tokens=512
        )
        strategies.end_task([])
        perturb(policy, seed=5, scale=0.1)
        config = GrpoConfig(learning_rate=1e-2, micro_batch_tokens=budget)
        algorithm = create_algorithm(config, policy, total_steps=3, seed=0, dump_dir=tmp_path, additions=strategies)
        metrics = algorithm.update(groups, iteration=1, seed=0).metrics
        found.append((metrics["train/loss"], metrics["train/grad_norm"], metrics["continual/retention"]))
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert found[0][2] > 0


def test_equal_rewards_are_neither_high_nor_low() -> None:
    _, groups = policy_and_groups(prompts=3)
    for reward in (0.1, 0.7, 1 / 3, -0.1, 0.0):
        equal = [replace(e, score=Score(reward)) for e in experiences_of(groups)]
        assert {(w.learning, w.retention) for w in cppo_weights(CppoConfig(), equal).values()} == {(1.0, 0.1)}, reward


def test_layers_matter_for_all_tasks_so_far() -> None:
    policy, groups = policy_and_groups(prompts=3)
    config = ContinualConfig(layers={"importance": 1.0})
    both, last = (Strategies(config, policy, micro_batch_tokens=512) for _ in range(2))
    first, second = experiences_of(groups)[:4], experiences_of(groups)[4:8]
    both.end_task(first)
    both.end_task(second)
    last.end_task(second)
    expected = [a + b for a, b in zip(fisher_diagonal(policy, first), fisher_diagonal(policy, second), strict=True)]
    found = both._importance
    assert found is not None
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stream": {"kind": "joint"}, "continual": {"l2": {}}}, "continual.l2: in a joint stream"),
        ({"stream": {"kind": "joint"}, "continual": {"adapters": {}}}, "continual.adapters: in a joint stream"),
        (
            {"stream": {"kind": "joint"}, "warm_start": {"tasks": "each"}},
            "warm_start.tasks: in a joint stream no task begins",
        ),
        ({"continual": {"reference": "last_task"}}, "continual.reference: nothing is compared with it"),
        ({"continual": {"transfer": {}}}, "continual.transfer: without replay"),
        ({"continual": {"adapters": {"init": "start"}, "ewc": {}}}, "it holds on to the last task's policy"),
    ],
)
def test_what_would_do_nothing_is_refused(settings: Mapping[str, object], message: str) -> None:
    source = {"kind": "reasoning_gym", "dataset": "chain_sum", "size": 400}
    tasks = [{"name": name, "source": source} for name in "ab"]
    with pytest.raises(ValidationError, match=message):
        RunConfig(name="r", tasks=tasks, reward={"kind": "majority"}, **settings)  # type: ignore[arg-type]
