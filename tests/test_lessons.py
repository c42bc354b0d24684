"""From what a reward teaches to groups in the replay store, to updates, and to answers to imitate."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reward.types import Lesson, Score
from rlsf.algorithms.dpo import Dpo
from rlsf.algorithms.grpo import Grpo
from rlsf.config.algorithms import DpoConfig, GrpoConfig
from rlsf.config.replay import ReplayConfig
from rlsf.config.schema import LoraConfig, ModelConfig, TaskConfig
from rlsf.errors import RunDirError
from rlsf.experience import Experience, Group
from rlsf.lessons import lesson_groups, write_targets
from rlsf.models.lab_tasks import LAB_DIR
from rlsf.policy import Policy
from rlsf.replay import ReplayStore
from rlsf.tasks import build_task
from rollouts.types import Message, Prompt, Rollout, SamplingParams
from tests.lab_reflection import TEMPERATURE, lab_engine, reflect_on_sums
from tests.tiny_policy import EOS, make_groups, make_policy, perturb, share_of

T = 0.8
"""Temperature at which the tiny policy samples."""


@pytest.fixture(scope="module")
def policy() -> Policy:
    policy = make_policy()
    policy.freeze_reference()
    perturb(policy)
    return policy


@pytest.fixture(scope="module")
def answers(policy: Policy) -> list[Group]:
    return make_groups(policy, share_of(7), prompts=2, n=3, temperature=T)


def critique_lesson(group: Group) -> Lesson:
    """As if a group of answers had been critiques."""
    rollouts = tuple(e.rollout for e in group.experiences)
    scores = tuple(Score(float(i), {"gain": float(i)}, {"answer": "1"}) for i in range(len(rollouts)))
    return Lesson("critique", group.prompt, rollouts, scores, on_policy=True)


def revision_lesson(group: Group, *ids: int, text: str = "t9", gain: float = 1.0) -> Lesson:
    """A revision of the group's first answer, written with other words before it and at another temperature."""
    original = group.experiences[0].rollout
    revision = replace(
        original,
        id=f"{original.id}/revision/0/abc",
        completion_ids=ids,
        text=text,
        logprobs=(-9.0,) * len(ids),
        sampling=SamplingParams(temperature=0.5),
        policy_version=7,
    )
    scores = (Score(0.5), Score(0.5 + gain, {"gain": gain}, {"critique": "no"}))
    return Lesson("revision", group.prompt, (original, revision), scores, on_policy=False)


def groups_of(policy: Policy, *lessons: Lesson, pairs: bool = True, reference: bool = True) -> list[Group]:
    return lesson_groups(lessons, policy, task="toy", iteration=1, temperature=T, pairs=pairs, reference=reference)


def test_critiques_keep_their_tokens_and_log_probabilities(policy: Policy, answers: list[Group]) -> None:
    lesson = critique_lesson(answers[0])
    [group] = groups_of(policy, lesson, pairs=False, reference=False)
    assert group.prompt == lesson.prompt
    assert (group.task, group.iteration) == ("toy", 1)
    assert group.rewards == [0.0, 1.0, 2.0]
    for experience, sampled in zip(group.experiences, lesson.rollouts, strict=True):
        kept = experience.rollout
        assert (kept.prompt_ids, kept.completion_ids, kept.logprobs, kept.sampling) == (
            *(sampled.prompt_ids, sampled.completion_ids, sampled.logprobs, sampled.sampling),
        )
        assert experience.score.evidence == {"lesson": "critique", "answer": "1"}
        assert experience.reference_logprobs is None


def test_a_revision_has_the_log_probabilities_of_answering_the_question_at_once(
    policy: Policy, answers: list[Group]
) -> None:
    [group] = groups_of(policy, revision_lesson(answers[0], 9, 8, EOS))
    original = answers[0].experiences[0].rollout
    sequences = [(original.prompt_ids, original.completion_ids), (original.prompt_ids, (9, 8, EOS))]
    for which, rows in (
        ("default", [e.rollout.logprobs for e in group.experiences]),
        ("reference", [e.reference_logprobs for e in group.experiences]),
    ):
        for row, expected in zip(rows, policy.score_tokens(sequences, adapter=which, temperature=T), strict=True):
            np.testing.assert_allclose(row, expected, atol=1e-5)
    assert {e.rollout.sampling for e in group.experiences} == {original.sampling}
    assert {e.rollout.policy_version for e in group.experiences} == {original.policy_version}


def test_words_without_tokens_get_those_of_an_answer(policy: Policy, answers: list[Group]) -> None:
    [group] = groups_of(policy, revision_lesson(answers[0], text="t9 t8"))
    _, revision = group.experiences
    assert revision.rollout.completion_ids == (9, 8, EOS)
    assert len(revision.rollout.logprobs) == 3


def test_revisions_are_for_algorithms_that_learn_from_pairs(policy: Policy, answers: list[Group]) -> None:
    lessons = [revision_lesson(answers[0], 9, EOS), critique_lesson(answers[1])]
    assert [len(group.experiences) for group in groups_of(policy, *lessons)] == [2, 3]
    assert [len(group.experiences) for group in groups_of(policy, *lessons, pairs=False)] == [3]
    assert groups_of(policy) == []


def test_lessons_share_the_replay_store_with_the_answers_that_they_come_from(
    policy: Policy, answers: list[Group], tmp_path: Path
) -> None:
    """Even two of the same kind from one answer, as two rewards in one sum may draw them."""
    lessons = [revision_lesson(answers[0], 9, EOS), revision_lesson(answers[0], 8, EOS), critique_lesson(answers[1])]
    groups = groups_of(policy, *lessons)
    assert [group.id for group in groups] == [group.id for group in groups_of(policy, *lessons)]
    rollouts = [e.rollout for group in [*answers, *groups] for e in group.experiences]
    assert len({rollout.id for rollout in rollouts}) == len(rollouts)
    assert all(e.rollout.group_id == group.id for group in groups for e in group.experiences)
    with ReplayStore.open(tmp_path, ReplayConfig(), seed=0) as store:
        store.add([*answers, *groups], iteration=1)
        assert list(store.groups()) == [*answers, *groups]
        assert store.find(answers[0].experiences[0].rollout.id) == answers[0]
        assert store.find(groups[1].id) == groups[1]


def test_dpo_learns_to_prefer_the_revision(answers: list[Group], tmp_path: Path) -> None:
    policy = make_policy()
    policy.freeze_reference()
    lesson = revision_lesson(answers[0], 9, 8, EOS)
    groups = groups_of(policy, lesson)

    def margin() -> float:
        original, revision = (sum(row) for row in policy.logprobs([e.rollout for e in groups[0].experiences]))
        return revision - original

    before = margin()
    dpo = Dpo(DpoConfig(learning_rate=1e-2), policy, total_steps=2, dump_dir=tmp_path)
    update = dpo.update(groups, iteration=1, seed=0)
    assert update.metrics["train/pairs"] == 1
    assert list(update.priorities) == [groups[0].id]
    assert margin() > before + 0.1


def test_a_policy_gradient_makes_the_better_critique_likelier(answers: list[Group], tmp_path: Path) -> None:
    policy = make_policy()
    policy.freeze_reference()
    [group] = groups_of(policy, critique_lesson(answers[0]), pairs=False)
    rollouts = [group.experiences[0].rollout, group.experiences[-1].rollout]
    worst, best = (sum(row) for row in policy.logprobs(rollouts))
    Grpo(GrpoConfig(learning_rate=1e-2), policy, total_steps=1, dump_dir=tmp_path).update([group], iteration=1, seed=0)
    worst_after, best_after = (sum(row) for row in policy.logprobs(rollouts))
    assert best_after - best > 0.1 > worst_after - worst


# -- answers to imitate ------------------------------------------------------------------------------------------------


def target(id: str, revised: str, gain: float, *, chat: bool = False) -> Lesson:
    words = f"What is {id}?"
    content = (Message(role="system", content="S"), Message(role="user", content=words)) if chat else words
    sampled = Rollout(f"{id}/0", id, id, (1,), (2,), " 4 ", (-1.0,), "stop", 0, SamplingParams())
    revision = replace(sampled, id=f"{id}/1", text=f"{revised}\n")
    scores = (Score(1.0 - gain), Score(1.0, {"gain": gain}, {"critique": f"not {id}"}))
    return Lesson("revision", Prompt(id, "t", content, metadata={"level": 3}), (sampled, revision), scores, False)


def test_targets_are_rows_that_a_task_reads(tmp_path: Path) -> None:
    path = tmp_path / "targets.jsonl"
    for chat in (False, True):
        lessons = [target(f"{i} + {i}", str(2 * i), 0.5, chat=chat) for i in range(6)]
        path.unlink(missing_ok=True)
        assert write_targets(path, lessons[:4], iteration=1) == 4
        assert write_targets(path, lessons[4:], iteration=2) == 2
        source = {"kind": "file", "path": str(path)}
        task = build_task(TaskConfig(name="t", source=source, chat=chat, split={"validation": 1, "test": 1}), seed=0)
        prompts = {p.text: p for p in (*task.train, *task.validation, *task.test)}
        assert len(prompts) == 6
        read = prompts["What is 3 + 3?"]
        assert (read.content, read.reference) == (lessons[3].prompt.content, "6")
        assert read.metadata == {"iteration": 1, "original": "4", "gain": 0.5, "critique": "not 3 + 3"}


def test_of_several_revisions_of_one_prompt_the_best_is_the_target(tmp_path: Path) -> None:
    """A task would drop a prompt with two different references."""
    worse, better = target("a", "5", 1.0), target("a", "6", 0.1)
    better = replace(better, scores=(better.scores[0], replace(better.scores[1], value=2.0)))
    critique = replace(worse, kind="critique", on_policy=True)
    path = tmp_path / "targets.jsonl"
    assert write_targets(path, [critique, worse, better, worse, target("b", "7", 1.0)], iteration=3) == 2
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["prompt"], row["reference"], row["gain"]) for row in rows] == [
        *(("What is a?", "6", 0.1), ("What is b?", "7", 1.0))
    ]


def test_without_revisions_no_file_is_made(tmp_path: Path) -> None:
    assert write_targets(tmp_path / "targets.jsonl", [], iteration=1) == 0
    assert not (tmp_path / "targets.jsonl").exists()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="cannot write"):
        write_targets(tmp_path, [target("a", "5", 1.0)], iteration=1)


# -- the real path -----------------------------------------------------------------------------------------------------


def lab_update(folder: Path, algorithm: str) -> tuple[dict[str, float], str]:
    """One iteration with lessons, on the lab model: its metrics, and a digest of the adapter that comes of it."""
    lora = LoraConfig(r=4, alpha=8.0)
    policy = Policy.create(LAB_DIR, ModelConfig(source="lab", device="cpu", lora=lora), seed=0)
    policy.freeze_reference()
    reflected = reflect_on_sums(lab_engine())
    answers = [
        Group(group[0].group_id, prompt, tuple(Experience(r, s, "sum", 1) for r, s in zip(group, scores, strict=True)))
        for prompt, group, scores in zip(reflected.prompts, reflected.rollouts, reflected.scores, strict=True)
    ]
    pairs = algorithm == "dpo"
    lessons = lesson_groups(
        reflected.lessons, policy, task="sum", iteration=1, temperature=TEMPERATURE, pairs=pairs, reference=pairs
    )
    kinds = Counter(lesson.kind for lesson in reflected.lessons)
    assert len(lessons) == kinds["critique"] + (kinds["revision"] if pairs else 0) > 0
    groups = [*answers, *lessons]
    with ReplayStore.open(folder / "replay", ReplayConfig(), seed=0) as store:
        store.add(groups, iteration=1)
        assert list(store.groups()) == groups
    trainer = (
        Dpo(DpoConfig(), policy, total_steps=1, dump_dir=folder)
        if pairs
        else Grpo(GrpoConfig(), policy, total_steps=1, dump_dir=folder)
    )
    return trainer.update(groups, iteration=1, seed=0).metrics, policy.adapter_digest()


@pytest.mark.parametrize("algorithm", ["grpo", "dpo"])
def test_a_real_model_learns_from_its_lessons_the_same_way_each_time(tmp_path: Path, algorithm: str) -> None:
    metrics, digest = lab_update(tmp_path / "a", algorithm)
    assert metrics["train/steps"] == 1
    assert all(np.isfinite(value) for value in metrics.values())
    assert lab_update(tmp_path / "b", algorithm) == (metrics, digest)
