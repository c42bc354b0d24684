"""From rollouts to scored groups: hands each reward what it declares, and nothing more."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from reward.types import RewardContext, Score
from rlsf.experience import Experience, Group
from rollouts.types import Prompt, Rollout

if TYPE_CHECKING:
    from rlsf.run import Run
    from rlsf.tasks import Task


def reward_context(run: "Run", task: "Task", prompts: Sequence[Prompt], iteration: int) -> RewardContext:
    """Labels, engine and token statistics only for a reward that declares them."""
    needs = run.reward.needs
    visible = prompts if "reference" in needs else [prompt.without_labels() for prompt in prompts]
    temperature = run.sampling(task).temperature
    return RewardContext(
        prompts={prompt.id: prompt for prompt in visible},
        extract=run.graders[task.name].extract,
        iteration=iteration,
        seed=run.seed("reward", iteration, task.name),
        engine=run.engine if "engine" in needs else None,
        token_stats=(lambda rollouts: run.policy.token_stats(rollouts, temperature=temperature))
        if "token_stats" in needs
        else None,
    )


def score_rollouts(
    run: "Run", task: "Task", prompts: Sequence[Prompt], rollouts: list[list[Rollout]], iteration: int
) -> list[list[Score]]:
    """Raises RewardError, from the reward."""
    return run.reward.score(rollouts, reward_context(run, task, prompts, iteration))


MONITORED = 64
"""Rollouts per iteration that tell the KL to the reference where the algorithm itself does not need it."""


def make_groups(
    run: "Run",
    task: "Task",
    prompts: Sequence[Prompt],
    rollouts: list[list[Rollout]],
    scores: list[list[Score]],
    iteration: int,
) -> list[Group]:
    """Experiences as they are kept: prompts without labels (a verifier's evidence names the reference it compared
    with), and reference log-probabilities where the algorithm needs them."""
    flat = [rollout for group in rollouts for rollout in group]
    references: list[tuple[float, ...] | None] = [None] * len(flat)
    if run.algorithm.needs_reference:
        values = run.policy.logprobs(flat, adapter="reference", temperature=run.sampling(task).temperature)
        references = [tuple(row) for row in values]
    remaining = iter(references)
    return [
        Group(
            id=group[0].group_id,
            prompt=prompt.without_labels(),
            experiences=tuple(
                Experience(rollout, score, task.name, iteration, next(remaining))
                for rollout, score in zip(group, group_scores, strict=True)
            ),
        )
        for prompt, group, group_scores in zip(prompts, rollouts, scores, strict=True)
    ]


def policy_metrics(run: "Run", task: "Task", groups: Sequence[Group]) -> dict[str, float]:
    """Where the policy stood when it sampled: per-token entropy, and KL to the reference, both in nats.

    `rollout/entropy` is the mean of −log p of the sampled tokens; `rollout/kl` the k3 estimate of KL(π ‖ ref), mean of
    r − 1 − log r with r = ref/π (http://joschu.net/blog/kl-approx.html).
    """
    experiences = [e for group in groups for e in group.experiences if e.rollout.completion_ids]
    if not experiences:
        return {}
    logprobs = np.concatenate([e.rollout.logprobs for e in experiences])
    metrics = {"rollout/entropy": float(-logprobs.mean())}
    known = [e.reference_logprobs for e in experiences if e.reference_logprobs is not None]
    references = np.concatenate(known) if len(known) == len(experiences) else _references(run, task, experiences)
    log_ratio = references - logprobs[: len(references)]
    return metrics | {"rollout/kl": float((np.exp(log_ratio) - 1 - log_ratio).mean())}


def _references(run: "Run", task: "Task", experiences: Sequence[Experience]) -> np.ndarray:
    """Log-probabilities of the first rollouts' tokens under the reference, one after the other."""
    rollouts = [experience.rollout for experience in experiences[:MONITORED]]
    rows = run.policy.logprobs(rollouts, adapter="reference", temperature=run.sampling(task).temperature)
    return np.concatenate(rows)


def count_tokens(rollouts: Sequence[Sequence[Rollout]]) -> int:
    """Generated tokens."""
    return sum(len(rollout.completion_ids) for group in rollouts for rollout in group)


def reward_metrics(rollouts: list[list[Rollout]], scores: list[list[Score]]) -> dict[str, float]:
    """Mean and spread of the reward and its components, and what hacking it would show in: length and truncation."""
    flat_rollouts = [rollout for group in rollouts for rollout in group]
    flat_scores = [score for group in scores for score in group]
    lengths = np.array([len(rollout.completion_ids) for rollout in flat_rollouts], dtype=float)
    metrics = {
        "rollout/tokens": float(lengths.mean()),
        "rollout/truncated": float(np.mean([rollout.truncated for rollout in flat_rollouts])),
        "reward/no_opinion": float(np.mean([score.value is None for score in flat_scores])),
    }
    scored = [
        (score.value, length) for score, length in zip(flat_scores, lengths, strict=True) if score.value is not None
    ]
    if scored:
        values, kept = np.array(scored).T
        metrics |= {"reward/mean": float(values.mean()), "reward/std": float(values.std())}
        if values.std() > 0 and kept.std() > 0:
            metrics["reward/length_correlation"] = float(np.corrcoef(values, kept)[0, 1])
    for name in sorted({name for score in flat_scores for name in score.components}):
        parts = [score.components[name] for score in flat_scores if name in score.components]
        metrics[f"reward/component/{name}"] = float(np.mean(parts))
    return metrics
