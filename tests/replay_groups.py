"""Groups to fill a replay store with, and a fixed sequence of calls for the tests that kill it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from reward.types import Score
from rlsf.config.replay import PerClusterDraw, PerTaskDraw, PrioritizedDraw, RecencyDraw, ReplayConfig, SuccessDraw
from rlsf.experience import Experience, Group
from rlsf.replay import ReplayStore
from rollouts.types import Prompt, Rollout, SamplingParams


def make_group(
    group_id: str,
    *,
    iteration: int = 1,
    task: str = "sums",
    version: int | None = None,
    priority: float = 1.0,
    rewards: tuple[float | None, ...] = (1.0, 0.0),
    text: str = "2",
    logprobs: tuple[float, ...] = (-0.5, -0.25),
    evidence: dict[str, Any] | None = None,
) -> Group:
    sampling = SamplingParams(n=len(rewards), max_tokens=16, stop=("\n",))
    return Group(
        id=group_id,
        prompt=Prompt(id=f"prompt-{group_id}", task=task, content="1 + 1 =", metadata={"level": 3}),
        experiences=tuple(
            Experience(
                rollout=Rollout(
                    id=f"{group_id}:{position}",
                    prompt_id=f"prompt-{group_id}",
                    group_id=group_id,
                    prompt_ids=(5, 6, 7),
                    completion_ids=tuple(range(len(logprobs))),
                    text=text,
                    logprobs=logprobs,
                    finish_reason="stop",
                    policy_version=iteration - 1 if version is None else version,
                    sampling=sampling,
                ),
                score=Score(value=reward, components={"majority": 1.0}, evidence=evidence or {}),
                task=task,
                iteration=iteration,
                reference_logprobs=logprobs,
                priority=priority,
            )
            for position, reward in enumerate(rewards)
        ),
    )


SCENARIO_ITERATIONS = 20
SCENARIO_SEED = 5
PRUNE_LAG = 3
"""The scenario can be rolled back by this many iterations."""


def scenario_config(keep: str) -> ReplayConfig:
    draws = {"fifo": PrioritizedDraw(), "balanced": PerTaskDraw(), "diverse": PerClusterDraw(within=RecencyDraw())}
    draw = draws.get(keep, SuccessDraw(within=PrioritizedDraw()))
    return ReplayConfig(capacity=9, keep=keep, draw=draw, max_staleness=6)  # type: ignore[arg-type]


def play_iteration(store: ReplayStore, iteration: int) -> None:
    """One iteration of a made-up run: add, draw, re-prioritise, cluster anew, and prune as a checkpoint would."""
    rng = np.random.default_rng(iteration)
    fresh = [
        make_group(
            f"g{iteration}-{i}",
            iteration=iteration,
            task=f"task{i % 3}",
            priority=float(rng.random()),
            rewards=(float(rng.random()), None),
            logprobs=tuple(rng.normal(size=150).tolist()),
        )
        for i in range(4)
    ]
    store.add(
        fresh,
        iteration=iteration,
        clusters={group.id: int(rng.integers(3)) for group in fresh[1:]},
        embeddings={group.id: rng.normal(size=4) for group in fresh},
    )
    drawn = store.draw(5, iteration=iteration, policy_version=iteration, exclude_iteration=iteration)
    store.update_priorities({group.id: float(rng.random()) for group in [*fresh, *drawn]}, iteration=iteration)
    if iteration % 4 == 3:
        store.set_clusters({group.id: int(rng.integers(3)) for group in drawn}, iteration=iteration)
    if iteration > PRUNE_LAG:
        store.prune_journal(iteration - PRUNE_LAG)
    if iteration % 5 == 2:
        store.compact()


if __name__ == "__main__":
    directory, keep_policy = sys.argv[1:]
    with ReplayStore.open(Path(directory), scenario_config(keep_policy), seed=SCENARIO_SEED) as opened:
        print("open", flush=True)
        for number in range(1, SCENARIO_ITERATIONS + 1):
            play_iteration(opened, number)
            print(number, flush=True)
    print("done", flush=True)
