"""Advantages of GRPO, pairs of DPO, and the warm start."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reward.types import Score
from rlsf.algorithms import WarmStart
from rlsf.algorithms.dpo import Dpo
from rlsf.algorithms.grpo import Grpo, group_advantages
from rlsf.config.algorithms import DpoConfig, GrpoConfig
from rlsf.config.schema import WarmStartConfig
from rlsf.errors import DataError, TrainingError
from rlsf.preferences import make_pairs
from tests.tiny_policy import EOS, make_groups, make_policy, perturb, share_of


def test_advantages_use_the_sample_deviation():
    """[1.5, 2, 2.5, 2] has sample deviation 0.40825; TRL adds 1e-4 to it."""
    (got,) = group_advantages([np.array([1.5, 2, 2.5, 2])], "group")
    np.testing.assert_allclose(got, [-1.2247, 0, 1.2247, 0], atol=1e-3)
    (plain,) = group_advantages([np.array([1.5, 2, 2.5, 2])], "none")
    np.testing.assert_allclose(plain, [-0.5, 0, 0.5, 0])
    assert group_advantages([], "batch") == []


def test_the_batch_deviation_counts_groups_without_signal(tmp_path: Path, monkeypatch):
    """As TRL's does: [1, 0], [0, 0], [0, 0], [1, 1] deviate by 0.51755, whichever groups give a gradient."""
    rewards = [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    policy = make_policy()
    groups = [
        replace(
            group, experiences=tuple(replace(e, score=Score(v)) for e, v in zip(group.experiences, row, strict=True))
        )
        for group, row in zip(make_groups(policy, share_of(7), prompts=4, n=2), rewards, strict=True)
    ]
    algorithm = Grpo(GrpoConfig(scale_rewards="batch"), policy, total_steps=1, dump_dir=tmp_path)
    seen = []
    monkeypatch.setattr(algorithm._learner, "update", lambda samples, **_: seen.extend(samples) or {})
    update = algorithm.update(groups, iteration=groups[0].iteration, seed=0)
    assert update.metrics["train/skipped_groups"] == 3
    assert [sample.advantages[0] for sample in seen[0]] == pytest.approx([0.5 / 0.51765, -0.5 / 0.51765], abs=1e-4)


@pytest.fixture(scope="module")
def group():
    (group,) = make_groups(make_policy(), share_of(7), prompts=1, n=6)
    return group


def pairs_of(group, rewards, **settings):
    scored = zip(group.experiences, rewards, strict=True)
    group = replace(group, experiences=tuple(replace(e, score=Score(reward)) for e, reward in scored))
    index = {e.rollout.id: i for i, e in enumerate(group.experiences)}
    found = make_pairs(group, DpoConfig(**settings), fresh=True)
    return [(index[pair.chosen.rollout.id], index[pair.rejected.rollout.id]) for pair in found]


def test_best_and_worst_make_one_pair(group):
    assert pairs_of(group, [0.5, 1.0, 0.0, 1.0, None, 0.2]) == [(1, 2)]


def test_ties_and_small_margins_make_none(group):
    assert pairs_of(group, [1.0] * 6) == pairs_of(group, [None] * 6) == pairs_of(group, [1.0] + [None] * 5) == []
    assert pairs_of(group, [0.5, 0.25, 0.5, 0.25, 0.5, 0.25], min_margin=0.25) == []
    assert len(pairs_of(group, [0.5, 0.25, 0.5, 0.25, 0.5, 0.25], min_margin=0.2)) == 1


def test_all_pairs_come_with_the_largest_margins_first(group):
    rewards = [0.9, None, 0.1, 0.5, 0.5, None]
    assert pairs_of(group, rewards, pairs="all", max_pairs_per_group=9) == [(0, 2), (0, 3), (4, 2), (0, 4), (3, 2)]
    assert pairs_of(group, rewards, pairs="all", max_pairs_per_group=2) == [(0, 2), (0, 3)]
    assert pairs_of(group, rewards, pairs="all", min_margin=0.45) == [(0, 2)]


def test_of_equal_margins_those_of_unused_rollouts_come_first(group):
    found = pairs_of(group, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0], pairs="all", max_pairs_per_group=4)
    assert found == [(0, 1), (2, 3), (4, 5), (0, 3)]


def test_dpo_widens_the_margin_and_reports_it(tmp_path: Path):
    policy = make_policy()
    policy.freeze_reference()
    algorithm = Dpo(DpoConfig(learning_rate=1e-2, beta=0.5), policy, total_steps=9, dump_dir=tmp_path)
    groups = make_groups(policy, share_of(7), n=8)
    first = algorithm.update(groups, iteration=1, seed=0)
    assert first.metrics["train/loss"] == pytest.approx(np.log(2), abs=1e-5)  # at the reference every margin is 0
    assert first.metrics["train/fresh/margin"] == pytest.approx(0, abs=1e-5)
    assert {round(priority, 4) for priority in first.priorities.values()} <= {0.0, 0.5}
    for _ in range(4):
        last = algorithm.update(groups, iteration=2, seed=0)
    assert last.metrics["train/replayed/margin"] > 0.5 and last.metrics["train/replayed/accuracy"] == 1
    assert last.metrics["train/loss"] < first.metrics["train/loss"]
    taught = [name for name, priority in first.priorities.items() if priority > 0]
    assert all(last.priorities[name] < first.priorities[name] for name in taught)


EXAMPLES = [((3, 4, token), f"t{token + 1} t{token + 2}") for token in range(5, 15)]


def warm(policy, folder: Path, **settings):
    config = WarmStartConfig(**{"steps": 30, "batch_size": 4, "learning_rate": 2e-2, **settings})
    return WarmStart(config, policy, dump_dir=folder)


def test_the_warm_start_teaches_the_answers_and_the_end(tmp_path: Path):
    policy = make_policy()
    answer = [((3, 4, 9), (10, 11, EOS))]
    assert np.exp(sum(policy.score_tokens(answer)[0])) < 1e-3
    metrics = warm(policy, tmp_path).run(EXAMPLES, seed=0)
    assert metrics["warm_start/loss"] < 0.1 * metrics["warm_start/first_loss"]
    assert np.exp(sum(policy.score_tokens(answer)[0])) > 0.4
    assert not policy.model.training and not policy.has_reference


def test_the_warm_start_repeats_itself_and_ignores_micro_batches(tmp_path: Path):
    digests, losses = [], []
    for seed, budget in ((0, 8192), (0, 8192), (1, 8192), (0, 64)):
        policy = make_policy(dropout=0.1 if budget > 64 else 0.0)
        policy.micro_batch_tokens = budget
        perturb(policy)
        losses.append(warm(policy, tmp_path, steps=3).run(EXAMPLES, seed=seed)["warm_start/first_loss"])
        digests.append(policy.adapter_digest())
    assert digests[0] == digests[1] != digests[2]
    policy = make_policy()
    perturb(policy)
    whole = warm(policy, tmp_path, steps=3).run(EXAMPLES, seed=0)["warm_start/first_loss"]
    assert losses[3] == pytest.approx(whole, rel=1e-5)


def test_a_warm_start_without_answers_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no labelled examples"):
        warm(make_policy(), tmp_path).run([], seed=0)
    with pytest.raises(DataError, match="empty answer"):
        warm(make_policy(), tmp_path).run([((3, 4), "")], seed=0)


def test_a_warm_start_that_diverges_stops(tmp_path: Path):
    policy = make_policy()
    policy.parameters()[0].data.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"warm_start\.json"):
        warm(policy, tmp_path).run(EXAMPLES, seed=0)
    assert (tmp_path / "warm_start.json").exists()
