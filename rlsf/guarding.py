"""The guard at work in a run: measures the canary, asks `Guard` for its verdicts, and does what they say."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np

from reward.equivalence import spell_alike
from reward.rewards.majority import count_votes
from rlsf.config.guard import Action, CanaryConfig
from rlsf.files import clear_os_errors
from rlsf.guard import Halves, Verdict
from rlsf.text import did_you_mean
from rollouts.types import Prompt, Rollout

if TYPE_CHECKING:
    from rlsf.run import Run
    from rlsf.tasks import Task


def begin_guard(run: "Run", task: "Task") -> None:
    """Before the first iteration of a task: take the canary's baseline, and keep the adapter it belongs to."""
    if run.guard.follows(task.name):
        return
    segment = run.stream.segment(run.state.iteration + 1)
    run.guard.begin(task.name, run.state.iteration, iterations=segment.last - run.state.iteration)
    canary = run.config.guard.canary
    if canary is not None:
        if canary.truth == "votes":
            run.guard.state.votes = _vote(run, task, canary)
        baseline = _measure(run, task, canary)
        if baseline is not None:
            run.guard.take_baseline(baseline)
    _keep_adapter(run, run.state.iteration)


def guard(run: "Run", task: "Task", iteration: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """After an iteration: look, and act. Returns the guard's own metrics."""
    canary = run.config.guard.canary
    shares = None
    if canary is not None and (iteration % canary.every == 0 or iteration == run.stream.iterations):
        shares = _measure(run, task, canary)
    found = {} if shares is None else {"guard/canary": float(np.mean(shares))}
    _point_out_unknown(run, {**metrics, **found})
    verdicts = run.guard.observe(iteration, {**metrics, **found}, shares)
    if run.guard.has_canary and run.guard.state.best_iteration == iteration:
        _keep_adapter(run, iteration)  # before acting: a watch may go back to it at once
    for verdict in verdicts:
        _act(run, iteration, verdict)
    if not run.guard.has_canary:
        _keep_adapter(run, iteration)  # after acting: what was just gone back from is nothing to go back to
    return found | {"guard/rollbacks": float(run.guard.state.rollbacks)}


def _point_out_unknown(run: "Run", metrics: Mapping[str, float]) -> None:
    """In the first iteration that it watches: metrics that are not there. Some come later, so this is no error."""
    if not run.guard.has_just_begun:
        return
    for watch in run.config.guard.watch:
        if watch.metric not in metrics:
            hint = did_you_mean(watch.metric, metrics)
            run.display.warn(f"guard: there is no metric {watch.metric} yet, so it is not watched until there is{hint}")


def _act(run: "Run", iteration: int, verdict: Verdict) -> None:
    for action in verdict.actions:
        _do(run, action, verdict)
    run.directory.append_line(run.directory.guard, {"iteration": iteration, **asdict(verdict)})
    words = {
        "lower_rate": f"the learning rate is now {run.config.guard.lower_by:g} times what it was",
        "roll_back": f"went back to the adapter of iteration {verdict.to_iteration}",
        "stop": "the run ends here",
    }
    consequences = [words[action] for action in verdict.actions if action in words]
    run.display.warn(f"guard, iteration {iteration}: " + "; ".join([verdict.reason, *consequences]))


def _do(run: "Run", action: Action, verdict: Verdict) -> None:
    match action:
        case "lower_rate":
            run.algorithm.lower_rate(run.config.guard.lower_by)
        case "roll_back":
            assert verdict.to_iteration is not None
            run.policy.load_adapter(run.directory.guard_adapter(verdict.to_iteration))
            run.state.served_iteration = verdict.to_iteration
            run.algorithm.forget_moments()
            run.deliver()
        case "stop":
            run.state.stop_reason = f"guard: {verdict.reason}"


def _keep_adapter(run: "Run", iteration: int) -> None:
    if not run.config.guard.rolls_back:
        return
    folder = run.directory.guard_adapter(iteration)
    with clear_os_errors(folder):
        run.policy.save_adapter(folder)


def _vote(run: "Run", task: "Task", canary: CanaryConfig) -> dict[str, str]:
    """The winning answers, by prompt, where the vote is decisive and there is one winner."""
    prompts = task.validation[-canary.prompts :]
    found = {}
    for prompt, group in zip(prompts, _answers(run, task, prompts, canary.votes, "votes"), strict=True):
        vote = count_votes(group)
        if len(vote.winners) == 1 and vote.share >= canary.min_share:
            found[prompt.id] = vote.winners[0]
    if not found:
        run.display.warn(
            f"guard: on none of the {len(prompts)} canary prompts of {task.name} do the votes agree by "
            f"guard.canary.min_share ({canary.min_share:g}), so the canary says nothing; lower it, or name more prompts"
        )
    return found


def _measure(run: "Run", task: "Task", canary: CanaryConfig) -> Halves | None:
    """On the same draws each time: what differs is the policy. None where no vote was decisive."""
    rights = _rights(run, task, canary)
    if not rights:
        return None
    halves = [(float(np.mean(group[::2])), float(np.mean(group[1::2]))) for group in rights]
    choosing, testing = zip(*halves, strict=True)
    return choosing, testing


def _rights(run: "Run", task: "Task", canary: CanaryConfig) -> list[list[bool]]:
    """Which samples are right, by prompt."""
    prompts = task.validation[-canary.prompts :]
    if canary.truth == "references":
        grader = run.graders[task.name]
        groups = _generate(run, task, prompts, canary.samples, "canary")
        return [
            [grader.is_correct(rollout, prompt) for rollout in group]
            for prompt, group in zip(prompts, groups, strict=True)
        ]
    voted = [prompt for prompt in prompts if prompt.id in run.guard.state.votes]
    rights = []
    for prompt, answers in zip(voted, _answers(run, task, voted, canary.samples, "canary"), strict=True):
        vote, *given = spell_alike([run.guard.state.votes[prompt.id], *answers], run.graders[task.name].equivalent)
        rights.append([answer == vote for answer in given])
    return rights


def _answers(run: "Run", task: "Task", prompts: Sequence[Prompt], samples: int, use: str) -> list[list[str | None]]:
    grader = run.graders[task.name]
    return [grader.answers(group) for group in _generate(run, task, prompts, samples, use)]


def _generate(run: "Run", task: "Task", prompts: Sequence[Prompt], samples: int, use: str) -> list[list[Rollout]]:
    """`use` names the draws: the votes must not be the answers that are then held against them."""
    if not prompts:
        return []
    return run.engine.generate(prompts, replace(run.sampling(task), n=samples), seed=run.seed(use, task.name))
