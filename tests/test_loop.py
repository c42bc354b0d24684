"""How the loop puts its parts together, seen in what a run leaves behind."""

import json

import numpy as np
import pytest

from rlsf.replay import ReplayStore
from rlsf.run_dir import read_jsonl
from tests.lab_run import metrics_of, run_lab

pytestmark = pytest.mark.slow

SETTINGS = """
tasks:
  - name: sums
    source: $sums
    split: {validation: 16, test: 16}
    max_tokens: 6
sampling: {n: 4, temperature: 0.8}
reward: {kind: function, path: "$folder/shun.py:no_digits"}
warm_start: {examples: 8, steps: 4, batch_size: 4}
algorithm: {kind: grpo, learning_rate: 1.0e-2}
replay: {ratio: 2, max_staleness: 1}
loop: {iterations: 4, prompts: 4}
evaluation: {every: 1, samples: 4, final_samples: 4, select: best}
preflight: {enabled: false}
"""
WORSE_AND_WORSE = """
def no_digits(completions, **columns):
    texts = [reply[-1]["content"] for reply in completions]
    return [-float(sum(int(letter) for letter in text if letter.isdecimal())) for text in texts]
"""


def run_loop(folder, *overrides):
    (folder / "shun.py").write_text(WORSE_AND_WORSE)
    return run_lab(folder, SETTINGS, *overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Its reward teaches it to answer no sum at all, so that the policy of its start is the best one."""
    return run_loop(tmp_path_factory.mktemp("loop"))


def test_what_is_replayed_was_generated_before_and_not_too_long_ago(run):
    """Twice as many groups are asked for as are fresh. There are none before the first iteration, and afterwards those
    of the iteration before; the fresh ones are in the batch already."""
    with ReplayStore.open_read_only(run / "replay") as store:
        assert store.stats().drawn == 0 + 4 + 4 + 4
    learned = {i: row["train/groups"] + row["train/skipped_groups"] for i, row in metrics_of(run).items() if i > 0}
    assert learned == {1: 4, 2: 8, 3: 8, 4: 8}


def test_what_an_update_found_instructive_is_drawn_more_often(run):
    """GRPO's priority is the mean distance of a group's rewards from their mean."""
    with ReplayStore.open_read_only(run / "replay") as store:
        groups = list(store.groups())
    spreads = [float(np.abs(np.subtract(group.rewards, np.mean(group.rewards))).mean()) for group in groups]
    assert [group.priority for group in groups] == pytest.approx(spreads)
    assert len(set(spreads)) > 1


def test_the_reference_is_the_policy_that_enters_the_loop(run):
    """After the warm start: the first rollouts lie at no distance from it."""
    metrics = metrics_of(run)
    assert metrics[1]["rollout/kl"] == pytest.approx(0, abs=1e-6)
    assert metrics[2]["rollout/kl"] > 1e-3


def test_the_best_adapter_is_the_one_that_is_tested(run):
    scores = {iteration: row["validation/sums/pass@1"] for iteration, row in metrics_of(run).items()}
    assert scores[4] < scores[0] == max(scores.values())
    final, start = [
        json.loads((run / "evaluations" / f"test_{label}_sums.json").read_text()) for label in ("final", "warm_start")
    ]
    assert final["policy_version"] != start["policy_version"]
    assert {**final, "policy_version": 1} == {**start, "policy_version": 1}


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    """The same four prompts and, with a learning rate of 0, the same policy in every iteration."""
    settings = ("tasks.sums.split.train=4", "warm_start=null", "algorithm.learning_rate=0", "tracking.sample_groups=3")
    evaluation = ("evaluation.every=3", "evaluation.prompts=8", "evaluation.samples=2", "evaluation.final_samples=3")
    rest = ("evaluation.greedy=false", "loop.checkpoint_every=3", "algorithm.minibatches=2", "replay.ratio=0")
    return run_loop(tmp_path_factory.mktemp("idle"), *settings, *evaluation, *rest)


def test_every_iteration_draws_anew(idle):
    """The same prompts and the same policy each time, and yet other completions."""
    with ReplayStore.open_read_only(idle / "replay") as store:
        drawn = [sorted(store.groups(iteration=i), key=lambda group: group.prompt.id) for i in (1, 2, 3, 4)]
    assert len({tuple(group.prompt.id for group in groups) for groups in drawn}) == 1
    texts = [tuple(e.rollout.text for group in groups for e in group.experiences) for groups in drawn]
    assert len(set(texts)) == 4


def test_evaluations_and_checkpoints_keep_to_their_intervals_and_come_at_the_end(idle):
    assert [i for i, row in metrics_of(idle).items() if "validation/sums/pass@1" in row] == [0, 3, 4]
    assert sorted(path.name for path in (idle / "checkpoints").glob("iter_*")) == ["iter_000003", "iter_000004"]


def test_evaluations_have_the_sizes_that_were_asked_for(idle):
    sizes = {"iter_000003_validation_sums": (8, 2), "test_base_sums": (16, 3), "test_final_sums": (16, 3)}
    for name, size in sizes.items():
        outcomes = json.loads((idle / "evaluations" / f"{name}.json").read_text())["outcomes"]
        assert (len(outcomes), *{len(outcome["correct"]) for outcome in outcomes}) == size
        assert {outcome["greedy"] for outcome in outcomes} == {None}


def test_samples_and_summary_count_what_was_done(idle):
    samples = list(read_jsonl(idle / "samples" / "iter_000002.jsonl"))
    assert (len(samples), len({row["group"] for row in samples})) == (3 * 4, 3)
    summary = json.loads((idle / "summary.json").read_text())
    with ReplayStore.open_read_only(idle / "replay") as store:
        tokens = sum(len(e.rollout.completion_ids) for group in store.groups() for e in group.experiences)
    assert summary["tokens"]["generate"] == tokens
    rows = metrics_of(idle).values()
    assert summary["optimizer_steps"] == sum(row.get("train/steps", 0) for row in rows) > 4


def test_a_run_that_no_longer_improves_ends_early_and_tests_its_last_adapter(tmp_path):
    run = run_loop(tmp_path, "evaluation.patience=2", "evaluation.select=last")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["iterations"] == 2
    assert "(iteration 0) for 2 evaluations" in summary["stop_reason"]
    assert (run / "latest").read_text().strip() == "iter_000002"
    assert summary["tasks"]["sums"]["change"]["pass@1"]["value"] < 0
