"""A group as the template takes it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from rlsf.experience import Experience, Group
from rlsf.replay.page.blocks import Block, Tree, anchor
from rlsf.replay.page.evidence import EvidenceReader, tree
from rlsf.replay.page.pieces import Piece, pieces
from rlsf.replay.show import number
from rollouts.types import Rollout

Offset = Callable[[Rollout, int], int | None]
"""How many characters of a completion its first so many tokens are; None where nobody can tell."""


def nowhere(rollout: Rollout, tokens: int) -> int | None:
    """An `Offset` without a tokenizer."""
    return None


@dataclass(frozen=True, slots=True)
class Row:
    """A component's score as a line of a table with a bar; lengths in percent of the bar's room."""

    name: str
    depth: int
    """0 for a component, more for what it is made of."""
    value: float | None
    start: float
    length: float
    zero: float


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion as the template takes it."""

    position: int
    """In its group, from 1."""
    anchor: str
    experience: Experience
    tone: str
    """Of its reward: positive, negative, zero, or none for no opinion."""
    rank: str
    """`best` or `worst` of a group whose rewards differ, else empty."""
    facts: list[str]
    text: list[Piece]
    is_cut: bool
    """Whether some of the text is left out."""
    rows: list[Row]
    blocks: list[Block]


@dataclass(frozen=True, slots=True)
class GroupView:
    """One group as the template takes it."""

    group: Group
    anchor: str
    temperature: float
    messages: list[tuple[str, list[Piece]]]
    """(role, words); the role is empty for a plain prompt."""
    metadata: Tree | None
    completions: list[Completion]
    tones: str
    """Those of its completions, each once, between spaces."""
    spread: float | None
    """Largest minus smallest reward; None where fewer than two completions have one."""


def view(group: Group, offset: Offset = nowhere) -> GroupView:
    """What the template says about a group."""
    content = group.prompt.content
    messages = [("", content)] if isinstance(content, str) else [(m["role"], m["content"]) for m in content]
    known = [reward for reward in group.rewards if reward is not None]
    return GroupView(
        group=group,
        anchor=anchor("group", group.id),
        temperature=group.experiences[0].rollout.sampling.temperature,
        messages=[(role, pieces(words)) for role, words in messages],
        metadata=tree("metadata", group.prompt.metadata) if group.prompt.metadata else None,
        completions=list(_completions(group, offset)),
        tones=" ".join(dict.fromkeys(map(_tone, group.rewards))),
        spread=max(known) - min(known) if len(known) > 1 else None,
    )


def _completions(group: Group, offset: Offset) -> Iterator[Completion]:
    peers = {experience.rollout.id: n for n, experience in enumerate(group.experiences, 1)}
    known = {reward for reward in group.rewards if reward is not None}
    ranks = {max(known): "best", min(known): "worst"} if len(known) > 1 else {}
    scales = _scales(group)
    for position, experience in enumerate(group.experiences, 1):
        rollout, score = experience.rollout, experience.score
        reader = EvidenceReader(experience, peers, partial(offset, rollout))
        blocks = reader.read()
        text = pieces(rollout.text, reader.marks)
        yield Completion(
            position=position,
            anchor=anchor("rollout", rollout.id),
            experience=experience,
            tone=_tone(score.value),
            rank="" if score.value is None else ranks.get(score.value, ""),
            facts=_facts(experience),
            text=text,
            is_cut=any(piece.left_out for piece in text),
            rows=[_row(name, score.components.get(name), *scale) for name, scale in scales.items()],
            blocks=blocks,
        )


def _tone(reward: float | None) -> str:
    if reward is None:
        return "none"
    return "positive" if reward > 0 else "negative" if reward < 0 else "zero"


def _facts(experience: Experience) -> list[str]:
    rollout = experience.rollout
    tokens = len(rollout.completion_ids)
    facts = [f"{tokens} token{'' if tokens == 1 else 's'}", f"finished by {rollout.finish_reason}"]
    if rollout.truncated:
        facts.append("cut off: it has no answer")
    for name, logprobs in (("mean log p", rollout.logprobs), ("of the reference", experience.reference_logprobs)):
        if logprobs:
            facts.append(f"{name} {number(math.fsum(logprobs) / len(logprobs))}")
    return facts


def _scales(group: Group) -> dict[str, tuple[float, float]]:
    """The ends of each component's bars: those of the group's values, 0, and 1 or -1 where that is no further."""
    values: dict[str, list[float]] = {}
    for experience in group.experiences:
        for name, value in experience.score.components.items():
            values.setdefault(name, []).append(value)
    scales = {}
    for name, own in values.items():
        low, high = min(0.0, *own), max(0.0, *own)
        scales[name] = (min(low, -1.0) if high == 0 > low else low, max(high, 1.0) if low == 0 else high)
    return scales


def _row(name: str, value: float | None, low: float, high: float) -> Row:
    start, end = sorted(100 * (edge - low) / (high - low) for edge in (0.0, value or 0.0))
    return Row(
        name=name.rpartition("/")[2],
        depth=name.count("/"),
        value=value,
        start=round(start, 2),
        length=round(end - start, 2),
        zero=round(100 * -low / (high - low), 2),
    )
