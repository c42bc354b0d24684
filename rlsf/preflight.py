"""Before a budget is spent: does the reward know anything about the truth on these prompts?

A group-relative update can only use what the signal knows *within* a group, so that is what decides the verdict.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from reward.types import NoQuestionFitsError
from rlsf.errors import ConfigError
from rlsf.evaluation.association import among_answered, auroc, auroc_within_groups_estimate
from rlsf.evaluation.evaluate import Outcome
from rlsf.evaluation.statistics import pass_at_k, wilson
from rlsf.scoring import count_metrics, score_rollouts
from rollouts.types import Prompt

if TYPE_CHECKING:
    from rlsf.run import Run
    from rlsf.tasks import Task


MANY_LOST = 0.25
"""Share of a reward's replies without which it hardly is what it is meant to be."""


def try_reward(run: "Run") -> None:
    """Score one group of each task, so that a reward which cannot work says so before anything long begins.

    Raises:
        RewardError: from the reward.
    """
    state = run.reward.state()
    for task in run.stream.tasks:
        try:
            _try_on(run, task, task.train[:1])
        except NoQuestionFitsError:  # of others it may
            _try_on(run, task, task.train[:16])
    run.reward.restore(state)


def _try_on(run: "Run", task: "Task", prompts: Sequence[Prompt]) -> None:
    rollouts = run.engine.generate(prompts, run.sampling(task), seed=run.seed("try", task.name))
    score_rollouts(run, task, prompts, rollouts, iteration=0)


def preflight(run: "Run", task: "Task") -> dict[str, Any]:
    """Measure the signal on the canary: labelled validation prompts that nothing is trained on.

    Returns:
        pass@1, majority@n, greedy and pass@n of the model that the loop starts from; AUROC of the reward against the
        truth, over all rollouts, within groups, and there among those that state an answer; and the warnings that
        follow.

    Raises:
        ConfigError: the signal carries nothing and `preflight.strict` is set.
    """
    config = run.config.preflight
    canary = task.validation[: config.canary]
    sampling = run.sampling(task)
    grader = run.graders[task.name]
    rollouts = run.engine.generate(canary, sampling, seed=run.seed("preflight", task.name))
    greedy = run.engine.generate(canary, replace(sampling, n=1, temperature=0.0), seed=run.seed("preflight", task.name))
    state = run.reward.state()
    scored = score_rollouts(run, task, canary, rollouts, iteration=0)
    run.reward.restore(state)  # measuring must not move running statistics
    values = [[score.value for score in group] for group in scored.scores]
    truth = [
        [grader.is_correct(rollout, prompt) for rollout in group]
        for prompt, group in zip(canary, rollouts, strict=True)
    ]
    answers = [grader.answers(group) for group in rollouts]
    within, answered = (
        auroc_within_groups_estimate(
            truth, known, [prompt.id for prompt in canary], seed=run.seed("preflight-interval", task.name)
        )
        for known in (values, among_answered(values, answers))
    )
    outcomes = [
        Outcome(prompt.id, tuple(given), tuple(right), None, 0, 0)
        for prompt, given, right in zip(canary, answers, truth, strict=True)
    ]
    n = sampling.n
    report: dict[str, Any] = {
        "task": task.name,
        "prompts": len(canary),
        "n": n,
        "pass@1": asdict(wilson([outcome.share for outcome in outcomes], n)),
        f"majority@{n}": asdict(wilson([outcome.majority for outcome in outcomes])),
        "greedy": asdict(
            wilson([float(grader.is_correct(group[0], prompt)) for prompt, group in zip(canary, greedy, strict=True)])
        ),
        f"pass@{n}": asdict(wilson([pass_at_k(n, sum(right), n) for right in truth])),
        "truncated": float(np.mean([rollout.truncated for group in rollouts for rollout in group])),
        "no_opinion": float(np.mean([value is None for row in values for value in row])),
        "replies": {
            name: share
            for name, share in count_metrics(scored.counts).items()
            if name.startswith(("reward/unreadable", "reward/failed"))
        },
        "auroc": auroc(truth, values),
        "auroc_within_groups": None if within is None else within.value,
        "auroc_within_groups_interval": None if within is None else asdict(within),
        "auroc_within_answered": None if answered is None else answered.value,
        "auroc_within_answered_interval": None if answered is None else asdict(answered),
    }
    mute = _ignorance(report, n, config.min_auroc)
    if config.strict and mute is not None:
        raise ConfigError(f"preflight: {mute} (preflight.strict is set)")
    report["warnings"] = [*([] if mute is None else [mute]), *_warnings(report, n, config.min_auroc)]
    return report


def _ignorance(report: dict[str, Any], n: int, min_auroc: float) -> str | None:
    """Why the signal has nothing to teach here; None where it has."""
    name = report["task"]
    # Single completions make no groups: a critic's baseline then compares prompts with each other.
    decisive, where = (report["auroc"], "") if n == 1 else (report["auroc_within_groups"], "within groups, ")
    if report["no_opinion"] == 1:
        return f"{name}: the reward has no opinion on any completion, so that nothing can be learned from it"
    if decisive is None:
        unknown = f"{name}: no group holds both right and wrong answers with a score; these prompts teach nothing"
        return unknown if n > 1 else None
    if decisive < min_auroc:
        interval = None if n == 1 else report["auroc_within_groups_interval"]
        return (
            f"{name}: {where}a right answer outranks a wrong one with probability {decisive:.3f}{_seen(interval)} only "
            f"(preflight.min_auroc is {min_auroc}); training on it will not help: choose another reward or task"
        )
    answered = None if n == 1 else report["auroc_within_answered"]
    if answered is None or answered >= min_auroc:
        return None
    return (
        f"{name}: the signal knows who answers, and hardly what is right: among completions that state an answer a "
        f"right one outranks a wrong one with probability {answered:.3f}"
        f"{_seen(report['auroc_within_answered_interval'])} only (preflight.min_auroc is {min_auroc}); training on it "
        "teaches the form of an answer and no more"
    )


def _seen(interval: dict[str, float] | None) -> str:
    return "" if interval is None else " [{low:.2f}, {high:.2f}], {n} prompts,".format(**interval)


def _warnings(report: dict[str, Any], n: int, min_auroc: float) -> list[str]:
    """What else stands in the way of learning."""
    name, warnings = report["task"], []
    if report["truncated"] > 0.25:
        warnings.append(
            f"{name}: {report['truncated']:.0%} of the completions are cut off at max_tokens and have no answer; raise "
            "sampling.max_tokens or settle the format with warm_start"
        )
    if report[f"pass@{n}"]["value"] > 0.98 and report["pass@1"]["value"] > 0.95:
        warnings.append(f"{name}: the model solves it already (pass@1 {report['pass@1']['value']:.2f})")
    interval = report["auroc_within_groups_interval"]
    if n > 1 and interval is not None and interval["low"] <= 0.5 and report["auroc_within_groups"] >= min_auroc:
        warnings.append(
            f"{name}: within groups, a right answer outranks a wrong one with probability "
            f"{report['auroc_within_groups']:.2f}{_seen(interval)} which may be chance: raise preflight.canary to "
            "know, and let a guard watch"
        )
    for metric, share in report["replies"].items():
        if share > MANY_LOST:
            what = "could not be read" if metric.startswith("reward/unreadable") else "never came"
            warnings.append(
                f"{name}: {share:.0%} of the replies that the reward asked for {what} ({metric}); ask otherwise "
                "(reply: json, max_tokens, template), or of another model"
            )
    return warnings
