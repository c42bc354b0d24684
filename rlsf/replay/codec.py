"""A group's payload as bytes: zlib over ASCII JSON.

JSON, because anyone can read it in any language years later, and because Python writes each float as the shortest text
that reads back to the same bits (subnormals and -0.0 included); with zlib it takes about as much room as packed
doubles. What the store can change or filter by (task, iteration, priority) stands in columns, not in here.
"""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from reward.types import Score
from rlsf.errors import RunDirError
from rlsf.experience import Experience, Group
from rollouts.types import Prompt, Rollout, SamplingParams

SAMPLING_FIELDS = tuple(field.name for field in fields(SamplingParams))


def check_group(group: Group) -> None:
    """What the store relies on, so that a broken group is refused when it is added and not when it is drawn.

    Raises:
        ValueError: naming the group, and the rollout where there is one to blame.
    """
    if not group.experiences:
        raise ValueError(f"group {group.id!r} has no experiences")
    if group.prompt.reference is not None or group.prompt.grading:
        raise ValueError(
            f"group {group.id!r}: its prompt carries labels; store prompt.without_labels(), the task data keeps them"
        )
    for name in ("task", "iteration", "priority"):
        values = {getattr(experience, name) for experience in group.experiences}
        if len(values) > 1:
            raise ValueError(f"group {group.id!r}: its experiences differ in {name}: {sorted(values)}")
    check_priority(group.id, group.priority)
    for text in (group.id, group.task, *(experience.rollout.id for experience in group.experiences)):
        if any(0xD800 <= ord(character) < 0xE000 for character in text):
            raise ValueError(f"group {group.id!r}: {text!r} is an id or a task name, and is not valid Unicode")
    for experience in group.experiences:
        tokens = len(experience.rollout.completion_ids)
        for name, logprobs in (
            ("logprobs", experience.rollout.logprobs),
            ("reference_logprobs", experience.reference_logprobs),
        ):
            if logprobs is not None and len(logprobs) != tokens:
                raise ValueError(
                    f"group {group.id!r}: rollout {experience.rollout.id!r} has {tokens} completion tokens "
                    f"but {len(logprobs)} {name}"
                )


def check_priority(group_id: str, priority: float) -> None:
    """Raises ValueError, naming the group, unless `priority` is finite and not negative."""
    if not (math.isfinite(priority) and priority >= 0):
        raise ValueError(f"group {group_id!r}: priority {priority} is not a finite number of at least 0")


def encode(group: Group) -> bytes:
    """The payload of `group`.

    Raises:
        ValueError: something in it is no JSON (a NaN, an infinity, an object); the message names the rollout.
    """
    # Each rollout of a group normally has the same prompt tokens: they are written once.
    prompt_ids = list(dict.fromkeys(experience.rollout.prompt_ids for experience in group.experiences))
    prompt = {
        "id": group.prompt.id,
        "task": group.prompt.task,
        "content": group.prompt.content,
        "metadata": group.prompt.metadata,
    }
    parts = [
        f'"prompt":{_json(prompt, group, "its prompt")}',
        f'"prompt_ids":{_json(prompt_ids, group, "its prompt tokens")}',
        '"experiences":['
        + ",".join(
            _json(
                _experience_to_dict(experience, prompt_ids.index(experience.rollout.prompt_ids)),
                group,
                f"rollout {experience.rollout.id!r}",
            )
            for experience in group.experiences
        )
        + "]",
    ]
    return zlib.compress(("{" + ",".join(parts) + "}").encode("ascii"))


def decode(payload: bytes, *, group_id: str, task: str, iteration: int, priority: float) -> Group:
    """The group that `encode` was given, with the priority it has now.

    Raises:
        RunDirError: the payload is damaged.
    """
    data = json.loads(uncompressed(payload, group_id=group_id))
    prompt = data["prompt"]
    content = prompt["content"]
    return Group(
        id=group_id,
        prompt=Prompt(
            id=prompt["id"],
            task=prompt["task"],
            content=content if isinstance(content, str) else tuple(content),
            metadata=prompt["metadata"],
        ),
        experiences=tuple(
            _experience_from_dict(entry, data["prompt_ids"], task=task, iteration=iteration, priority=priority)
            for entry in data["experiences"]
        ),
    )


def uncompressed(payload: bytes, *, group_id: str) -> bytes:
    """The payload's JSON. zlib's checksum vouches for it.

    Raises:
        RunDirError: the payload is damaged.
    """
    try:
        return zlib.decompress(payload)
    except zlib.error as error:
        raise RunDirError(
            f"the replay store's payload of group {group_id!r} is damaged ({error}): `rlsf replay verify RUN` says "
            "what is whole, and can save it"
        ) from error


def _experience_to_dict(experience: Experience, prompt_index: int) -> dict[str, Any]:
    rollout, score = experience.rollout, experience.score
    return {
        "id": rollout.id,
        "prompt_id": rollout.prompt_id,
        "group_id": rollout.group_id,
        "prompt": prompt_index,
        "completion_ids": rollout.completion_ids,
        "text": rollout.text,
        "logprobs": rollout.logprobs,
        "finish_reason": rollout.finish_reason,
        "policy_version": rollout.policy_version,
        "sampling": {name: getattr(rollout.sampling, name) for name in SAMPLING_FIELDS},
        "score": {"value": score.value, "components": score.components, "evidence": score.evidence},
        "reference_logprobs": experience.reference_logprobs,
    }


def _experience_from_dict(
    entry: dict[str, Any], prompt_ids: list[list[int]], *, task: str, iteration: int, priority: float
) -> Experience:
    sampling = {**entry["sampling"], "stop": tuple(entry["sampling"]["stop"])}
    reference = entry["reference_logprobs"]
    return Experience(
        rollout=Rollout(
            id=entry["id"],
            prompt_id=entry["prompt_id"],
            group_id=entry["group_id"],
            prompt_ids=tuple(prompt_ids[entry["prompt"]]),
            completion_ids=tuple(entry["completion_ids"]),
            text=entry["text"],
            logprobs=tuple(entry["logprobs"]),
            finish_reason=entry["finish_reason"],
            policy_version=entry["policy_version"],
            sampling=SamplingParams(**sampling),
        ),
        score=Score(**entry["score"]),
        task=task,
        iteration=iteration,
        reference_logprobs=None if reference is None else tuple(reference),
        priority=priority,
    )


def _json(value: Any, group: Group, what: str) -> str:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"), default=_mapping_to_dict)
    except (TypeError, ValueError) as error:
        raise ValueError(f"group {group.id!r}: {what} cannot be stored as JSON: {error}") from error


def _mapping_to_dict(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} {value!r} is no JSON")
