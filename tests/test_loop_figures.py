"""What a run writes is computed again from the other things that it leaves behind."""

import json
from collections import Counter

import numpy as np
import pytest

from rlsf.config import load_config
from rlsf.evaluation.grading import Grader
from rlsf.models import resolve_model
from rlsf.policy import Policy
from rlsf.replay import ReplayStore
from rlsf.tasks import build_stream
from tests.lab_run import metrics_of, run_lab

pytestmark = pytest.mark.slow

# Whatever is easily confused differs: the tasks' answers, the temperatures, the splits' sizes, the sample counts.
SETTINGS = """
tasks:
  - name: sums
    source: $sums
    split: {validation: 8, test: 24}
    max_tokens: 6
  - name: digits
    source:
      kind: reasoning_gym
      dataset: chain_sum
      params: {min_terms: 2, max_terms: 2, min_digits: 2, max_digits: 2}
      size: 200
    split: {validation: 8, test: 24}
    max_tokens: 6
    answer: {kind: regex, pattern: '(\\d)\\D*$'}
sampling: {n: 4, temperature: 0.7}
reward:
  kind: weighted_sum
  components:
    majority: {reward: {kind: majority}}
    certainty: {weight: 0.1, normalize: running, reward: {kind: self_certainty}}
warm_start: {examples: 8, steps: 4, batch_size: 4}
algorithm: {kind: grpo, learning_rate: 1.0e-2, schedule: linear, minibatches: 2, kl_coef: 0.05}
replay: {ratio: 0.5}
loop: {iterations: 4, prompts: 4}
evaluation: {every: 1, samples: 2, final_samples: 4}
preflight: {canary: 8}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_lab(tmp_path_factory.mktemp("figures"), SETTINGS)


@pytest.fixture(scope="module")
def config(run):
    return load_config(run / "config.yaml")


@pytest.fixture(scope="module")
def groups(run):
    """Those of each iteration."""
    with ReplayStore.open_read_only(run / "replay") as store:
        return {iteration: list(store.groups(iteration=iteration)) for iteration in (1, 2, 3, 4)}


@pytest.fixture(scope="module")
def metrics(run):
    return metrics_of(run)


def read(path):
    return json.loads(path.read_text())


def asked(run, name):
    return [outcome["prompt_id"] for outcome in read(run / "evaluations" / f"{name}.json")["outcomes"]]


def test_each_split_is_used_for_what_it_is_there_for(run, config, groups):
    for task in build_stream(config).tasks:
        ids = {split: [prompt.id for prompt in getattr(task, split)] for split in ("train", "validation", "test")}
        assert asked(run, f"test_base_{task.name}") == asked(run, f"test_final_{task.name}") == ids["test"]
        assert asked(run, f"iter_000004_validation_{task.name}") == ids["validation"]
        trained = {group.prompt.id for part in groups.values() for group in part if group.task == task.name}
        assert len(trained) == 8
        assert trained <= set(ids["train"])


def test_a_task_is_validated_once_it_has_begun(run):
    names = {path.name for path in (run / "evaluations").glob("iter_*")}
    sums = {f"iter_{iteration:06d}_validation_sums.json" for iteration in range(5)}
    digits = {f"iter_{iteration:06d}_validation_digits.json" for iteration in (3, 4)}
    after_the_first_task = {f"iter_000002_{what}.json" for what in ("test_sums", "test_digits", "kl")}
    assert names == sums | digits | after_the_first_task


def test_answers_are_taken_as_the_task_says(config, groups):
    """The second task's votes are single digits."""
    answers = set()
    for task, iterations in ((config.tasks[0], (1, 2)), (config.tasks[1], (3, 4))):
        grader = Grader(task)
        for group in [group for iteration in iterations for group in groups[iteration]]:
            assert group.task == task.name
            votes = Counter(filter(None, [grader.extract(e.rollout) for e in group.experiences]))
            assert group.experiences[0].score.evidence["majority"]["votes"] == votes
            answers |= {(task.name, len(answer)) for answer in votes}
    assert answers >= {("sums", 2), ("digits", 1)}
    assert ("digits", 2) not in answers


@pytest.fixture(scope="module")
def policy(run, config):
    """As the last checkpoint has it."""
    policy = Policy.create(resolve_model(config.model.source), config.model, seed=0)
    policy.load(run / "checkpoints" / "iter_000004" / "policy")
    return policy


def test_what_is_stored_is_of_the_reference_and_at_the_temperature_of_sampling(policy, groups, metrics):
    for iteration, part in groups.items():
        experiences = [experience for group in part for experience in group.experiences]
        rollouts = [experience.rollout for experience in experiences]
        assert {rollout.sampling.temperature for rollout in rollouts} == {0.7}
        references = policy.logprobs(rollouts, adapter="reference", temperature=0.7)
        for experience, expected in zip(experiences, references, strict=True):
            assert experience.reference_logprobs == pytest.approx(expected, abs=1e-4)
        sampled, reference = [np.concatenate(rows) for rows in ([r.logprobs for r in rollouts], references)]
        kl = np.exp(reference - sampled) - 1 - (reference - sampled)
        assert metrics[iteration]["rollout/kl"] == pytest.approx(kl.mean(), rel=1e-3, abs=1e-6)
        assert metrics[iteration]["rollout/entropy"] == pytest.approx(-sampled.mean(), rel=1e-3)
    assert metrics[4]["rollout/kl"] > 1e-3


def test_the_reward_sees_the_policy_at_the_temperature_of_sampling(policy, groups, tmp_path):
    """The policy of the first iteration is the reference."""
    policy.save_adapter(tmp_path, "reference")
    policy.load_adapter(tmp_path)
    experiences = [experience for group in groups[1] for experience in group.experiences]
    stats = policy.token_stats([experience.rollout for experience in experiences], temperature=0.7)
    expected = [float(row.self_certainty.mean()) for row in stats]
    assert [experience.score.components["certainty"] for experience in experiences] == pytest.approx(expected, rel=1e-4)


def test_the_schedule_ends_with_the_run(metrics):
    """Two steps in each of four iterations; the rate of an iteration is that of its second step."""
    rates = [metrics[iteration]["train/learning_rate"] for iteration in (1, 2, 3, 4)]
    assert rates == pytest.approx([1e-2 * (1 - step / 8) for step in (1, 3, 5, 7)])


def test_only_the_loop_moves_the_running_statistics_of_the_reward(run, groups):
    """Neither the trial before the warm start nor the preflight does."""
    state = read(run / "checkpoints" / "iter_000004" / "state.json")["reward"]
    count, mean, _ = state["running"]["certainty"][""]
    certainty = [
        e.score.components["certainty"] for part in groups.values() for group in part for e in group.experiences
    ]
    assert (count, mean) == (64, pytest.approx(np.mean(certainty)))


def test_the_change_is_counted_from_the_warm_start(run):
    tasks = read(run / "summary.json")["tasks"]
    for name, task in tasks.items():
        shares = {
            label: [
                np.mean(outcome["correct"])
                for outcome in read(run / "evaluations" / f"test_{label}_{name}.json")["outcomes"]
            ]
            for label in ("base", "warm_start", "final")
        }
        for label, values in shares.items():
            assert task[label]["pass@1"]["value"] == pytest.approx(np.mean(values))
        change = task["change"]
        assert change["from"] == "warm_start"
        expected = np.mean(shares["final"]) - np.mean(shares["warm_start"])
        assert change["pass@1"]["value"] == pytest.approx(expected)
    assert any(task["base"]["pass@1"]["value"] != task["warm_start"]["pass@1"]["value"] for task in tasks.values())
