"""What comes back from the store: whose groups, with which references, and what a later warm start rehearses."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlsf.config.schema import RunConfig
from rlsf.continual.replaying import best_answers, draw, earlier_groups, up_to_date
from rlsf.experience import Group
from rlsf.replay import ReplayStore
from rlsf.state import LoopState
from tests.replay_groups import make_group

SEQUENTIAL: dict[str, Any] = {"kind": "sequential"}
BLURRED: dict[str, Any] = {"kind": "blurred"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ReplayStore]:
    """Two groups of each task a to d, of iterations 1 to 4; a third of a, of an earlier run."""
    config = config_of(SEQUENTIAL).replay
    with ReplayStore.open(tmp_path, config, seed=0) as opened:
        opened.add([make_group("old", task="a", iteration=0)], iteration=0)
        for iteration, task in enumerate("abcd", start=1):
            groups = [make_group(f"{task}{i}", task=task, iteration=iteration) for i in range(2)]
            opened.add(groups, iteration=iteration)
        yield opened


def config_of(stream: dict[str, Any], **replay: object) -> RunConfig:
    source = {"kind": "reasoning_gym", "dataset": "chain_sum", "size": 400}
    return RunConfig(name="r", tasks=[{"name": t, "source": source} for t in "abcd"], stream=stream, replay=replay)  # type: ignore[arg-type, list-item]


def run_of(store: ReplayStore, stream: dict[str, Any], *, begun: str = "abc", **replay: object) -> Any:
    """A run at iteration 5, whose current task is the last that has begun."""
    return SimpleNamespace(
        config=config_of(stream, **replay),
        state=LoopState(task=begun[-1], tasks=list(begun), iteration=4, policy_version=4),
        tasks=dict.fromkeys("abcd"),
        replay=store,
        population=None,
    )


def drawn(run: Any, **settings: bool) -> set[str]:
    return {group.task for group in draw(run, 99, 5, **settings)}


def test_earlier_tasks_are_those_that_have_begun_but_the_current_one(store: ReplayStore) -> None:
    assert drawn(run_of(store, SEQUENTIAL)) == set("abcd")
    assert drawn(run_of(store, BLURRED), earlier_only=True) == set("ab")  # d took part already, and never led
    assert drawn(run_of(store, BLURRED, source="earlier")) == set("ab")
    assert drawn(run_of(store, SEQUENTIAL, begun="abcd", source="earlier")) == set("abc")


def test_groups_of_earlier_tasks_are_pointed_out(store: ReplayStore) -> None:
    groups = list(store.groups())
    assert earlier_groups(run_of(store, SEQUENTIAL), groups) == {"a0", "a1", "b0", "b1", "old"}
    assert earlier_groups(run_of(store, SEQUENTIAL, begun="ca"), groups) == {"c0", "c1"}
    assert earlier_groups(run_of(store, SEQUENTIAL, begun="b"), groups) == {"old"}  # an earlier run's


def test_references_of_before_the_last_change_are_forgotten(store: ReplayStore) -> None:
    run = run_of(store, SEQUENTIAL)
    run.state.reference_since = 3
    for group in up_to_date(run, list(store.groups())):
        known = [experience.reference_logprobs for experience in group.experiences]
        assert all(row is None for row in known) if group.iteration < 3 else all(row is not None for row in known)


def test_the_best_answers_are_rehearsed() -> None:
    def group(name: str, *rewards: float | None) -> Group:
        made = make_group(name, rewards=rewards)
        own = [replace(e.rollout, completion_ids=(i,), logprobs=(-1.0,)) for i, e in enumerate(made.experiences)]
        pairs = zip(made.experiences, own, strict=True)
        return replace(made, experiences=tuple(replace(e, rollout=rollout) for e, rollout in pairs))

    groups = [
        group("some are right", 0.0, 1.0, 0.0),
        group("all are right", 1.0, 1.0),
        group("none is right", 0.0, 0.0),
        group("unscored", None, None),
        group("one is known", None, 0.0, 0.5),
    ]
    assert [completion for _, completion in best_answers(groups)] == [(1,), (0,), (2,)]
    assert best_answers([]) == []
