"""Outcomes to figures: what an evaluation says, and what a change between two of them says."""

from types import SimpleNamespace

import pytest

from reward.types import NoQuestionFitsError
from rlsf.config.schema import TaskConfig
from rlsf.evaluation.evaluate import Change, Evaluation, Outcome, evaluate
from rlsf.evaluation.grading import Grader
from rlsf.preflight import _ignorance, _warnings, try_reward
from rollouts.types import Prompt, Rollout, SamplingParams

SAMPLING = SamplingParams(max_tokens=4, n=8, temperature=0.7)


def outcome(name, answers, reference, greedy=None):
    return Outcome(name, tuple(answers), tuple(a == reference for a in answers), greedy, tokens=10, truncated=0)


def evaluation(*outcomes):
    return Evaluation("sums", "test", 3, tuple(outcomes))


def test_figures_of_an_evaluation():
    measured = evaluation(
        outcome("a", ["1", "1", "2", "3"], "1", greedy=True),
        outcome("b", ["1", "1", "2", None], "2", greedy=False),
        outcome("c", [None, None, None, None], "2", greedy=True),
        outcome("d", ["7", "7", "7", "7"], "7", greedy=True),
    )
    assert measured.pass_at_1().value == pytest.approx((0.5 + 0.25 + 0 + 1) / 4)
    assert measured.pass_at_n().value == pytest.approx(3 / 4)
    assert measured.majority().value == pytest.approx(2 / 4)
    assert measured.greedy().value == pytest.approx(3 / 4)
    assert measured.tokens == 40
    assert measured.metrics()["test/sums/pass@4"] == pytest.approx(3 / 4)
    assert Evaluation.from_json(measured.as_json()) == measured


def test_a_change_is_paired_over_prompts():
    """Every prompt gains a quarter: the interval of the paired difference is that quarter, however the prompts vary."""
    before = evaluation(*[outcome(str(i), ["1" if j < i % 4 else "0" for j in range(4)], "1") for i in range(40)])
    after = evaluation(*[outcome(str(i), ["1" if j < i % 4 + 1 else "0" for j in range(4)], "1") for i in range(40)])
    change = Change.between(before, after, seed=0)
    assert (change.pass_at_1.value, change.pass_at_1.low, change.pass_at_1.high) == pytest.approx((0.25, 0.25, 0.25))
    assert change.greedy is None
    with pytest.raises(ValueError, match="same prompts"):
        Change.between(before, evaluation(*reversed(after.outcomes)), seed=0)


class Parrot:
    """An engine that says what it is told to; remembers how it was asked."""

    version = 5

    def __init__(self, says):
        self._says, self.asked = says, []

    def generate(self, prompts, sampling, *, seed):
        self.asked.append((sampling.n, sampling.temperature, seed))
        return [[self._rollout(prompt, sampling, index) for index in range(sampling.n)] for prompt in prompts]

    def _rollout(self, prompt, sampling, index):
        text, reason = self._says(prompt, sampling, index)
        return Rollout(
            id=f"{prompt.id}-{index}", prompt_id=prompt.id, group_id=prompt.id, prompt_ids=(1,), completion_ids=(2, 3),
            text=text, logprobs=(-0.1, -0.1), finish_reason=reason, policy_version=5, sampling=sampling,
        )  # fmt: skip


GRADER = Grader(TaskConfig.model_validate({"name": "sums", "source": {"kind": "file", "path": "x.jsonl"}}))
PROMPTS = [Prompt(id=str(i), task="sums", content=f"{i} + 1 =", reference=str(i + 1)) for i in range(3)]


def test_evaluate_samples_and_decodes_greedily():
    """Sampled: two of four right, one of those cut off and therefore without an answer. Greedy: right."""

    def says(prompt, sampling, index):
        right = sampling.temperature == 0 or index < 2
        return (prompt.reference if right else "99", "length" if sampling.temperature and index == 0 else "stop")

    engine = Parrot(says)
    measured = evaluate(engine, GRADER, "test", PROMPTS, SAMPLING, samples=4, greedy=True, seed=7)
    assert engine.asked == [(4, 0.7, 7), (1, 0.0, 7)]
    assert measured.policy_version == 5
    assert measured.pass_at_1().value == pytest.approx(1 / 4)
    assert measured.truncated() == pytest.approx(1 / 4)
    assert measured.outcomes[0].answers == (None, "1", "99", "99")
    assert measured.greedy().value == 1
    assert measured.tokens == 3 * (4 + 1) * 2
    assert evaluate(engine, GRADER, "test", PROMPTS, SAMPLING, samples=4, greedy=False, seed=7).greedy() is None
    with pytest.raises(ValueError, match="no test prompts"):
        evaluate(engine, GRADER, "test", [], SAMPLING, samples=4, greedy=True, seed=7)


def report(**changes):
    figures = {"task": "sums", "auroc_within_groups": 0.9, "truncated": 0.0, "pass@1": 0.3, "pass@8": 0.6}
    figures |= {"auroc_within_groups_interval": {"low": 0.41, "high": 0.62, "n": 12}, "auroc_within_answered": 0.9}
    figures |= {"no_opinion": 0.0, "replies": {"reward/unreadable/judge": 0.2, "reward/failed/judge": 0.0}}
    figures |= {"auroc_within_answered_interval": {"low": 0.4, "high": 0.6, "n": 9}} | changes
    return {name: {"value": v} if name.startswith("pass@") else v for name, v in figures.items()}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"auroc_within_groups": 0.5}, "0.500 [0.41, 0.62], 12 prompts, only"),
        ({"auroc_within_groups": None}, "teach nothing"),
        ({"auroc_within_groups": None, "no_opinion": 1.0}, "no opinion on any completion"),
        ({"auroc_within_answered": 0.5}, "knows who answers, and hardly what is right"),
        ({"auroc_within_answered": 0.5}, "0.500 [0.40, 0.60], 9 prompts, only"),
        ({"auroc_within_answered": None}, None),  # too few answers to tell
    ],
)
def test_preflight_says_where_a_signal_knows_nothing(changes, expected):
    found = _ignorance(report(**changes), 8, min_auroc=0.55)
    assert (found is None) == (expected is None)
    assert found is None or expected in found


def test_a_reward_is_tried_on_others_where_the_first_prompt_is_too_long(monkeypatch):
    tried = []

    def score(run, task, prompts, rollouts, iteration):
        tried.append(len(prompts))
        if len(prompts) < fitting:
            raise NoQuestionFitsError("no question fits")

    monkeypatch.setattr("rlsf.preflight.score_rollouts", score)
    task = SimpleNamespace(name="sums", train=tuple(range(20)))
    run = SimpleNamespace(
        reward=SimpleNamespace(state=dict, restore=lambda state: None),
        stream=SimpleNamespace(tasks=[task]),
        engine=SimpleNamespace(generate=lambda prompts, sampling, seed: prompts),
        sampling=lambda task: None,
        seed=lambda *use: 0,
    )
    fitting = 2
    try_reward(run)
    assert tried == [1, 16]
    fitting = 99
    with pytest.raises(NoQuestionFitsError):
        try_reward(run)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"truncated": 0.5}, "max_tokens"),
        ({"pass@1": 0.99, "pass@8": 1.0}, "solves it already"),
        ({"replies": {"reward/unreadable": 0.3}}, "30% of the replies that the reward asked for could not be read"),
        ({"replies": {"reward/failed/j": 1.0}}, "never came (reward/failed/j)"),
        (
            {"auroc_within_groups": 0.6, "auroc_within_groups_interval": {"low": 0.45, "high": 0.75, "n": 9}},
            "0.60 [0.45, 0.75], 9 prompts, which may be chance",
        ),
    ],
)
def test_preflight_warns_of_what_else_is_in_the_way(changes, expected):
    sure = {"auroc_within_groups_interval": {"low": 0.8, "high": 0.95, "n": 12}}
    warnings = _warnings(report(**(sure | changes)), 8, min_auroc=0.55)
    assert len(warnings) == (expected is not None)
    assert expected is None or expected in warnings[0]


@pytest.mark.parametrize(("auroc", "warned"), [(0.9, False), (0.5, True), (None, False)])
def test_preflight_of_single_completions_compares_prompts(auroc, warned):
    """PPO may draw one completion per prompt: no group then holds a right and a wrong one."""
    assert bool(_ignorance(report(auroc_within_groups=None, auroc=auroc), 1, min_auroc=0.55)) == warned
