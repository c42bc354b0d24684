"""What models said about a completion: judgements, comparisons, critiques and revisions. See `evidence`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlsf.replay.page.blocks import Block, Note, Talk, Turn, anchor
from rlsf.replay.page.pieces import words
from rlsf.replay.page.shapes import are_mappings, are_texts
from rlsf.replay.show import short

MOST = 40
"""Turns of one talk, and talks of one kind, that are shown."""


def judgements(rest: dict[str, Any]) -> Iterator[Block]:
    """Judges: `judgements` in words and the `grades` read from them; of the meta-judge also their `weights`."""
    said, grades, weights = rest.get("judgements"), rest.get("grades"), rest.get("weights")
    if not (are_texts(said) and isinstance(grades, list) and len(said) == len(grades)):
        return
    del rest["judgements"], rest["grades"]
    if isinstance(weights, list) and len(weights) == len(said):
        del rest["weights"]
    else:
        weights = [None] * len(said)
    if rest.get("unreadable") == grades.count(None):  # each is marked
        del rest["unreadable"]
    if rest.get("failures") == []:
        del rest["failures"]
    rows = zip(said, grades, weights, strict=True)
    turns = [
        Turn(f"judgement {n}", words(text), _grade(*figures), figures[0] is None)
        for n, (text, *figures) in enumerate(rows, 1)
    ]
    yield talk("judgements", turns)


def comparisons(rest: dict[str, Any], own: str, positions: Mapping[str, int]) -> Iterator[Block]:
    """Judges of pairs: whom the completion, or of the meta-judge a judgement on it, met, and what was said of the two
    in both orders.

    Args:
        own: the completion's id.
        positions: of the completions of the group, from 1, by id.
    """
    competitor = rest.get("compared_as")
    if isinstance(competitor, str) and competitor in positions:
        del rest["compared_as"]
        if competitor != own:
            yield Note(words(f"compared as completion {positions[competitor]}, which says the same"))
    meetings = rest.get("comparisons")
    if meetings == []:
        del rest["comparisons"]
    if are_mappings(meetings, "opponent", "as_A", "as_B"):
        del rest["comparisons"]
        yield from _first([_meeting(meeting, positions) for meeting in meetings[: MOST + 1]], len(meetings))


def reflections(rest: dict[str, Any]) -> Iterator[Block]:
    """Reflection: critique and revision in turn, over one or more rounds, and what the last revision gained."""
    attempts = rest.get("reflections")
    if not are_mappings(attempts):
        return
    del rest["reflections"]
    talks = []
    for n, attempt in enumerate(attempts[: MOST + 1], 1):
        rounds = [*(attempt["earlier"] if are_mappings(attempt.get("earlier")) else ()), attempt]
        title = f"attempt {n} of {len(attempts)}" if len(attempts) > 1 else "reflection"
        gained = f": gained {short(attempt['gain'])}" if "gain" in attempt else ""
        talks.append(talk(title + gained, [turn for step in rounds for turn in _turns(step)]))
    yield from _first(talks, len(attempts))


def talk(title: str, turns: Sequence[Turn], link: str = "") -> Talk:
    """With as many turns as can be shown."""
    return Talk(title, list(turns[:MOST]), link, max(0, len(turns) - MOST))


def _first(talks: Sequence[Talk], total: int) -> Iterator[Block]:
    yield from talks[:MOST]
    if total > MOST:
        yield Note(words(f"and {total - MOST} more"))


def _grade(grade: Any, weight: Any) -> str:
    if grade is None:
        return "unreadable"
    return f"grade {short(grade)}" if weight is None else f"grade {short(grade)} · weight {short(weight)}"


def _meeting(meeting: Mapping[str, Any], positions: Mapping[str, int]) -> Talk:
    outcome = "not read in both orders" if meeting.get("won") is None else f"won {short(meeting['won'])}"
    if meeting.get("inconsistent") is True:
        outcome += ", the verdict turns with the order"
    opponent, link = meeting["opponent"], ""
    who = _judgement(opponent)
    if isinstance(opponent, str) and opponent in positions:
        who, link = f"completion {positions[opponent]}", anchor("rollout", opponent)
    own = f"{_judgement(meeting['judgement'])} " if "judgement" in meeting else ""
    turns = [turn for place in "AB" for turn in _verdicts(meeting[f"as_{place}"], place)]
    return talk(f"{own}against {who}: {outcome}", turns, link)


def _judgement(id: Any) -> str:
    """The meta-judge calls judgements by the question and, from 0, their number."""
    question, _, index = short(id).rpartition("/judge/")
    return f"judgement {int(index) + 1}" if question and index.isdecimal() and len(index) < 9 else short(id)


def _verdicts(asked: Any, place: str) -> Iterator[Turn]:
    """What was said with the completion shown as `place`, A or B."""
    shown = f"shown as {place}"
    replies, verdicts = (asked.get(key) if isinstance(asked, Mapping) else None for key in ("replies", "verdicts"))
    if not (are_texts(replies) and isinstance(verdicts, list) and len(replies) == len(verdicts)):
        yield Turn(shown, words(short(asked.get("note") if isinstance(asked, Mapping) else asked)), "no verdict", True)
        return
    for text, verdict in zip(replies, verdicts, strict=True):
        outcome = "unreadable" if verdict is None else "for this one" if verdict == place else "for the other"
        yield Turn(shown, words(text), outcome, verdict is None)


def _turns(step: Mapping[str, Any]) -> Iterator[Turn]:
    """One round: the critique, the revision and its outcome."""
    for key, speaker in (("critique", "critique"), ("comment", "comment from outside")):
        if key in step:
            yield Turn(speaker, words(short(step[key])))
    if "revision" in step:
        outcome = " · ".join(f"{name} {short(step[name])}" for name in ("answer", "score") if name in step)
        yield Turn("revision", words(short(step["revision"])), outcome)
    if "note" in step:
        yield Turn("ended", words(short(step["note"])), is_bad=True)
