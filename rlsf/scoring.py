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


def make_groups(
    run: "Run",
    task: "Task",
    prompts: Sequence[Prompt],
    rollouts: list[list[Rollout]],
    scores: list[list[Score]],
    iteration: int,
) -> list[Group]:
    """Experiences as they are kept: without labels, with reference log-probabilities where the algorithm needs them."""
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
        "rollout/logprob": float(np.mean([np.mean(rollout.logprobs) for rollout in flat_rollouts if rollout.logprobs])),
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
