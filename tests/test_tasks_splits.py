"""Splits: sizes, no leakage, stability, labels."""

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsf.config.schema import TaskConfig
from rlsf.errors import DataError
from rlsf.tasks.rows import Row, make_row
from rlsf.tasks.splits import Split, drop_held_out_elsewhere, split_rows
from rollouts.types import Message


def config(validation: int = 3, test: int = 4, **settings: Any) -> TaskConfig:
    source = {"kind": "file", "path": "none.jsonl"}
    return TaskConfig(name="t", source=source, split={"validation": validation, "test": test}, **settings)


def row(text: str, reference: str | None = "1", group: str | None = None, **settings: Any) -> Row:
    return make_row(config(**settings), text, "here", reference=reference, group=group)


def texts(rows: tuple[Row, ...]) -> list[str]:
    return [row.prompt.text for row in rows]


def parts(split: Split) -> dict[str, set[str]]:
    return {name: set(texts(getattr(split, name))) for name in ("train", "validation", "test")}


def folded(text: str) -> str:
    return " ".join(text.lower().split())


words = st.lists(st.sampled_from(["a", "B", "b", "c", "d", "  ", "\n", "A "]), min_size=1, max_size=6).map(" ".join)
prompts = words.filter(lambda text: text.strip() != "")


@settings(deadline=None)
@given(st.lists(prompts, min_size=8, max_size=80), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31))
def test_exact_disjoint_and_without_duplicates(data: list[str], validation: int, test: int, seed: int) -> None:
    distinct = {folded(text) for text in data}
    task, rows = config(validation, test), [row(text) for text in data]
    if len(distinct) <= validation + test:
        with pytest.raises(DataError, match=f"{len(distinct)} different prompts"):
            split_rows(task, rows, seed)
        return
    split = split_rows(task, rows, seed)
    assert (len(split.validation), len(split.test)) == (validation, test)
    everything = [folded(text) for name in ("train", "validation", "test") for text in texts(getattr(split, name))]
    assert sorted(everything) == sorted(distinct)
    assert split.report.duplicates == len(data) - len(distinct)
    assert len({row.prompt.id for row in (*split.train, *split.validation, *split.test)}) == len(distinct)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_neither_order_nor_wording_of_the_task_matters(seed: int, random) -> None:
    rows = [row(f"question {i}") for i in range(30)]
    split = split_rows(config(), rows, seed)
    shuffled = random.sample(rows, len(rows))
    assert split_rows(config(), shuffled, seed) == split
    reworded = split_rows(config(), [row(f"question {i}", system="Be short.") for i in range(30)], seed)
    assert parts(reworded) == parts(split)


def test_the_seed_decides() -> None:
    rows = [row(f"question {i}") for i in range(50)]
    assert parts(split_rows(config(), rows, 1)) != parts(split_rows(config(), rows, 2))
    held_out = [text for seed in range(400) for text in texts(split_rows(config(), rows, seed).test)]
    counts = [held_out.count(f"question {i}") for i in range(50)]
    assert min(counts) > 10 and max(counts) < 60  # 400 · 4 / 50 = 32 on average, deviation 5.4


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 400)),
        min_size=40,
        max_size=90,
        unique_by=lambda pair: pair[1],
    ),
    st.integers(0, 1000),
)
def test_groups_stay_together(data: list[tuple[int, int]], seed: int) -> None:
    rows = [row(f"question {i}", group=f"g{group}") for group, i in data]
    group_of = {f"question {i}": group for group, i in data}
    try:
        split = split_rows(config(20, 15), rows, seed)
    except DataError:
        return
    seen: dict[int, set[str]] = defaultdict(set)
    for name, members in parts(split).items():
        for text in members:
            seen[group_of[text]].add(name)
    assert all(len(names) == 1 for names in seen.values())
    assert len(split.validation) <= 20 and len(split.test) <= 15


def test_groups_too_large_for_the_splits() -> None:
    rows = [row(f"question {i}", group=f"g{i % 2}") for i in range(40)]
    with pytest.raises(DataError, match=r"groups of source\.group_column are too large .* for test and validation"):
        split_rows(config(), rows, 0)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 30))
def test_added_rows_move_others_only_one_split_down(seed: int, added: int) -> None:
    """test → validation → train, never up, and no more rows than were added leave a split."""
    before = parts(split_rows(config(10, 10), [row(f"question {i}") for i in range(60)], seed))
    after = parts(split_rows(config(10, 10), [row(f"question {i}") for i in range(60 + added)], seed))
    assert before["train"] <= after["train"]
    assert not before["validation"] & after["test"]
    assert len(before["test"] - after["test"]) <= added
    assert len(before["validation"] - after["validation"]) <= added


def test_contradictory_references_are_dropped_altogether() -> None:
    rows = [row(f"question {i}") for i in range(20)]
    rows += [row("Capital?", "Paris"), row("capital? ", "Lyon"), row("Same?", "Yes"), row("same?", " yes ")]
    split = split_rows(config(), rows, 0)
    kept = set().union(*parts(split).values())
    assert not any("apital" in text for text in kept)
    assert "Same?" in kept and "same?" not in kept
    assert (split.report.contradictions, split.report.duplicates, split.report.rows) == (2, 1, 24)


def chat(*messages: tuple[str, str], reference: str = "1", group: str | None = None) -> Row:
    content = [Message(role=role, content=text) for role, text in messages]
    return make_row(config(), content, "here", reference=reference, group=group)


@pytest.mark.parametrize(
    "copy",
    [chat(("user", " caf\u00e9  + 1")), row("cafe\u0301 + 1"), chat(("user", "CAFE\u0301 + 1"))],
    ids=["chat", "composition", "both"],
)
def test_copies_of_a_prompt_in_another_form_are_duplicates(copy: Row) -> None:
    rows = [row("caf\u00e9 + 1"), copy, *(row(f"question {i}") for i in range(20))]
    assert split_rows(config(), rows, 0).report.duplicates == 1


@pytest.mark.parametrize("grouped", [False, True])
def test_one_question_under_several_system_messages_stays_in_one_split(grouped: bool) -> None:
    rows = [
        chat(
            ("system", system), ("user", f"question {i}"), reference=system, group=f"g{i}{system}" if grouped else None
        )
        for i in range(20)
        for system in ("In French.", "In German.")
    ]
    rows += [row(f"Question {i}", group=f"g{i}" if grouped else None) for i in range(20)]
    split = split_rows(config(6, 9), rows, 0)
    train, validation, test = parts(split).values()
    assert (len(train), len(validation), len(test)) == (2 * 15, 2 * 2, 2 * 3)  # "Question" and "question" in each
    assert not {folded(text) for text in train} & {folded(text) for text in validation | test}
    assert (split.report.duplicates, split.report.contradictions) == (0, 0)


def test_a_longer_chat_is_another_prompt() -> None:
    turns = [("user", "hello"), ("assistant", "hi"), ("user", "question 1")]
    rows = [chat(*turns), chat(*turns), *(row(f"question {i}") for i in range(20))]
    assert split_rows(config(), rows, 0).report.duplicates == 1


def test_of_duplicates_a_labelled_one_stays() -> None:
    rows = [row("twin", None), row("TWIN", "7"), *(row(f"question {i}") for i in range(20))]
    split = split_rows(config(), rows, 0)
    (twin,) = [r for r in (*split.train, *split.validation, *split.test) if r.key == "twin"]
    assert twin.prompt.reference == "7"


def test_several_right_answers_of_a_scored_problem_are_no_contradiction() -> None:
    rows = [
        make_row(config(), "puzzle", "here", reference=answer, grading={"dataset": "d", "entry": {"answer": answer}})
        for answer in "ab"
    ]
    split = split_rows(config(), rows + [row(f"question {i}") for i in range(20)], 0)
    assert (split.report.duplicates, split.report.contradictions) == (1, 0)


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_rows_without_reference_are_never_held_out(seed: int) -> None:
    rows = [row(f"question {i}", "1" if i % 3 == 0 else None) for i in range(60)]
    split = split_rows(config(8, 10), rows, seed)
    assert all(row.is_labelled for row in (*split.validation, *split.test))
    assert (len(split.validation), len(split.test), len(split.train)) == (8, 10, 42)
    assert split.report.unlabelled == 40


def test_data_without_any_reference_is_split_all_the_same() -> None:
    split = split_rows(config(), [row(f"question {i}", None) for i in range(20)], 0)
    assert (len(split.train), len(split.validation), len(split.test)) == (13, 3, 4)


def test_what_another_task_holds_out_leaves_train() -> None:
    first = split_rows(config(), [row(f"question {i}") for i in range(40)], 0)
    second = split_rows(config(10, 15), [row(f"Question  {i}") for i in range(20, 60)], 1)
    clean = drop_held_out_elsewhere([first, second])
    for index, split in enumerate(clean):
        other = clean[1 - index]
        held_out = {folded(text) for text in (*texts(other.validation), *texts(other.test))}
        assert not held_out & {folded(text) for text in texts(split.train)}
        before = (first, second)[index]
        overlap = {folded(text) for text in texts(before.train)} & held_out
        assert split.report.leaked == len(overlap) == len(before.train) - len(split.train)
        assert (split.validation, split.test) == (before.validation, before.test)
    assert clean[0].report.leaked > 0
