"""A score's evidence as blocks for a page: in the terms of its reward where its shape is known, as a nested list where
it is not.

Evidence is JSON from any reward, the user's own among them, and much of it is a model's words: nothing about its shape
is taken for granted. Each recogniser takes out of a mapping what it knows and yields blocks for that; what is left is
listed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from rlsf.experience import Experience
from rlsf.replay.page.blocks import Bar, Block, Facts, Graded, Note, Section, Tree, Turn, Votes
from rlsf.replay.page.pieces import Mark, words
from rlsf.replay.page.shapes import are_mappings, is_count, is_range
from rlsf.replay.page.talks import comparisons, judgements, reflections, talk
from rlsf.replay.show import entries, short

MOST_ROWS = 40
"""Entries of a list or a mapping that are shown."""
DEEPEST = 8
"""Levels of nesting that are shown as such."""

Rest = dict[str, Any]
"""Evidence that no recogniser has taken yet."""


class EvidenceReader:
    """Reads the evidence of one completion."""

    def __init__(
        self, experience: Experience, positions: Mapping[str, int], offset: Callable[[int], int | None]
    ) -> None:
        """
        Args:
            positions: of the completions of the group, from 1, by rollout id.
            offset: how many characters of the completion its first so many tokens are; None where nobody can tell.
        """
        self._experience = experience
        self._positions = positions
        self._offset = offset
        self.marks: list[Mark] = []
        """What the evidence names in the completion, once it has been read."""

    def read(self) -> list[Block]:
        return self._blocks(self._experience.score.evidence, path="", depth=0)

    def _blocks(self, evidence: Mapping[str, Any], *, path: str, depth: int) -> list[Block]:
        rest = dict(evidence)
        recognisers: tuple[Callable[[Rest], Iterable[Block]], ...] = (
            _notes,
            self._votes,
            _graded,
            self._rules,
            self._tokens,
            judgements,
            partial(comparisons, own=self._experience.rollout.id, positions=self._positions),
            reflections,
        )
        known = [block for recognise in recognisers for block in recognise(rest)]
        return known + list(self._others(rest, path, depth))

    def _others(self, rest: Rest, path: str, depth: int) -> Iterator[Block]:
        if len(rest) > MOST_ROWS:
            yield tree("evidence", rest, depth)
            return
        plain = [(name, words(short(value))) for name, value in rest.items() if _is_short(value)]
        if plain:
            yield Facts(plain)
        for name, value in rest.items():
            if isinstance(value, Mapping) and value and depth < DEEPEST:
                below = f"{path}/{name}" if path else name
                score = self._experience.score.components.get(below)
                yield Section(name, score, self._blocks(value, path=below, depth=depth + 1))
            elif not _is_short(value):
                yield tree(name, value, depth)

    def _votes(self, rest: Rest) -> Iterator[Block]:
        """Majority, semantic entropy: `votes` by answer, this completion's `answer`, and the `winners`."""
        votes = rest.get("votes")
        if "answer" not in rest or not isinstance(votes, dict) or not all(map(is_count, votes.values())):
            return
        own, winners = rest.pop("answer"), []
        del rest["votes"]
        if isinstance(rest.get("winners"), list):
            winners = rest.pop("winners")
        longest = max(len(self._positions), *votes.values(), 1)
        bars = [
            Bar(words(answer), count, round(100 * count / longest, 2), answer in winners, answer == own)
            for index, (answer, count) in enumerate(votes.items())
            if index < MOST_ROWS or answer == own
        ]
        yield Votes(own is not None, bars, len(votes) - len(bars))

    def _rules(self, rest: Rest) -> Iterator[Block]:
        """Rules: why each of those `broken` is, and what was found where. Other rewards point at one place."""
        broken = rest.get("broken")
        if isinstance(broken, dict) and are_mappings([*broken.values()], "why", "found"):
            del rest["broken"]
            yield talk("broken", [self._breach(name, breach) for name, breach in broken.items()])
        elif broken == {}:
            del rest["broken"]
        for name, place in rest.items():
            if self._mark_place(place, name):
                rest[name] = place["around"]

    def _breach(self, rule: str, breach: Mapping[str, Any]) -> Turn:
        places = breach["found"] if isinstance(breach["found"], list) else []
        around = [place["around"] for place in places if self._mark_place(place, f"breaks {rule}")]
        price = f"costs {short(breach['penalty'])}" if "penalty" in breach else ""
        return Turn(rule, words("\n".join([short(breach["why"]), *around])), price, True)

    def _mark_place(self, place: Any, title: str) -> bool:
        """Marks an excerpt where it stands in the completion; whether it is one."""
        edges = [place.get("start"), place.get("end")] if isinstance(place, dict) else None
        if not (is_range(edges, len(self._experience.rollout.text)) and isinstance(place.get("around"), str)):
            return False
        self.marks.append(Mark(place["start"], place["end"], "broken", title))
        return True

    def _tokens(self, rest: Rest) -> Iterator[Block]:
        """Signals per token: the `span` that counts, how many `tokens` of it, and the `least_certain_token`."""
        total = len(self._experience.rollout.completion_ids)
        span, least = rest.get("span"), rest.get("least_certain_token")
        if not (is_range(span, total) and is_range([least, least], total - 1)):
            return
        start, end = rest.pop("span")
        token, figure, counted = rest.pop("least_certain_token"), rest.pop("least", None), rest.pop("tokens", None)
        what = f"token {end}" if end - start == 1 else f"tokens {start + 1} to {end}"
        if counted != end - start:
            what = f"the {short(counted)} least certain of {what}"
        text = self._marked(token, token + 1, "least", f"least certain token: {short(figure)}")
        if end - start < total:
            self._marked(start, end, "span", "tokens that count")
        yield Facts(
            [
                ("counts", words(f"{what} of {total}")),
                ("least certain", words(f"token {token + 1}{text} at {short(figure)}")),
            ]
        )

    def _marked(self, start: int, end: int, kind: str, title: str) -> str:
        """Marks tokens in the completion, where they can be found in it; returns their text, quoted."""
        first, last = self._offset(start), self._offset(end)
        if first is None or last is None:
            return ""
        self.marks.append(Mark(first, last, kind, title))
        return f" “{self._experience.rollout.text[first:last]}”"


def tree(name: str, value: Any, depth: int = 0) -> Tree:
    """Any JSON as a nested list."""
    below = entries(value)
    if below is None:
        return Tree(name, words(short(value)))
    if depth >= DEEPEST:
        return Tree(name, words("(nested too deeply to be shown here)"))
    shown = list(below.items())[:MOST_ROWS]
    return Tree(name, [], [tree(key, item, depth + 1) for key, item in shown], len(below) - len(shown))


def _notes(rest: Rest) -> Iterator[Block]:
    """A `note` in a reward's own words, and whether a gate is `open`."""
    if isinstance(rest.get("note"), str):
        yield Note(words(rest.pop("note")))
    if {"open", "condition", "reward"} <= rest.keys() and (rest["open"] is None or isinstance(rest["open"], bool)):
        state = {True: "open: the reward is paid", False: "shut", None: "without an opinion"}[rest.pop("open")]
        yield Note(words(f"the gate is {state}"))


def _graded(rest: Rest) -> Iterator[Block]:
    """Verifiers: the `answer` beside the `reference`."""
    if {"answer", "reference"} <= rest.keys() and _is_short(rest["answer"]) and _is_short(rest["reference"]):
        answer = rest.pop("answer")
        yield Graded(words("(none)" if answer is None else short(answer)), words(short(rest.pop("reference"))))


def _is_short(value: Any) -> bool:
    return entries(value) is None
