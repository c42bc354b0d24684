"""Scored rollouts as rows that people and scripts read."""

from collections.abc import Iterator
from typing import Any

from rlsf.experience import Group


def sample_rows(group: Group) -> Iterator[dict[str, Any]]:
    """One JSON-able row per rollout of the group."""
    for experience in group.experiences:
        rollout, score = experience.rollout, experience.score
        yield {
            "iteration": experience.iteration,
            "task": experience.task,
            "group": group.id,
            "prompt_id": group.prompt.id,
            "prompt": group.prompt.text,
            "completion": rollout.text,
            "reward": score.value,
            "components": dict(score.components),
            "evidence": dict(score.evidence),
            "tokens": len(rollout.completion_ids),
            "finish_reason": rollout.finish_reason,
            "policy_version": rollout.policy_version,
        }


def as_markdown(group: Group) -> str:
    """The prompt as a heading and its completions as a table."""
    lines = [f"**{_cell(group.prompt.text)}**", "", "| reward | completion |", "| --- | --- |"]
    for experience in group.experiences:
        value = experience.score.value
        lines.append(f"| {'no opinion' if value is None else f'{value:.3f}'} | {_cell(experience.rollout.text)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
