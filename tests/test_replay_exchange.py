"""Groups leave as files and come back equal, bit for bit; whatever is broken in a file is one message with the row."""

import dataclasses
import json
import math
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlsf.config.replay import ReplayConfig
from rlsf.errors import DataError, RunDirError
from rlsf.experience import Group
from rlsf.replay import ReplayReader, ReplayStore
from rlsf.replay.codec import SAMPLING_FIELDS
from rlsf.replay.exchange import export_groups, formats, from_dataset, import_groups, load_into, to_dataset, transfer
from rlsf.replay.exchange.rows import COLUMNS
from rlsf.replay.exchange.tables import schema
from rollouts.types import Message
from tests.replay_groups import make_group
from tests.test_replay_codec import ANY_TEXT, FLOATS, JSON

FORMATS = ("out.jsonl", "out.parquet", "out")


def some_groups(count: int = 3) -> list[Group]:
    return [
        make_group(f"g{n}", iteration=n + 1, priority=n / 3, rewards=(None, -0.0, 1.5)[: n % 3 + 1], text=f"“{n}”\n")
        for n in range(count)
    ]


def fill(folder: Path, groups: Sequence[Group], capacity: int = 100) -> Path:
    with ReplayStore.open(folder, ReplayConfig(capacity=capacity), seed=0) as store:
        store.add(groups, iteration=1)
    return folder


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def bits(group: Group) -> list[bytes]:
    return [
        struct.pack("<d", value)
        for experience in group.experiences
        for value in (
            *experience.rollout.logprobs,
            *(experience.reference_logprobs or ()),
            *([] if experience.score.value is None else [experience.score.value]),
            experience.priority,
        )
    ]


# -- there and back ----------------------------------------------------------------------------------------------------

MESSAGES = st.lists(
    st.builds(lambda role, content: Message(role=role, content=content), st.sampled_from(["user", "system"]), ANY_TEXT)
    | st.builds(lambda name, content: Message(role="user", content=content, name=name), ANY_TEXT, ANY_TEXT),
    min_size=1,
    max_size=3,
).map(tuple)


@st.composite
def any_group(draw: st.DrawFn, id: str = "g") -> Group:
    group = make_group(
        id,
        rewards=tuple(draw(st.lists(st.none() | FLOATS, min_size=1, max_size=3))),
        text=draw(ANY_TEXT),
        logprobs=tuple(draw(st.lists(FLOATS, max_size=5))),
        evidence={"any": draw(JSON)},
        priority=draw(st.floats(0, 1e300)),
        iteration=draw(st.integers(1, 2**62)),
    )
    prompt = dataclasses.replace(
        group.prompt,
        content=draw(ANY_TEXT | MESSAGES),
        metadata={"any": draw(JSON)},
        task=draw(st.sampled_from(["sums", "other"])),
    )
    return dataclasses.replace(
        group,
        prompt=prompt,
        experiences=tuple(
            dataclasses.replace(
                experience,
                reference_logprobs=draw(st.sampled_from([None, experience.reference_logprobs])),
                rollout=dataclasses.replace(
                    experience.rollout,
                    prompt_ids=tuple(draw(st.lists(st.integers(0, 2**31), max_size=3))),
                    finish_reason=draw(st.sampled_from(["stop", "length"])),
                    group_id=draw(st.sampled_from([id, "another", ""])),
                    sampling=dataclasses.replace(
                        experience.rollout.sampling,
                        temperature=draw(st.floats(0, 10)),
                        stop=tuple(draw(st.lists(ANY_TEXT, max_size=2))),
                        json_schema=draw(st.none() | st.just('{"type": "string"}')),
                    ),
                ),
            )
            for experience in group.experiences
        ),
    )


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=any_group("a"), second=any_group("b"))
def test_groups_come_back_bit_for_bit(first: Group, second: Group, tmp_path: Path) -> None:
    for name in FORMATS[:2]:
        export_groups([first, second], tmp_path / name)
        back = list(import_groups(tmp_path / name))
        assert back == [first, second]
        assert list(map(bits, back)) == list(map(bits, [first, second]))


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(group=any_group())
def test_a_store_becomes_a_dataset_and_comes_back(group: Group, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("stores")
    groups = [group, make_group("second")]
    with ReplayReader.open_read_only(fill(folder / "store", groups)) as store:
        dataset = to_dataset(store)
        groups = list(store.groups())
    assert len(dataset) == sum(len(group.experiences) for group in groups)
    assert list(from_dataset(dataset)) == groups
    assert list(from_dataset(dataset.to_iterable_dataset())) == groups
    dataset.save_to_disk(folder / "saved")
    assert list(import_groups(folder / "saved")) == groups


@pytest.mark.parametrize("name", FORMATS)
def test_through_a_file_into_a_store(name: str, tmp_path: Path) -> None:
    groups = some_groups(200)
    assert export_groups(iter(groups), tmp_path / name) == 200
    with ReplayStore.open(tmp_path / "new", ReplayConfig(), seed=3) as store:
        assert load_into(store, tmp_path / name) == 200
        assert list(store.groups()) == groups
        assert list(map(bits, store.groups())) == list(map(bits, groups))
        assert store.last_iteration == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["new", name])


def test_the_files_hold_what_people_read(tmp_path: Path) -> None:
    chat = make_group("g", text="zwölf", evidence={"votes": {"zwölf": 2}})
    chat = dataclasses.replace(
        chat, prompt=dataclasses.replace(chat.prompt, content=({"role": "user", "content": "7 + 5?"},))
    )
    for name in FORMATS:
        export_groups([chat], tmp_path / name)
    first = rows_in(tmp_path / "out.jsonl")[0]
    assert tuple(first) == tuple(COLUMNS)
    assert "zwölf" in (tmp_path / "out.jsonl").read_text("utf-8")
    assert first["prompt"] == [{"role": "user", "content": "7 + 5?"}]
    assert json.loads(first["evidence"]) == {"votes": {"zwölf": 2}}
    table = pq.read_table(tmp_path / "out.parquet")
    assert set(table.column_names) == {*COLUMNS, "messages", "exact"}
    assert table.column("messages")[0].as_py() == [{"role": "user", "content": "7 + 5?", "name": None}]
    assert table.column("prompt").null_count == table.column("exact").null_count == 2
    assert {field.name for field in schema().field("sampling").type} == set(SAMPLING_FIELDS)


def test_a_large_store_is_written_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "TOKENS", 100)
    export_groups(iter(some_groups(60)), tmp_path / "out.parquet")
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups > 5
    assert list(import_groups(tmp_path / "out.parquet")) == some_groups(60)


def test_rows_may_stand_apart_and_in_any_order(tmp_path: Path) -> None:
    groups = [make_group(name, rewards=(1.0, 0.5, 0.0)) for name in "abc"]
    export_groups(groups, tmp_path / "out.jsonl")
    rows = rows_in(tmp_path / "out.jsonl")
    back = list(import_groups(write_rows(tmp_path / "turned.jsonl", rows[::-1])))
    assert back == groups[::-1]
    mixed = write_rows(tmp_path / "mixed.jsonl", [rows[n] for n in (0, 3, 6, 2, 5, 8, 1, 4, 7)])
    assert list(import_groups(mixed)) == groups


def test_files_of_others_may_leave_out_what_is_usual(tmp_path: Path) -> None:
    export_groups([make_group("a"), make_group("b")], tmp_path / "out.jsonl")
    left_out = [name for name, column in COLUMNS.items() if column.optional]
    rows = [{k: v for k, v in row.items() if k not in left_out} for row in rows_in(tmp_path / "out.jsonl")]
    rows[0] |= {"evidence": {"why": "an object does as well"}, "remark": "ignored"}
    first, second = import_groups(write_rows(tmp_path / "short.jsonl", rows))
    assert first.experiences[0].score.evidence == {"why": "an object does as well"}
    assert [e.rollout.id for e in second.experiences] == ["b:0", "b:1"]
    assert second.priority == 1.0 and second.experiences[0].reference_logprobs is None


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows[2].update(logprobs=[-1, "x"]),
            r':3: logprobs is a list whose entry 2 is "x"; expected a li',
        ),
        (lambda rows: rows[2].update(logprobs=[-1, math.nan]), r":3: logprobs is a list whose entry 2 is nan"),
        (
            lambda rows: rows[2].update(logprobs=[-1.0]),
            r":3: group 'b': rollout 'b:0' has 2 completion tokens but 1 lo",
        ),
        (lambda rows: rows[1].update(reward="1"), r':2: reward is "1"; expected a finite number'),
        (lambda rows: rows[1].update(reward=True), r":2: reward is true; expected a finite number"),
        (lambda rows: rows[1].update(reward=math.inf), r":2: reward is inf; expected a finite number"),
        (lambda rows: rows[1].update(reward=2**70), r":2: reward is \d+; expected a finite number"),
        (
            lambda rows: rows[1].pop("reward"),
            r":2: there is no column 'reward'; columns: group, .* `rlsf replay export`",
        ),
        (lambda rows: rows[1].update(completion=None), r":2: completion is nothing \(null\); expected text"),
        (lambda rows: rows[1].update(completion_ids=[1, 2.5]), r":2: completion_ids is .*expected a list of token ids"),
        (lambda rows: rows[1].update(iteration=2**63), r":2: iteration is \d+; expected a whole number"),
        (lambda rows: rows[1].update(group_size=0), r":2: group_size is 0; expected a whole number of at least 1"),
        (lambda rows: rows[1].update(prompt=[]), r":2: prompt is a list of 0; expected text, or a list of messages"),
        (
            lambda rows: rows[1].update(prompt=[{"role": "user"}]),
            r":2: prompt is a list of 1; expected text, or a list",
        ),
        (
            lambda rows: rows[1].update(finish_reason="eos"),
            r':2: finish_reason is "eos"; expected "stop" or "length"',
        ),
        (lambda rows: rows[1].update(evidence="{"), r":2: evidence is no JSON text: Expecting property name"),
        (
            lambda rows: rows[1].update(evidence="[]"),
            r":2: evidence is a list of 0; expected the JSON text of an object",
        ),
        (lambda rows: rows[1].update(evidence='{"a": NaN}'), r":2: evidence is no JSON text: NaN is no JSON"),
        (lambda rows: rows[1].update(components='{"a": "b"}'), r':2: components: .a. is "b"; expected a finite number'),
        (lambda rows: rows[1].update(sampling={}), r":2: sampling has no temperature"),
        (
            lambda rows: rows[1].update(sampling={"temperature": "1"}),
            r':2: sampling.temperature is "1"; expected a fini',
        ),
        (lambda rows: rows[1].update(sampling={"temperature": 1, "min_p": 1}), r":2: sampling has 'min_p', which this"),
        (
            lambda rows: rows[1].update(priority=-1),
            r":2: the priority differs from that at .*:1, and both are of group",
        ),
        (
            lambda rows: [row.update(priority=-1) for row in rows],
            r":1: group 'a': priority -1.0 is not a finite number",
        ),
        (lambda rows: rows[1].update(prompt="2?"), r":2: the prompt differs from that at .*:1"),
        (lambda rows: rows[1].update(task="2?"), r":2: the (prompt|task) differs from that at .*:1"),
        (lambda rows: rows[1].update(group_size=3), r"the group_size differs|group 'a' has 2 of 3 rows"),
        (lambda rows: rows[1].update(position=0), r":2: position 0 of group 'a' is taken by the row at .*:1"),
        (lambda rows: rows[1].update(position=2), r":2: group 'a' has 2 rows, but none at position 1"),
        (lambda rows: rows[1].update(group="\ud800"), r"not valid Unicode|has 1 of 2 rows"),
        (lambda rows: rows.pop(), r":3: group 'b' has 1 of 2 rows; the file is cut off, or rows were taken out"),
        (lambda rows: rows.append(rows[0]), r":5: group 'a' is complete with the row at .*:2: it stands twice"),
        (lambda rows: rows.insert(2, 7), r":3: the row is a int, not an object"),
        (lambda rows: rows.clear(), r"the file has no rows"),
    ],
)
def test_a_broken_row_is_named_and_nothing_is_imported(
    change: Callable[[list[Any]], object], message: str, tmp_path: Path
) -> None:
    export_groups([make_group("a"), make_group("b")], tmp_path / "out.jsonl")
    rows: list[Any] = rows_in(tmp_path / "out.jsonl")
    change(rows)
    path = write_rows(tmp_path / "broken.jsonl", rows)
    with ReplayStore.open(tmp_path / "store", ReplayConfig(), seed=0) as store:
        with pytest.raises(DataError, match=rf"broken.jsonl.*({message})"):
            load_into(store, path)
        assert len(store) == 0 and store.seen == 0


def test_rows_without_a_size_must_follow_each_other(tmp_path: Path) -> None:
    export_groups([make_group("a"), make_group("b")], tmp_path / "out.jsonl")
    rows = [{k: v for k, v in row.items() if k != "group_size"} for row in rows_in(tmp_path / "out.jsonl")]
    path = write_rows(tmp_path / "apart.jsonl", [rows[n] for n in (0, 2, 1, 3)])
    with pytest.raises(DataError, match=r":1: group 'a' has 1 rows|apart.jsonl:3: group 'a' is complete with .*:1"):
        list(import_groups(path))


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    export_groups(some_groups(), tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines(True)
    for change, message in (
        (lines[1][:-20] + b"\n", r":2: not valid JSON: .*column \d+"),
        (b"\xff\n", r":2: not UTF-8 text"),
        (b"[" * 100_000 + b"\n", r":2: (the JSON is nested too deeply|not valid JSON)"),
    ):
        (tmp_path / "broken.jsonl").write_bytes(lines[0] + change + b"".join(lines[2:]))
        with pytest.raises(DataError, match=message):
            list(import_groups(tmp_path / "broken.jsonl"))
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n\r\n".join(lines))
    assert list(import_groups(tmp_path / "bom.jsonl")) == some_groups()


def test_a_truncated_or_damaged_parquet_file_is_one_message(tmp_path: Path) -> None:
    export_groups(some_groups(50), tmp_path / "out.parquet")
    data = (tmp_path / "out.parquet").read_bytes()
    for damaged in (data[: len(data) // 2], b"", data[:100] + bytes(3000) + data[3100:], b"PAR1" * 9):
        (tmp_path / "damaged.parquet").write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged.parquet: not a readable Parquet file.*Was it cut off"):
            list(import_groups(tmp_path / "damaged.parquet"))


def test_a_parquet_file_of_wrong_columns_names_the_first_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["1 + 1"], "completion": ["2"]}), tmp_path / "other.parquet")
    with pytest.raises(
        DataError, match=r"other.parquet row 1: there is no column 'group'; columns: prompt, completion"
    ):
        list(import_groups(tmp_path / "other.parquet"))
    export_groups(some_groups(), tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    as_text = table.set_column(table.column_names.index("reward"), "reward", pa.array(["a"] * len(table)))
    pq.write_table(as_text, tmp_path / "text.parquet")
    with pytest.raises(DataError, match=r'text.parquet row 1: reward is "a"; expected a finite number'):
        list(import_groups(tmp_path / "text.parquet"))


def test_what_is_no_such_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_text("")
    (tmp_path / "folder.jsonl").mkdir()
    for name, message in (
        ("gone.parquet", "there is no such file"),
        ("gone", "there is no such file"),
        ("folder", "not a readable folder of `datasets`"),
        ("plain", "this is a file without a suffix"),
        ("folder.jsonl", "this is a directory"),
        ("out.csv", r"unknown suffix '.csv'; expected .parquet, .jsonl, or"),
    ):
        with pytest.raises(DataError, match=message):
            list(import_groups(tmp_path / name))


# -- stores that hold something ----------------------------------------------------------------------------------------


def test_known_ids_are_refused_or_skipped(tmp_path: Path) -> None:
    groups = some_groups(4)
    export_groups(groups, tmp_path / "out.parquet")
    fill(tmp_path / "store", [make_group("g2")])
    with ReplayStore.open(tmp_path / "store", ReplayConfig(capacity=100), seed=0) as store:
        with pytest.raises(DataError, match=r"out.parquet row 4: group 'g2' is in the store already; --skip-known"):
            load_into(store, tmp_path / "out.parquet", 1)
        assert len(store) == 1
        assert load_into(store, tmp_path / "out.parquet", 1, skip_known=True) == 3
        assert list(store.groups()) == [make_group("g2"), groups[0], groups[1], groups[3]]


def test_a_store_that_fills_the_disk_says_how_far_it_got(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "BATCH", 2)
    export_groups(some_groups(5), tmp_path / "out.jsonl")
    with ReplayStore.open(tmp_path / "store", ReplayConfig(), seed=0) as store:
        add, calls = store.add, iter([0, 1])

        def add_once(groups: Sequence[Group], *, iteration: int) -> None:
            if next(calls):
                raise RunDirError("the disk is full")
            add(groups, iteration=iteration)

        monkeypatch.setattr(store, "add", add_once)
        with pytest.raises(
            RunDirError, match=r"the disk is full. The first 2 groups of .*out.jsonl were added; --skip"
        ):
            load_into(store, tmp_path / "out.jsonl")
        monkeypatch.undo()
        assert load_into(store, tmp_path / "out.jsonl", skip_known=True) == 3


# -- writing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_leaves_what_was_there(name: str, tmp_path: Path) -> None:
    noise = tuple(math.sin(n) for n in range(3000))
    if name != "out":
        export_groups(some_groups(), tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(RunDirError, match=rf"FILE: cannot write .*{name}: .*(File too large|\[Errno 27\])"):
            export_groups([make_group(f"g{n}", logprobs=noise) for n in range(5)], tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert len(list(tmp_path.iterdir())) == len(before)


@pytest.mark.parametrize("name", FORMATS)
def test_what_cannot_be_written_leaves_nothing(name: str, tmp_path: Path) -> None:
    def groups():
        yield make_group("a")
        yield make_group("b", evidence={"bad": math.nan})

    with pytest.raises(ValueError, match=r"group 'b': rollout 'b:0' cannot be written as JSON"):
        export_groups(groups(), tmp_path / name)
    with pytest.raises(DataError, match="there is no group to write"):
        export_groups([], tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_no_column_holds_is_named(tmp_path: Path) -> None:
    groups = [make_group("a"), make_group("b", iteration=2**70)]
    with pytest.raises(ValueError, match=r"group 'b' does not fit the columns"):
        export_groups(groups, tmp_path / "out.parquet")


def test_files_of_a_run_and_folders_are_not_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "versions.json", "metrics.jsonl"):
        (run / name).write_text("{}")
    for name in ("metrics.jsonl", "replay/out.parquet", "samples"):
        with pytest.raises(RunDirError, match=r"FILE: .* is a file of the run itself"):
            export_groups(some_groups(), run / name)
    with pytest.raises(RunDirError, match=r"FILE: .*/run exists already"):
        export_groups(some_groups(), run)
    (tmp_path / "out.parquet").mkdir()
    with pytest.raises(RunDirError, match="is a folder; name a file in it"):
        export_groups(some_groups(), tmp_path / "out.parquet")
    with pytest.raises(DataError, match=r"unknown suffix '.json'"):
        export_groups(some_groups(), tmp_path / "out.json")
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(RunDirError, match="Parquet needs a file"):
        export_groups(some_groups(), tmp_path / "pipe.parquet")
    export_groups(some_groups(), run / "out.parquet")
    assert (run / "metrics.jsonl").read_text() == "{}"


@pytest.mark.parametrize("module", ["rlsf.replay.exchange", "rlsf.replay.exchange.command", "rlsf.cli"])
def test_importing_the_module_imports_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}; print(set(sys.modules) & {{'torch', 'datasets', 'pyarrow', 'transformers', 'sklearn'}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
