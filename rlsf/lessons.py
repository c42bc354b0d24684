"""What a reward found worth learning besides its scores: groups to train on, and answers to imitate."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from reward.types import Lesson
from rlsf.algorithms.sft import answer_ids
from rlsf.experience import LESSON, Experience, Group
from rlsf.files import clear_os_errors
from rlsf.policy import POLICY, REFERENCE, Policy
from rollouts.types import Rollout


def lesson_groups(
    lessons: Sequence[Lesson],
    policy: Policy,
    *,
    task: str,
    iteration: int,
    temperature: float,
    pairs: bool,
    reference: bool,
) -> list[Group]:
    """A group for each lesson that the algorithm can use, in their order.

    What the policy sampled serves every algorithm. A revision was written with a critique in sight, so that the
    log-probabilities it came with are not those of answering the question: such lessons are for algorithms that learn
    from pairs, with log-probabilities computed anew, under the policy as it is and with the question alone before them.
    Words that came without tokens (from an endpoint, or a model with another vocabulary) are tokenised as the answers
    of a warm start are.

    Ids derive from those of the rollouts, and differ from those of all groups of answers and the rollouts in them.

    Args:
        lessons: of one round of scoring.
        task: that their prompts are of.
        temperature: at which the policy samples; critiques and judgements were sampled at the same.
        pairs: whether the algorithm learns from pairs (DPO).
        reference: whether it needs reference log-probabilities.
    """
    usable = [lesson for lesson in lessons if lesson.on_policy or pairs]
    rollouts = [_rollouts(lesson, id, policy) for lesson, id in zip(usable, _ids(usable), strict=True)]
    off_policy = [r for lesson, group in zip(usable, rollouts, strict=True) if not lesson.on_policy for r in group]
    anew = dict(zip((r.id for r in off_policy), _logprobs(off_policy, policy, temperature), strict=True))
    rollouts = [[replace(r, logprobs=anew.get(r.id, r.logprobs)) for r in group] for group in rollouts]
    flat = [rollout for group in rollouts for rollout in group]
    references = iter(_logprobs(flat, policy, temperature, REFERENCE) if reference else [None] * len(flat))
    return [
        Group(
            id=group[0].group_id,
            prompt=lesson.prompt,
            experiences=tuple(
                Experience(
                    rollout,
                    replace(score, evidence={LESSON: lesson.kind, **score.evidence}),
                    task,
                    iteration,
                    next(references),
                )
                for rollout, score in zip(group, lesson.scores, strict=True)
            ),
        )
        for lesson, group in zip(usable, rollouts, strict=True)
    ]


def write_targets(path: Path, lessons: Sequence[Lesson], *, iteration: int) -> int:
    """Append the best revision of each prompt to a JSONL file, as rows that a task's `source: {kind: file}` reads, and
    return how many.

    One per prompt: of rows that answer a prompt differently, a task would drop all. `reference` is what to imitate;
    the other columns say where it comes from.

    Raises:
        RunDirError: the file cannot be written.
    """
    best: dict[str, Lesson] = {}
    for lesson in lessons:
        known = best.get(lesson.prompt.id)
        if lesson.kind == "revision" and (known is None or _worth(lesson) > _worth(known)):
            best[lesson.prompt.id] = lesson
    rows = [{"iteration": iteration, **_target(lesson)} for lesson in best.values()]
    if rows:
        with clear_os_errors(path), path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
    return len(rows)


def _target(lesson: Lesson) -> dict[str, object]:
    original, revision = lesson.rollouts
    score = lesson.scores[1]
    return {
        "prompt": lesson.prompt.content,
        "reference": revision.text.strip(),
        "original": original.text.strip(),
        "gain": score.components["gain"],
        "critique": score.evidence["critique"],
    }


def _worth(lesson: Lesson) -> float:
    """What the revision scores."""
    value = lesson.scores[1].value
    assert value is not None, "a lesson's revision has gained"
    return value


def _ids(lessons: Sequence[Lesson]) -> Iterator[str]:
    """A different one for each, even where two rewards draw the same lesson from the same answer."""
    seen: Counter[str] = Counter()
    for lesson in lessons:
        name = f"{lesson.rollouts[0].id}/{lesson.kind}"
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}/again{seen[name]}"


def _rollouts(lesson: Lesson, group_id: str, policy: Policy) -> list[Rollout]:
    """The lesson's rollouts, named as members of the group. Where they are to be compared as answers to one question,
    all are said to have been sampled as the first was."""
    first = lesson.rollouts[0]
    named = [replace(r, id=f"{group_id}/{i}", group_id=group_id) for i, r in enumerate(lesson.rollouts)]
    if lesson.on_policy:
        return named
    return [
        replace(
            rollout,
            completion_ids=rollout.completion_ids or answer_ids(policy.tokenizer, rollout.text),
            policy_version=first.policy_version,
            sampling=first.sampling,
        )
        for rollout in named
    ]


def _logprobs(
    rollouts: Sequence[Rollout], policy: Policy, temperature: float, adapter: str = POLICY
) -> list[tuple[float, ...]]:
    return [tuple(row) for row in policy.logprobs(rollouts, adapter=adapter, temperature=temperature)]
