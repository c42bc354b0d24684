"""The page that `rlsf replay page` writes: inert, complete, and what the store says."""

import base64
import hashlib
import io
import json
import re
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from rich.console import Console

from reward.config import RewardConfig
from reward.factory import make_reward
from reward.types import Score
from rlsf.config.replay import ReplayConfig
from rlsf.errors import RunDirError
from rlsf.experience import Experience, Group
from rlsf.replay import ReplayReader, ReplayStore
from rlsf.replay.page import Selection, make_page, write_page
from rlsf.replay.page.pieces import Mark, pieces
from rlsf.run_dir import RunDir
from tests.killing import run_cli
from tests.lab_run import run_lab
from tests.replay_groups import make_group
from tests.reward_fakes import ScriptedEngine, context, prompt, rollout, stats_of

NEWEST = Selection()
VOID = {"meta", "input", "br", "link"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list["Element | str"] = field(default_factory=list)

    def all(self, tag: str = "", **attributes: str) -> Iterator["Element"]:
        """Elements below this one; `class_` is one of the classes."""
        for child in self.children:
            if isinstance(child, Element):
                if child.fits(tag, attributes):
                    yield child
                yield from child.all(tag, **attributes)

    def one(self, tag: str = "", **attributes: str) -> "Element":
        (found,) = self.all(tag, **attributes)
        return found

    def fits(self, tag: str, attributes: dict[str, str]) -> bool:
        mine = {**self.attributes, "class_": ""}
        classes = (self.attributes.get("class") or "").split()
        return (not tag or self.tag == tag) and all(
            value in classes if name == "class_" else mine.get(name.replace("_", "-")) == value
            for name, value in attributes.items()
        )

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    @property
    def words(self) -> str:
        """The text with one space between its words, and between elements."""
        return " ".join(" ".join(child if isinstance(child, str) else child.words for child in self.children).split())


class Tree(HTMLParser):
    """Raises AssertionError where tags are not closed in the order in which they were opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.root = Element("")
        self._open = [self.root]
        self.feed(page)
        self.close()
        assert self._open == [self.root], self._open[-1].tag

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of {tag} stands twice"
        element = Element(tag, dict(attrs))
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


def parsed(page: str) -> Element:
    """The page, once it is certain that it is well-formed, asks for nothing, and runs one script: its own."""
    root = Tree(page).root
    elements = list(root.all())
    assert {element.tag for element in elements}.isdisjoint({"img", "link", "iframe", "object", "embed", "base"})
    for element in elements:
        for name, value in element.attributes.items():
            assert not name.startswith("on") and name not in ("src", "style", "srcset", "action"), (element.tag, name)
            assert name != "href" or str(value).startswith("#"), value
    ids = [element.attributes["id"] for element in elements if "id" in element.attributes]
    assert len(set(ids)) == len(ids)
    targets = {element.attributes["href"] for element in elements if "href" in element.attributes}
    for target in targets:
        assert unquoted(str(target)[1:]) in ids
    policy = root.one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(root.one(tag).text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in str(policy)
    assert str(policy).startswith("default-src 'none'; ")
    return root


def unquoted(fragment: str) -> str:
    """As a browser decodes it."""
    return re.sub(rb"%([0-9A-F]{2})", lambda match: bytes.fromhex(match[1].decode()), fragment.encode()).decode()


@pytest.fixture
def page_of(tmp_path: Path) -> Callable[..., Element]:
    """Writes the page of some groups, oldest first, and parses it."""

    def write(*groups: Group, selection: Selection = NEWEST, **more: Any) -> Element:
        with ReplayStore.open(tmp_path / "replay", ReplayConfig(capacity=500), seed=0) as store:
            for group in groups:
                store.add([group], iteration=group.iteration)
            write_page(store, tmp_path / "page.html", selection, run=Path("runs/a run"), **more)
        return parsed((tmp_path / "page.html").read_text("utf-8"))

    return write


def shown(page: Element) -> list[str]:
    """Ids of the groups on the page, in order."""
    return [str(group.attributes["data-id"]) for group in page.all("article")]


# -- what stands on it -------------------------------------------------------------------------------------------------


def test_numbers_and_words_are_those_of_the_store(page_of):
    groups = [
        make_group("g/1", rewards=(0.1 + 0.2, None), text="one"),
        make_group("g/2", iteration=2, task="gcd", rewards=(-1.5, 0.0, 1e-7), text=" two \n lines", priority=0.25),
    ]
    page = page_of(*groups)
    assert shown(page) == ["g/2", "g/1"]
    for group, article in zip(reversed(groups), page.all("article"), strict=True):
        facts = article.one("header").words
        for fact in (
            f"task {group.task}",
            f"iteration {group.iteration} ",
            f"policy version {group.policy_version} ",
            f"priority {group.priority:g}",
        ):
            assert fact in facts
        assert article.one(class_="message").words == "1 + 1 ="
        assert "level 3" in article.one(class_="prompt").words
        items = list(article.all("li", class_="completion"))
        assert len(items) == len(group.experiences)
        for experience, item in zip(group.experiences, items, strict=True):
            value = experience.score.value
            assert item.attributes["data-reward"] == ("none" if value is None else repr(value))
            assert item.one("div", class_="text").text == experience.rollout.text
            assert "2 tokens · finished by stop · mean log p -0.375 · of the reference -0.375" in item.words
            assert item.one("table", class_="components").one("td", data_value="1.0").text == "1"
    assert "0.3" in page.one("li", data_reward="0.30000000000000004").one("b", class_="reward").text
    assert page.one("li", data_reward="none").one("b", class_="reward").text == "no opinion"
    assert "2 of 2 groups, newest first; the store is at iteration 2." in page.one("header", class_="page").words


def test_filters_find_what_they_ask_for(page_of):
    page = page_of(
        make_group("up", rewards=(1.0, 0.0)),
        make_group("down", iteration=2, task="gcd", rewards=(-1.0, None)),
        make_group("mute", iteration=3, rewards=(None, None)),
        make_group("even", iteration=3, rewards=(0.5, 0.5)),
    )
    found = {
        article.attributes["data-id"]: [
            article.attributes[f"data-{name}"] for name in ("task", "iteration", "rewards", "spread")
        ]
        for article in page.all("article")
    }
    assert found == {
        "up": ["sums", "1", "positive zero", "1.0"],
        "down": ["gcd", "2", "negative none", ""],
        "mute": ["sums", "3", "none", ""],
        "even": ["sums", "3", "positive", "0.0"],
    }
    offered = {str(option.attributes["value"]) for option in page.one("select", id="rewards").all("option")}
    assert offered == {"", "positive", "negative", "zero", "none", "differ", "agree"}
    assert "hidden" in page.one("form", id="tools").attributes  # the script shows it: without one it would do nothing


def test_best_and_worst_are_named_where_rewards_differ(page_of):
    page = page_of(make_group("a", rewards=(0.5, None, 1.0, 0.25)), make_group("b", rewards=(1.0, 1.0)))
    tags = [[tag.text for tag in item.all("span", class_="tag")] for item in page.all("li", class_="completion")]
    assert tags == [[], [], [], [], ["best"], ["worst"]]


def test_bars_of_a_component_share_a_scale_with_its_zero(page_of):
    group = make_group("g", rewards=(1.0, 1.0, 1.0))
    parts: list[dict[str, float]] = [{"a": 3.0, "a/b": -1.0, "c": 0.25}, {"a": -1.0}, {"a/b": -0.5, "c": 0.5}]
    told = zip(group.experiences, parts, strict=True)
    page = page_of(replace(group, experiences=tuple(replace(one, score=Score(1.0, own)) for one, own in told)))
    drawn = [
        [(row.one("th").text, row.one("td", class_="number").text, *bar_of(row)) for row in table.all("tr")]
        for table in page.all("table", class_="components")
    ]
    assert drawn == [
        [("a", "3", 25.0, 75.0), ("b", "-1", 0.0, 100.0), ("c", "0.25", 0.0, 25.0)],
        [("a", "-1", 0.0, 25.0), ("b", "–", 100.0, 0.0), ("c", "–", 0.0, 0.0)],
        [("a", "–", 25.0, 0.0), ("b", "-0.5", 50.0, 50.0), ("c", "0.5", 0.0, 50.0)],
    ]


def bar_of(row: Element) -> tuple[float, float]:
    """Start and length, in percent."""
    bar = list(row.all("rect"))[1].attributes
    return float(str(bar["x"])), float(str(bar["width"]))


def test_chats_show_who_said_what(page_of):
    group = make_group("g")
    chat = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"})
    page = page_of(replace(group, prompt=replace(group.prompt, content=chat)))
    assert [message.words for message in page.all(class_="message")] == ["system Be brief.", "user 1 + 1?"]


# -- hostile text ------------------------------------------------------------------------------------------------------

HOSTILE = {
    "script": "</script><script>alert(1)</script>",
    "image": '<img src=x onerror="alert(1)">',
    "attribute": "\" onmouseover='alert(1)' x=\"",
    "comment": "<!-- <script> -->",
    "template": "{{ 7 * 7 }}{% for x in y %}{# no #}",
    "entity": "&lt;b&gt; &#60; &amp;",
    "control": "a\0b\x1b[2Jc\rd\x85e\x7f",
    "surrogate": "half \ud83d of it",
    "direction": "if \u202eadmin\u202c \u2066x\u2069",
    "first line": "\n\n two empty ones",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_words_are_only_words_wherever_they_stand(page_of, text):
    group = make_group(
        "g",
        text=text,
        evidence={"critique": text, text: {text: [text, {text: text}]}, "votes": {text: 1}, "answer": text},
    )
    prompt = replace(group.prompt, content=({"role": text, "content": text},), metadata={text: text})
    told = tuple(
        replace(experience, score=replace(experience.score, components={text: 0.5})) for experience in group.experiences
    )
    page = page_of(replace(group, prompt=prompt, experiences=told), reward=text)
    written = re.sub(
        "[\0\x1b\r\x85\x7f\ud800-\udfff\u202a-\u202e\u2066-\u2069]",
        lambda match: match[0].encode("unicode_escape").decode(),
        text,
    )
    for element in page.all("div", class_="text"):
        assert element.text == written
    assert page.text.count(written) >= 10
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page.text)


def test_hostile_ids_and_tasks_stay_attributes(page_of):
    hostile = "\"><script>x</script> 'a' é\u202e/%41"
    page = page_of(make_group(hostile, task=hostile))  # `parsed` also follows the links
    assert page.one("article").attributes["data-task"] == hostile.replace("\u202e", "\\u202e")


def test_a_completion_of_a_megabyte_is_cut_in_its_middle_and_says_where_all_of_it_is(page_of, tmp_path):
    text = "".join(f"{number:07}" for number in range(150_000))
    page = page_of(make_group("g", text=text, rewards=(1.0,), evidence={"critique": text, text: {text: [text]}}))
    words = page.one("li", class_="completion").one("div", class_="text").text
    start, end = re.split(r"1,042,000 characters left out here", words)
    assert text.startswith(start) and text.endswith(end) and len(start + end) == 8_000
    assert "rlsf replay show 'runs/a run' g:0" in page.words
    assert (tmp_path / "page.html").stat().st_size < 100_000


def test_marks_are_cut_to_the_text_and_may_overlap():
    marks = [
        Mark(2, 6, "span", "counts"),
        Mark(4, 99, "least", "least"),
        Mark(-3, 1, "broken", "rule"),
        Mark(3, 3, "x", ""),
    ]
    found = pieces("abcdefgh", marks)
    assert "".join(piece.text for piece in found) == "abcdefgh"
    kinds = "".join(len(piece.text) * str(len(piece.kinds)) for piece in found)
    assert kinds == "10112211"
    assert [piece.title for piece in found if "least" in piece.kinds] == ["counts; least", "least"]
    cut = pieces("x" * 40 + "y" * 60, [Mark(30, 70, "span", "")], longest=8)
    assert [(piece.text, piece.left_out) for piece in cut] == [("xxxxxx", 0), ("", 92), ("yy", 0)]


# -- why: the evidence of real rewards ---------------------------------------------------------------------------------

TEXTS = ("7 apples and 5 apples make 12", "12", "13", "no idea")


def scored(section: dict[str, Any], reply: Callable[[str, int], str] = lambda question, index: "") -> Group:
    """TEXTS as answers to "What is 7 + 5?", scored by the reward that `section` describes."""
    asked = prompt("12")
    rollouts = [rollout(text, index=index) for index, text in enumerate(TEXTS)]
    certain = [[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]]
    given = context(
        asked,
        engine=ScriptedEngine(lambda question, index: reply(str(question.content), index)),
        token_stats=lambda group, which: [stats_of([certain[0]] * (len(r.text) - 1) + [certain[1]]) for r in group],
        answer_tokens=lambda r: (len(r.text) - 2, len(r.text)),
    )
    config = TypeAdapter(RewardConfig).validate_python(section)
    (scores,) = make_reward(config).score([rollouts], given)
    pairs = zip(rollouts, scores, strict=True)
    return Group("p", asked.without_labels(), tuple(Experience(r, score, "sums", 1) for r, score in pairs))


@pytest.fixture
def why(page_of) -> Callable[..., list[Element]]:
    """The reasons on the page, by completion; tokens are characters."""

    def draw(section: dict[str, Any], reply: Callable[[str, int], str] = lambda question, index: "") -> list[Element]:
        page = page_of(scored(section, reply), offset=lambda rollout, tokens: tokens)
        return list(page.all("li", class_="completion"))

    return draw


def test_votes_are_bars_with_the_winner_and_this_answer_marked(why):
    first, _, third, last = why({"kind": "majority"})
    rows = [row for row in first.one("table", class_="votes").all("tr") if "answer" not in row.words]
    assert [row.words for row in rows] == ["12 winner this one 2", "13 1"]
    assert [bar_of(row) for row in rows] == [(0.0, 50.0), (0.0, 25.0)]
    assert [row.one("th").words for row in third.all("tr", class_="own")] == ["13 this one"]
    assert not list(last.all("tr", class_="own")) and "casts no vote" in last.words


def test_a_group_without_answers_says_so(page_of):
    page = page_of(make_group("g", evidence={"answer": None, "votes": {}, "winners": [], "share": 0.0}))
    assert page.words.count("Nobody in the group has an answer.") == 2


def test_judgements_stand_with_their_grades_and_unreadable_ones_are_marked(why):
    replies = ["5", "I cannot say", "4 out of 5"]
    first, *_, last = why({"kind": "judge", "samples": 3, "retries": 0}, lambda question, index: replies[index])
    turns = [turn.words for turn in first.all("div", class_="turn")]
    assert turns == ["judgement 1 grade 5 5", "judgement 2 unreadable I cannot say", "judgement 3 grade 4 4 out of 5"]
    assert [turn.words for turn in first.all("div", class_="bad")] == [turns[1]]
    assert "no answer to grade" in last.words


def test_comparisons_name_the_opponent_and_both_orders(why):
    first, second, _, _ = why({"kind": "pairwise_judge", "retries": 0}, lambda question, index: "A")
    talks = sorted(talk.words for talk in first.all("div", class_="talk"))
    assert talks[0] == (
        "against completion 2: won 0.5, the verdict turns with the order "
        "shown as A for this one A shown as B for the other A"
    )
    links = [link.attributes["href"] for heading in first.all("h5") for link in heading.all("a")]
    assert sorted(map(str, links)) == ["#rollout-p-1", "#rollout-p-2"]
    assert "against completion 1:" in second.words


def test_judgements_that_are_judged_show_their_weights_and_meetings(why):
    replies = ["Right. Grade: 5", "Wrong. Grade: 1", "Hm."]
    reply = lambda question, index: "A" if "Judge A" in question else replies[index]  # noqa: E731
    first, *_ = why({"kind": "meta_judge", "samples": 3, "retries": 0}, reply)
    said = first.one("details").words
    assert "judgement 1 grade 5 · weight 0.5 Right. Grade: 5" in said and "judgement 3 unreadable Hm." in said
    assert "judgement 1 against judgement 2: won 0.5" in said


def test_reflection_reads_as_a_dialogue(why):
    reply = lambda question, index: "12" if "Feedback" in question else "Count again: 8 to 12."  # noqa: E731
    _, _, third, _ = why({"kind": "reflection", "measure": {"kind": "majority"}}, reply)
    talk = third.one("div", class_="talk").words
    assert talk == "reflection: gained 1 critique Count again: 8 to 12. revision answer 12 · score 1 12"
    assert third.one("section", class_="part").one("h4").words == "measure"


def test_broken_rules_say_why_and_are_marked_in_the_completion(why):
    rules = [
        {"kind": "words", "name": "fruit", "words": ["apples"], "penalty": 0.5},
        {"kind": "expression", "name": "small", "holds": "answer <= 12"},
    ]
    first, second, third, _ = why({"kind": "rules", "rules": rules})
    assert [(mark.text, mark.attributes["title"]) for mark in first.all("mark", class_="broken")] == [
        ("apples", "breaks fruit")
    ] * 2
    assert "fruit costs 0.5 words that must not occur" in first.words and "small costs 1" in third.words
    assert not list(second.all("mark")) and "kept fruit, small" in second.words


def test_an_answer_stands_beside_its_reference(why):
    _, _, third, last = why({"kind": "verifier"})
    assert [row.words for row in third.one("dl", class_="graded").all("div")] == ["answer 13", "reference 12"]
    assert not list(last.all("dl", class_="graded"))


def test_tokens_that_count_and_the_least_certain_one_are_marked(why):
    first, *_ = why({"kind": "confidence"})
    assert [(mark.text, mark.attributes["class"]) for mark in first.all("mark")] == [("1", "span"), ("2", "least span")]
    assert "counts tokens 28 to 29 of 29" in first.words
    assert "token 29 “2” at 0.05" in first.words


def test_composed_rewards_explain_each_part_under_its_name_with_its_score(why):
    inner = {"kind": "weighted_sum", "components": {"votes": {"reward": {"kind": "majority"}}}}
    gate = {
        "kind": "gate",
        "condition": {"kind": "length_penalty", "free_tokens": 9, "max_tokens": 10},
        "reward": inner,
    }
    first, second, *_ = why({"kind": "minimum", "components": {"outer": {"reward": gate}}})
    headings = [heading.words for heading in first.all("h4")]
    assert headings == ["outer -1", "condition -1", "reward 1", "votes 1"]
    assert "the gate is shut" in first.words and "the gate is open" in second.words
    assert len(list(first.all("table", class_="votes"))) == 1


def test_unknown_evidence_is_a_list_to_read(page_of):
    evidence = {
        "metrics": {"speed": 1.5},
        "steps": [{"op": "+"}, {"op": "−"}],
        "ok": True,
        "rows": [1, 2],
        "said": ["a b", "c"],
    }
    why = page_of(make_group("g", rewards=(1.0,), evidence=evidence)).one("details", class_="why").words
    assert why == "why ok yes rows 1, 2 metrics speed 1.5 steps 1 op + 2 op − said 1 a b 2 c"


REPLIES = {"verdicts": ["A", None], "replies": ["A", "?"]}
PLACE = {"found": "b", "start": 1, "end": 2, "around": "a[b]c"}
KNOWN: list[dict[str, Any]] = [
    {"answer": "12", "votes": {"12": 2, "13": 1}, "winners": ["12"], "share": 0.5},
    {"answer": "12", "reference": "13", "note": "wrong"},
    {"tokens": 1, "span": [0, 1], "least_certain_token": 0, "least": 0.5},
    {"judgements": ["5", "?"], "grades": [5.0, None], "weights": [0.5, None], "unreadable": 1, "failures": []},
    {"compared_as": "g:1", "comparisons": [{"opponent": "g:1", "won": 1.0, "as_A": REPLIES, "as_B": {"note": "long"}}]},
    {"comparisons": [{"judgement": "g:0/judge/0", "opponent": "g:0/judge/1", "as_A": REPLIES, "as_B": REPLIES}]},
    {"reflections": [{"earlier": [{"comment": "no"}], "critique": "no", "revision": "1", "score": 0.5, "gain": 0.5}]},
    {"broken": {"rule": {"penalty": 1.0, "why": "words", "found": [PLACE]}}, "kept": [], "first_unwanted": PLACE},
    {"open": True, "condition": {"note": "ok"}, "reward": {"votes": {"1": 1}, "answer": None}},
]
"""Evidence of every shape that the page knows."""
NUMBERS = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def changed(draw: Any, value: Any, root: bool = True) -> Any:
    """The value with something else in one place, at any depth."""
    if not isinstance(value, dict | list) or not value or (not root and draw(st.integers(0, 2)) == 0):
        return draw(JSON)
    if isinstance(value, list):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(changed(value[place], root=False)), *value[place + 1 :]]
    key = draw(st.sampled_from(sorted(value)))
    if draw(st.integers(0, 3)) == 0:
        return {name: own for name, own in value.items() if name != key}
    return {**value, key: draw(changed(value[key], root=False))}


@settings(max_examples=200, deadline=None)
@given(evidence=st.sampled_from(KNOWN).flatmap(changed))
@pytest.mark.parametrize("nested", [False, True])
def test_no_evidence_whatever_its_shape_breaks_the_page(nested, evidence, tmp_path_factory):
    group = make_group("g", evidence={"part": evidence} if nested else evidence)
    assert drawn(group, tmp_path_factory.getbasetemp() / "any.html").one("article", data_id="g")


def drawn(group: Group, path: Path) -> Element:
    """The page of one group, as if a store held it as JSON."""

    class One(ReplayReader):
        last_iteration = 1

        def __init__(self) -> None:
            pass

        def find(self, prefix: str) -> Group:
            return group

    for experience in group.experiences:
        json.dumps(experience.score.evidence, allow_nan=False)
    write_page(One(), path, Selection(ids=("g",)), run=path.parent, offset=lambda rollout, tokens: tokens)
    return parsed(path.read_text("utf-8"))


@pytest.mark.parametrize("evidence", KNOWN, ids="-".join)
def test_known_shapes_leave_no_raw_structure(evidence, tmp_path):
    page = drawn(make_group("g", evidence=evidence), tmp_path / "page.html")
    reasons = list(page.all("details", class_="why"))
    assert len(reasons) == 2 and not any(list(why.all("ul")) for why in reasons)


def test_deep_and_endless_evidence_is_bounded(page_of, tmp_path):
    deep: Any = "bottom"
    for _ in range(300):
        deep = {"down": [deep, 1, {"more": "x"}]}
    page = page_of(make_group("g", evidence={"deep": deep, "wide": {str(n): n for n in range(5000)}}))
    assert "nested too deeply" in page.words and "and 4960 more" in page.words
    assert (tmp_path / "page.html").stat().st_size < 100_000


def test_of_many_judgements_meetings_and_attempts_some_are_shown_and_the_rest_counted(page_of):
    meeting = {"opponent": "x", "won": 1.0, "as_A": REPLIES, "as_B": REPLIES}
    evidence = {
        "judgements": ["5"] * 100,
        "grades": [5.0] * 100,
        "comparisons": [meeting] * 90,
        "reflections": [{"critique": "no", "revision": "1"}] * 80,
    }
    words = page_of(make_group("g", rewards=(1.0,), evidence=evidence)).one("details", class_="why").words
    assert "judgement 40 grade 5 5 and 60 more" in words and "judgement 41" not in words
    assert "and 50 more" in words and "attempt 40 of 80" in words and "attempt 41" not in words


# -- which groups ------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored() -> list[Group]:
    return [
        make_group(f"g{n}", iteration=1 + n // 4, task="gcd" if n % 2 else "sums", rewards=(float(n), 0.0))
        for n in range(12)
    ]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (NEWEST, [11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (Selection(limit=3), [11, 10, 9]),
        (Selection(iteration=2), [7, 6, 5, 4]),
        (Selection(task="gcd", limit=2), [11, 9]),
        (Selection(task="sums", iteration=1), [2, 0]),
        (Selection(ids=("g3", "g7:1", "g3:0"), limit=1), [3, 7]),
    ],
)
def test_the_groups_that_were_asked_for(page_of, stored, selection, expected):
    assert shown(page_of(*stored, selection=selection)) == [f"g{n}" for n in expected]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(task="sum"), "no group of task 'sum'; its tasks are gcd, sums, its iterations 1 to 3"),
        (Selection(task="gcd", iteration=9), "no group of task 'gcd' of iteration 9;"),
        (Selection(ids=("g1",), task="gcd"), "give either ids, or --task and --iteration"),
        (Selection(ids=("x",)), "no group and no rollout has an id that starts with 'x'"),
        (Selection(ids=("g",)), "more than one group fits 'g'"),
    ],
)
def test_what_is_not_there_is_one_message_and_no_page(page_of, stored, selection, message, tmp_path):
    with pytest.raises(RunDirError, match=re.escape(message)):
        page_of(*stored, selection=selection)
    assert not (tmp_path / "page.html").exists()


def test_an_empty_store_makes_a_page_that_says_so(page_of):
    assert "The store holds no groups." in page_of().words


def test_newest_first_goes_through_all_pages_of_a_store(tmp_path):
    groups = [make_group(f"g{n:03}", task="gcd" if n % 3 else "sums") for n in range(200)]
    with ReplayStore.open(tmp_path, ReplayConfig(capacity=150), seed=0) as store:
        store.add(groups, iteration=1)
        kept = [group.id for group in groups[50:]]
        assert [group.id for group in store.groups(newest_first=True)] == kept[::-1]
        assert [group.id for group in store.groups()] == kept
        assert store.count() == 150 and store.count(task="sums") == len(list(store.groups(task="sums")))
        assert store.count(task="sums", iteration=2) == 0


def test_groups_are_read_as_they_are_written(tmp_path, monkeypatch):
    read: list[str] = []
    groups = ReplayReader.groups

    def recorded(*arguments: Any, **options: Any) -> Iterator[Group]:
        for group in groups(*arguments, **options):
            read.append(group.id)
            yield group

    def write(path: Path, parts: Iterator[str]) -> None:
        done = 0
        for part in parts:
            done += part.count("</article>")
            assert len(read) <= done + 1
        assert done == 5

    monkeypatch.setattr(ReplayReader, "groups", recorded)
    monkeypatch.setattr("rlsf.replay.page.write.write_parts", write)
    with ReplayStore.open(tmp_path, ReplayConfig(capacity=9), seed=0) as store:
        store.add([make_group(f"g{n}") for n in range(9)], iteration=1)
        write_page(store, tmp_path / "page.html", Selection(limit=5), run=tmp_path)


# -- where it goes -----------------------------------------------------------------------------------------------------


def test_a_page_that_cannot_be_written_is_one_message_and_leaves_the_old_one(page_of, tmp_path):
    page_of(make_group("old"))
    before = (tmp_path / "page.html").read_bytes()
    with ReplayReader.open_read_only(tmp_path / "replay") as store:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            with pytest.raises(RunDirError, match=r"cannot write .*page.html: File too large; --output FILE"):
                write_page(store, tmp_path / "page.html", NEWEST, run=tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        with pytest.raises(RunDirError, match="is a file of the run itself"):
            write_page(store, tmp_path / "samples" / "a.html", NEWEST, run=tmp_path)
        with pytest.raises(RunDirError, match="is a folder; name a file in it"):
            write_page(store, tmp_path / "replay", NEWEST, run=tmp_path)
        with pytest.raises(RunDirError, match="cannot write"):
            write_page(store, tmp_path / "page.html" / "below.html", NEWEST, run=tmp_path)
    assert (tmp_path / "page.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "replay"]


def test_a_tokenizer_that_is_gone_is_a_warning_and_the_tokens_keep_their_numbers(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {source: /gone}\nreward: {kind: confidence}\n")
    with ReplayStore.open(tmp_path / "replay", ReplayConfig(capacity=5), seed=0) as store:
        store.add([scored({"kind": "confidence"})], iteration=1)
    console = Console(file=io.StringIO(), width=200)
    make_page(tmp_path, console, NEWEST, None)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("warning:") == 1 and "there is no /gone" in said
    page = parsed((tmp_path / "evidence.html").read_text("utf-8"))
    assert "token 29 at 0.05" in page.words and not list(page.all("mark"))
    assert "kind: confidence" in page.one("pre").text


@pytest.mark.parametrize(
    "config", ["reward: [", "reward: {kind: majority}", "name: x\nmodel: {}", "- 1", "reward: 1\nmodel:"]
)
def test_a_run_whose_config_is_broken_is_one_message(config, tmp_path):
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(RunDirError, match=r"config.yaml: "):
        make_page(tmp_path, Console(file=io.StringIO()), NEWEST, None)


LAB = """
tasks: [{name: sums, source: $sums, split: {validation: 4, test: 4}, max_tokens: 8}]
sampling: {n: 4}
reward:
  kind: weighted_sum
  components:
    votes: {reward: {kind: majority}}
    sure: {weight: 0.5, normalize: group, reward: {kind: self_certainty, lowest: 0.5}}
    grades: {reward: {kind: judge, samples: 2, max_tokens: 4}}
    tidy: {reward: {kind: rules, rules: [{kind: pattern, name: digits, forbid: "[0-9]+", penalty: 0.5}]}}
loop: {iterations: 2, prompts: 3}
evaluation: {samples: 1, final_samples: 1, greedy: false}
preflight: {canary: 4}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return run_lab(tmp_path_factory.mktemp("page"), LAB)


def page_by_command(run: Path, log: Path, *arguments: str) -> Element:
    assert run_cli(["replay", "page", str(run), *arguments], log) == 0, log.read_text()
    return parsed((run / "evidence.html").read_text("utf-8"))


def test_the_page_of_a_real_run(run, tmp_path):
    page = page_by_command(run, tmp_path / "log")
    assert f"{run / 'evidence.html'}: 6 groups. Open it in a browser" in " ".join(
        (tmp_path / "log").read_text().split()
    )
    with ReplayReader.open_read_only(run / "replay") as store:
        groups = list(store.groups(newest_first=True))
    assert shown(page) == [group.id for group in groups] and len(groups) == 6
    rewards = [item.attributes["data-reward"] for item in page.all("li", class_="completion")]
    assert rewards == [repr(e.score.value) for group in groups for e in group.experiences]
    first, experience = next(page.all("li", class_="completion")), groups[0].experiences[0]
    assert [heading.words.split()[0] for heading in first.all("h4")] == ["votes", "sure", "grades", "tidy"]
    token = experience.score.evidence["sure"]["least_certain_token"]
    assert token == len(experience.rollout.completion_ids) - 1 or list(first.all("mark", class_="least"))
    broken = [mark for item in page.all("li", class_="completion") for mark in item.all("mark", class_="broken")]
    assert broken and all(mark.text.isdecimal() for mark in broken)
    assert "lowest: 0.5" in page.one("pre").text


def test_the_command_selects_and_says_that_there_is_more(run, tmp_path):
    page = page_by_command(run, tmp_path / "log", "--limit", "2", "--iteration", "1", "--task", "sums")
    assert "the newest of 3 (--limit shows more)" in (tmp_path / "log").read_text()
    assert {article.attributes["data-iteration"] for article in page.all("article")} == {"1"}
    one, *_ = shown(page)
    elsewhere = tmp_path / "new" / "one.html"
    assert run_cli(["replay", "page", str(run), one, "--output", str(elsewhere)], tmp_path / "log") == 0
    assert shown(parsed(elsewhere.read_text("utf-8"))) == [one]


def test_the_command_reports_an_unknown_id_as_show_does(run, tmp_path):
    said = []
    for command in ("show", "page"):
        assert run_cli(["replay", command, str(run), "nobody"], tmp_path / command) == 2
        said.append((tmp_path / command).read_text())
    assert said[0] == said[1] and "no group and no rollout has an id that starts with 'nobody'" in said[0]


def test_the_page_is_no_reason_not_to_overwrite_a_run(run, tmp_path):
    page_by_command(run, tmp_path / "log")
    directory = RunDir(run)
    directory.set_aside()
    assert (directory.previous / "evidence.html").exists()
    directory.put_back()
    assert (run / "evidence.html").exists()
