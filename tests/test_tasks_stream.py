"""Sources, the stream's schedule, the draw of prompts, and the trivial baselines."""

import csv
import json
import os
import random
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from rlsf.config.schema import RunConfig, TaskConfig
from rlsf.config.stream import SequentialStream, StreamConfig
from rlsf.errors import DataError
from rlsf.tasks import DataReport, Schedule, Stream, Task, build_stream, build_task
from rlsf.tasks.baselines import last_operand, last_operand_correct, most_frequent_answer, most_frequent_correct
from rlsf.tasks.files import read_file
from rollouts.types import Prompt

ROOT = Path(__file__).parent.parent
SPLIT = {"validation": 5, "test": 8}


def gym(name: str, dataset: str = "gcd", size: int = 60, **settings: Any) -> dict[str, Any]:
    return {
        "name": name,
        "source": {"kind": "reasoning_gym", "dataset": dataset, "size": size},
        "split": SPLIT,
        **settings,
    }


def from_file(path: Path, **settings: Any) -> TaskConfig:
    columns = settings.pop("columns", {})
    return TaskConfig(name="t", source={"kind": "file", "path": str(path), **columns}, split=SPLIT, **settings)


def prompts_of(task: Task) -> dict[str, Prompt]:
    return {prompt.text: prompt for prompt in (*task.train, *task.validation, *task.test)}


RECORDS = [{"prompt": f"What is {i} + {i}?", "reference": 2 * i, "level": i % 3, "ok": None} for i in range(30)]


def write(records: list[dict[str, Any]], path: Path) -> None:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1))
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:  # as a spreadsheet saves it, with a mark
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(records), path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", "/"])
def test_every_format_gives_the_same_prompts(tmp_path: Path, suffix: str) -> None:
    if suffix == "/":
        import datasets

        datasets.Dataset.from_list(RECORDS).save_to_disk(str(tmp_path / "saved"))
        source = {"kind": "datasets", "path": str(tmp_path / "saved")}
        task = build_task(TaskConfig(name="t", source=source, split=SPLIT), seed=3)
    else:
        write(RECORDS, tmp_path / f"d{suffix}")
        task = build_task(from_file(tmp_path / f"d{suffix}"), seed=3)
    write(RECORDS, tmp_path / "same.jsonl")
    expected = build_task(from_file(tmp_path / "same.jsonl"), seed=3)
    assert [(p.id, p.content, p.reference) for p in task.train] == [
        (p.id, p.content, p.reference) for p in expected.train
    ]
    prompt = prompts_of(task)["What is 7 + 7?"]
    assert prompt.content == ({"role": "user", "content": "What is 7 + 7?"},)
    assert (prompt.reference, prompt.task) == ("14", "t")
    assert prompt.metadata == ({"level": "1", "ok": ""} if suffix == ".csv" else {"level": 1, "ok": None})
    assert task.has_references


def test_csv_with_a_long_document(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("prompt,reference\n" + "word " * 40_000 + ",1\n")
    ((_, row),) = read_file(tmp_path / "d.csv")
    assert len(row["prompt"]) == 200_000


def test_csv_with_line_breaks_quotes_and_an_unnamed_index(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    lines = [f'{i},"What is ""{i}"",\nin words?",x{i}' for i in range(20)]
    path.write_text("\r\n".join([",prompt,reference", *lines]) + "\r\n", newline="")
    prompt = prompts_of(build_task(from_file(path), 0))['What is "3",\nin words?']
    assert (prompt.reference, prompt.metadata) == ("x3", {})


def test_wording_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    chat = [{"role": "system", "content": "own"}, {"role": "user", "content": "in chat"}]
    write([{"prompt": f"plain {{{i}}}"} for i in range(20)] + [{"prompt": chat}, {"prompt": chat[1:]}], path)
    task = build_task(from_file(path, system="be brief", template="Q: {prompt} {x}\nA:"), 0)
    contents = [prompt.content for prompt in prompts_of(task).values()]
    system = {"role": "system", "content": "be brief"}
    assert (system, {"role": "user", "content": "Q: plain {4} {x}\nA:"}) in contents
    everything = [p.content for p in (*task.train, *task.validation, *task.test)]
    assert tuple(chat) in everything
    assert (system, chat[1]) in everything
    assert not task.has_references

    write([{"prompt": f"plain {i}"} for i in range(20)], path)
    plain = build_task(from_file(path, template="Q: {prompt}\nA:", chat=False), 0)
    assert "Q: plain 4\nA:" in [prompt.content for prompt in prompts_of(plain).values()]


def test_references_of_every_type(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    values = [1, -2.5, "x", "", None, 10**20]
    records = [{"prompt": f"v{i}", "reference": value} for i, value in enumerate(values)]
    write(records + [{"prompt": f"p{i}", "reference": i} for i in range(20)], path)
    found = prompts_of(build_task(from_file(path), 0))
    assert [found[f"v{i}"].reference for i in range(6)] == ["1", "-2.5", "x", None, None, "100000000000000000000"]


def test_decimals_of_parquet_as_references(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    write([{"prompt": f"p{i}", "reference": Decimal(f"{i}.50")} for i in range(20)], path)
    assert prompts_of(build_task(from_file(path), 0))["p7"].reference == "7.50"


def test_metadata_is_plain_json(tmp_path: Path) -> None:
    import datetime

    path = tmp_path / "d.parquet"
    day = datetime.datetime(2024, 5, 1, 12, 30)
    write(
        [{"prompt": f"p{i}", "day": day, "raw": b"x", "nan": float("nan"), "list": [{"a": 1}]} for i in range(20)], path
    )
    prompt = build_task(from_file(path), 0).train[0]
    assert json.loads(json.dumps(prompt.metadata, allow_nan=False)) == prompt.metadata
    assert prompt.metadata["day"] == "2024-05-01T12:30:00"
    assert (prompt.metadata["nan"], prompt.metadata["list"]) == (None, [{"a": 1}])


def test_group_column(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    write([{"prompt": f"p{i}", "doc": i // 2} for i in range(40)], path)
    task = build_task(from_file(path, columns={"group_column": "doc"}), 0)
    for prompts in (task.train, task.validation, task.test):
        inside = {prompt.metadata["doc"] for prompt in prompts}
        others = {p.metadata["doc"] for p in prompts_of(task).values() if p not in prompts}
        assert not inside & others


def test_reasoning_gym_is_a_function_of_seed_and_name_alone() -> None:
    one = build_task(TaskConfig(**gym("a")), 1)
    random.seed(99)
    np.random.seed(99)
    before = random.getstate()
    again = build_task(TaskConfig(**gym("a")), 1)
    assert random.getstate() == before
    assert again == one
    assert build_task(TaskConfig(**gym("a")), 2).train != one.train
    assert set(prompts_of(build_task(TaskConfig(**gym("b")), 1))) != set(prompts_of(one))


@pytest.mark.parametrize("dataset", ["gcd", "gsm_symbolic", "arc_agi", "boxnet", "countdown"])
def test_reasoning_gym_keeps_its_scorer_and_entry(dataset: str) -> None:
    import reasoning_gym

    task = build_task(TaskConfig(**gym("a", dataset, size=20)), 0)
    score = reasoning_gym.get_score_answer_fn(dataset)
    for prompt in task.test:
        assert prompt.grading["dataset"] == dataset
        assert prompt.grading["params"] == task.config.source.params
        json.dumps(prompt.grading["entry"])
        if prompt.reference is not None:
            assert score(prompt.reference, prompt.grading["entry"]) == pytest.approx(1.0)
    assert task.has_references


def test_problems_that_depend_on_the_hash_seed_are_refused_unless_it_is_fixed() -> None:
    code = (
        "from rlsf.config.schema import TaskConfig\nfrom rlsf.tasks import build_task\n"
        f"print([p.id for p in build_task(TaskConfig(**{gym('a', 'word_ladder', 20)!r}), 0).train])"
    )

    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT, env=environment).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    if sys.flags.hash_randomization:
        with pytest.raises(DataError, match="set PYTHONHASHSEED=0"):
            build_task(TaskConfig(**gym("a", "isomorphic_strings", 20)), 0)


def stream_config(tmp_path: Path, **settings: Any) -> RunConfig:
    for name in "ab":
        write([{"prompt": f"{name}{i}", "reference": i} for i in range(33)], tmp_path / f"{name}.jsonl")
    budgets = settings.pop("budgets", (None, None))
    tasks = [
        {
            "name": name,
            "source": {"kind": "file", "path": str(tmp_path / f"{name}.jsonl")},
            "split": SPLIT,
            "iterations": budget,
        }
        for name, budget in zip("ab", budgets, strict=True)
    ]
    return RunConfig(**{"name": "x", "tasks": tasks, "loop": {"iterations": 7, "prompts": 6}, **settings})


def test_schedule(tmp_path: Path) -> None:
    stream = build_stream(stream_config(tmp_path))
    assert stream.iterations == 7
    assert [stream.active(i).name for i in range(1, 8)] == ["a"] * 4 + ["b"] * 3
    assert [[task.name for task in stream.tasks_seen(i)] for i in (0, 1, 4, 5, 7)] == [
        [],
        ["a"],
        ["a"],
        ["a", "b"],
        ["a", "b"],
    ]
    for outside in (0, 8):
        with pytest.raises(ValueError, match="not in 1 to 7"):
            stream.active(outside)
    assert build_stream(stream_config(tmp_path, budgets=(2, 3))).iterations == 5


def test_a_task_in_two_guises_does_not_leak(tmp_path: Path) -> None:
    write([{"prompt": f"p{i}", "reference": i} for i in range(60)], tmp_path / "d.jsonl")
    source = {"kind": "file", "path": str(tmp_path / "d.jsonl")}
    tasks = [
        {"name": "first", "source": source, "split": SPLIT},
        {"name": "wide", "source": source, "split": {"validation": 10, "test": 20}, "template": "Say: {prompt}"},
        {"name": "again", "source": source, "split": SPLIT},
    ]
    first, wide, again = build_stream(RunConfig(name="x", tasks=tasks, loop={"prompts": 4})).tasks
    assert [p.text for p in first.test] == [p.text for p in again.test]
    held_out = {p.text.removeprefix("Say: ") for task in (first, wide) for p in (*task.validation, *task.test)}
    for task in (first, wide, again):
        assert not held_out & {p.text.removeprefix("Say: ") for p in task.train}
    assert first.report.leaked == 30 - 13
    assert len({p.id for task in (first, wide, again) for p in prompts_of(task).values()}) == sum(
        len(prompts_of(task)) for task in (first, wide, again)
    )


def test_train_is_capped_and_the_cap_is_nested(tmp_path: Path) -> None:
    write([{"prompt": f"p{i}", "reference": i} for i in range(60)], tmp_path / "d.jsonl")
    source = {"kind": "file", "path": str(tmp_path / "d.jsonl")}
    small, large = (
        build_task(TaskConfig(name="t", source=source, split={**SPLIT, "train": n}), 0).train for n in (10, 20)
    )
    assert (len(small), len(large)) == (10, 20)
    assert large[:10] == small


def toy_task(train: int, seed: int = 0, name: str = "t") -> Task:
    prompts = tuple(Prompt(f"{name}-{i}", name, f"p{i}", str(i)) for i in range(train))
    return Task(name, TaskConfig(**gym(name)), prompts, prompts[:1], prompts[:1], seed, DataReport(train))


def toy_stream(*tasks: Task, n: int, config: StreamConfig | None = None, iterations: int = 1000) -> Stream:
    schedule = Schedule(config or SequentialStream(), {task.name: iterations for task in tasks})
    return Stream(tasks, schedule, prompts=n, seed=tasks[0].seed)


def ids_of(stream: Stream, iteration: int) -> list[str]:
    return [prompt.id for part in stream.batch(iteration) for prompt in part.prompts]


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 9), st.integers(0, 1000))
def test_epochs_without_replacement(train: int, n: int, offset: int, seed: int) -> None:
    """A task's epochs begin with its own first iteration, whatever was trained before it."""
    n = min(n, train)
    first, task = toy_task(n, seed, "first"), toy_task(train, seed)
    schedule = Schedule(SequentialStream(), {"first": offset + 1, "t": 1000})
    stream = Stream((first, task), schedule, prompts=n, seed=seed)
    per_epoch = train // n
    drawn = [ids_of(stream, 2 + offset + i) for i in range(3 * per_epoch)]
    for epoch in range(3):
        ids = [id for batch in drawn[epoch * per_epoch : (epoch + 1) * per_epoch] for id in batch]
        assert len(ids) == len(set(ids)) == per_epoch * n
        assert [id for batch in drawn[epoch * per_epoch : (epoch + 1) * per_epoch] for id in batch] == [
            prompt.id for prompt in task.epoch(epoch)[: per_epoch * n]
        ]
    last = 3 * per_epoch - 1
    assert ids_of(Stream((first, task), schedule, prompts=n, seed=seed), 2 + offset + last) == drawn[last]


def test_too_few_training_prompts(tmp_path: Path) -> None:
    config = stream_config(tmp_path)
    few = config.model_copy(update={"loop": config.loop.model_copy(update={"prompts": 1000})})
    with pytest.raises(DataError, match=r"fewer than loop\.prompts"):
        build_stream(few)


def test_every_prompt_gets_its_turn() -> None:
    stream = toy_stream(toy_task(33), n=6)
    counts = np.zeros(33)
    for iteration in range(1, 1 + 5 * 200):
        for id in ids_of(stream, iteration):
            counts[int(id[2:])] += 1
    # 200 epochs of 30 of 33 prompts: 181.8 each, deviation √(200 · 30/33 · 3/33) = 4.1
    assert counts.min() > 160 and counts.max() <= 200
    assert ids_of(stream, 1) != ids_of(stream, 6)
    assert ids_of(toy_stream(toy_task(33, seed=1), n=6), 1) != ids_of(stream, 1)


@settings(deadline=None)
@given(st.sampled_from(["joint", "blurred", "drifting", "recurring"]), st.integers(0, 100), st.integers(1, 9))
def test_a_batch_of_several_tasks_has_its_size_and_no_prompt_twice(kind: str, seed: int, n: int) -> None:
    settings = {"drifting": {"start": {"a": 1}, "end": {"b": 1, "a": 0.5}}}
    config = TypeAdapter(StreamConfig).validate_python({"kind": kind, **settings.get(kind, {})})
    tasks = (toy_task(12, seed, "a"), toy_task(17, seed, "b"))
    stream = toy_stream(*tasks, n=n, config=config, iterations=20)
    again = toy_stream(*tasks, n=n, config=config, iterations=20)
    for iteration in range(1, stream.iterations + 1):
        ids = ids_of(stream, iteration)
        assert len(ids) == len(set(ids)) == n
    assert ids_of(again, stream.iterations) == ids_of(stream, stream.iterations)


def test_a_segment_that_ends_early_lets_the_next_begin() -> None:
    stream = toy_stream(toy_task(40, name="a"), toy_task(40, name="b"), n=4, iterations=10)
    before = [ids_of(stream, i) for i in range(1, 4)]
    assert ids_of(stream, 4)[0].startswith("a")
    stream.end_segment(3)
    assert [ids_of(stream, i) for i in range(1, 4)] == before
    assert ids_of(stream, 4)[0].startswith("b")
    assert [(s.task, s.first, s.last) for s in stream.segments] == [("a", 1, 3), ("b", 4, 13)]
    resumed = toy_stream(toy_task(40, name="a"), toy_task(40, name="b"), n=4, iterations=10)
    resumed.resume([3])
    assert ids_of(resumed, 7) == ids_of(stream, 7)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is 3 + 4?", "4"),
        ("12-5", "5"),
        ("12 - 5 =", "5"),
        ("add 3 to -4", "-4"),
        ("3 * (-4.25)", "-4.25"),
        ("gcd of 1,234 and 5,678,901.", "5678901"),
        ("numbers: 855, 392. Give the answer.", "392"),
        ("[1,2,3]", "3"),
        ("version v2", None),
        ("no number", None),
    ],
)
def test_last_operand(text: str, expected: str | None) -> None:
    config = TaskConfig(**gym("t", template="Answer with 1 number. {prompt} Use at most 9 digits."))
    task = Task("t", config, (), (), (), 0, DataReport(0))
    worded = ({"role": "user", "content": config.template.replace("{prompt}", text)},)
    assert last_operand(task, Prompt("t-1", "t", worded, "4")) == expected


def test_baselines() -> None:
    def prompts(*pairs: tuple[str, str | None]) -> tuple[Prompt, ...]:
        return tuple(Prompt(text, "t", text, reference) for text, reference in pairs)

    train = prompts(("a", "2"), ("b", "2"), ("c", "1"), ("d", "1"), ("e", None), ("f", "9"))
    test = prompts(("0 + 1", "1"), ("2 - 1", "1"), ("1 + 4", "5"), ("nothing", "1"))
    task = Task("t", TaskConfig(**gym("t")), train, train[2:3], test, 0, DataReport(10))

    def grade(prompt: Prompt, answer: str) -> bool:
        return prompt.reference == answer

    assert most_frequent_answer(task) == "1"  # as often as "2", and first in the alphabet
    assert most_frequent_correct(task, grade) == [True, True, False, True]
    assert last_operand_correct(task, grade) == [True, True, False, False]
    unlabelled = Task("t", task.config, prompts(("a", None)), prompts(("b", "5")), test, 0, DataReport(6))
    assert most_frequent_answer(unlabelled) == "5"


def test_stream_is_the_same_in_every_process(tmp_path: Path) -> None:
    """Ids, splits and draws depend on neither Python's hash seed nor global random state: resuming relies on it."""
    config = stream_config(tmp_path)
    (tmp_path / "c.json").write_text(config.model_dump_json())
    code = (
        "from pathlib import Path\nfrom rlsf.config.schema import RunConfig\nfrom rlsf.tasks import build_stream\n"
        f"stream = build_stream(RunConfig.model_validate_json(Path({str(tmp_path / 'c.json')!r}).read_text()))\n"
        "print([[p.id for part in stream.batch(i) for p in part.prompts] for i in range(1, 8)])\n"
        "print([p.id for task in stream.tasks for p in (*task.train, *task.validation, *task.test)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert isinstance(build_stream(config), Stream)
