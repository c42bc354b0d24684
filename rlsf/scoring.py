"""From rollouts to scored groups, and the metrics of both."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reward.rewards.majority import count_votes
from reward.types import raise_error
from rlsf.experience import Experience, Group
from rlsf.lessons import lesson_groups, write_targets
from rlsf.scorer import Scored
from rollouts.types import Prompt, Rollout

if TYPE_CHECKING:
    from rlsf.run import Run
    from rlsf.tasks import Part, Task


@dataclass(frozen=True)
class Answered:
    """The prompts of one task in a batch, with their rollouts and what became of them."""

    part: "Part"
    rollouts: list[list[Rollout]]
    scored: Scored

    @property
    def task(self) -> "Task":
        return self.part.task


def score_rollouts(
    run: "Run", task: "Task", prompts: Sequence[Prompt], rollouts: list[list[Rollout]], iteration: int
) -> Scored:
    """Once training has begun it is what the policy says that makes every question too long, and no error.

    Raises:
        RewardError: from the reward.
    """
    return run.scorer.score(
        prompts,
        rollouts,
        task=task.name,
        temperature=run.sampling(task).temperature,
        iteration=iteration,
        seed=run.seed("reward", iteration, task.name),
        none_fits=raise_error if iteration == 0 else lambda error: None,
    )


MONITORED = 64
"""Rollouts per iteration that tell the KL to the reference where the algorithm itself does not need it."""


def make_groups(run: "Run", answered: Answered, iteration: int) -> list[Group]:
    """Experiences as they are kept: prompts without labels (a verifier's evidence names the reference it compared
    with), and reference log-probabilities where the algorithm needs them. Where the strategies are not told which task
    is on, the store is not told either."""
    label = answered.part.label or run.label_of(answered.task)
    rollouts, scored = answered.rollouts, answered.scored
    flat = [rollout for group in rollouts for rollout in group]
    references: list[tuple[float, ...] | None] = [None] * len(flat)
    if run.algorithm.needs_reference:
        assert scored.tokens is not None
        references = [tuple(map(float, row)) for row in scored.tokens.reference_logprobs(flat)]
    remaining = iter(references)
    return [
        Group(
            id=group[0].group_id,
            prompt=prompt.without_labels(),
            experiences=tuple(
                Experience(rollout, score, label, iteration, next(remaining))
                for rollout, score in zip(group, group_scores, strict=True)
            ),
        )
        for prompt, group, group_scores in zip(answered.part.prompts, rollouts, scored.scores, strict=True)
    ]


def make_lessons(run: "Run", answered: Answered, iteration: int) -> list[Group]:
    """What the reward found worth learning besides the scores, as further groups; answers to imitate go to a file."""
    lessons = answered.scored.lessons
    if not lessons:
        return []
    write_targets(run.directory.targets, lessons, iteration=iteration)
    return lesson_groups(
        lessons,
        run.policy,
        task=answered.part.label or run.label_of(answered.task),
        iteration=iteration,
        temperature=run.sampling(answered.task).temperature,
        pairs=run.config.algorithm.kind == "dpo",
        reference=run.algorithm.needs_reference,
    )


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


def count_tokens(parts: Sequence[Answered]) -> int:
    """Generated tokens."""
    return sum(len(rollout.completion_ids) for part in parts for group in part.rollouts for rollout in group)


def batch_metrics(run: "Run", parts: Sequence[Answered], *, fresh: int) -> dict[str, float]:
    """What the answers of an iteration and their rewards say. The first `fresh` parts are the stream's own, and what
    has no further name is of them alone: replayed prompts are of other tasks."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.scored.counts)  # type: ignore[arg-type]
    metrics = reward_metrics(parts[:fresh]) | vote_metrics(run, parts[:fresh]) | count_metrics(counts) | _logged(parts)
    replayed = _mean_reward(parts[fresh:])
    if replayed is not None:
        metrics["reward/replayed/mean"] = replayed
    return metrics | (_by_task(parts) if len(run.tasks) > 1 else {})


def reward_metrics(parts: Sequence[Answered]) -> dict[str, float]:
    """Mean and spread of the reward and its components, and what hacking it would show in: length and truncation."""
    flat_rollouts = [rollout for part in parts for group in part.rollouts for rollout in group]
    flat_scores = [score for part in parts for group in part.scored.scores for score in group]
    lengths = np.array([len(rollout.completion_ids) for rollout in flat_rollouts], dtype=float)
    metrics = {
        "rollout/tokens": float(lengths.mean()),
        "rollout/truncated": float(np.mean([rollout.truncated for rollout in flat_rollouts])),
        "reward/no_opinion": float(np.mean([score.value is None for score in flat_scores])),
    }
    known = [
        (score.value, length) for score, length in zip(flat_scores, lengths, strict=True) if score.value is not None
    ]
    if known:
        values, kept = np.array(known).T
        metrics |= {"reward/mean": float(values.mean()), "reward/std": float(values.std())}
        if values.std() > 0 and kept.std() > 0:
            metrics["reward/length_correlation"] = float(np.corrcoef(values, kept)[0, 1])
    for name in sorted({name for score in flat_scores for name in score.components}):
        components = [score.components[name] for score in flat_scores if name in score.components]
        metrics[f"reward/component/{name}"] = float(np.mean(components))
    return metrics


def _logged(parts: Sequence[Answered]) -> dict[str, float]:
    """What the reward logged, averaged over the tasks in the batch."""
    names = sorted({name for part in parts for name in part.scored.metrics})
    return {
        f"reward/metric/{name}": float(
            np.mean([part.scored.metrics[name] for part in parts if name in part.scored.metrics])
        )
        for name in names
    }


def _by_task(parts: Sequence[Answered]) -> dict[str, float]:
    """The mean reward of each task in the batch, replayed prompts included."""
    names = sorted({part.task.name for part in parts})
    means = {name: _mean_reward([part for part in parts if part.task.name == name]) for name in names}
    return {f"reward/mean/{name}": mean for name, mean in means.items() if mean is not None}


def _mean_reward(parts: Sequence[Answered]) -> float | None:
    values = [s.value for part in parts for group in part.scored.scores for s in group if s.value is not None]
    return float(np.mean(values)) if values else None


def vote_metrics(run: "Run", parts: Sequence[Answered]) -> dict[str, float]:
    """How the groups agree, whatever the reward: mean share of the winning answer, share of rollouts without an answer,
    and different winning answers per group (near 0 where every prompt gets the same answer)."""
    votes = [
        count_votes(answers) for part in parts for answers in map(run.graders[part.task.name].answers, part.rollouts)
    ]
    winners = {vote.winners for vote in votes if vote.winners}
    answered = sum(sum(vote.counts.values()) for vote in votes)
    rollouts = sum(len(group) for part in parts for group in part.rollouts)
    return {
        "rollout/vote_share": float(np.mean([vote.share for vote in votes])),
        "rollout/unanswered": 1 - answered / rollouts,
        "rollout/distinct_winners": len(winners) / len(votes),
    }


def count_metrics(counts: Mapping[str, float]) -> dict[str, float]:
    """What the reward counted, and of the replies it asked for the shares that could not be read or never came."""
    metrics = {f"reward/count/{name}": float(amount) for name, amount in counts.items()}
    for name, asked in counts.items():
        prefix, _, counter = name.rpartition("/")
        if counter == "asked" and asked > 0:
            start = f"{prefix}/" if prefix else ""
            for outcome in ("unreadable", "failed"):
                metrics[f"reward/{outcome}/{prefix}".rstrip("/")] = counts.get(start + outcome, 0.0) / asked
    return metrics
