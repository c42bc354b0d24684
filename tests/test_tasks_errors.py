"""Malformed data: each one DataError that names file, line or row, column, and what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rlsf.config.schema import RunConfig, TaskConfig
from rlsf.errors import DataError
from rlsf.tasks import build_stream, build_task
from rlsf.tasks.files import read_file

GOOD = "".join(json.dumps({"prompt": f"{i} + 1", "reference": i + 1}) + "\n" for i in range(20))


def task(source: dict, **settings) -> TaskConfig:
    return TaskConfig(name="t", source=source, split=settings.pop("split", {"validation": 2, "test": 3}), **settings)


def rows(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


MALFORMED = {
    "missing": ("no.jsonl", None, ["no.jsonl: there is no such file"]),
    "nearly": ("data.jsnl", None, ["unknown suffix '.jsnl'", ".jsonl, .json, .csv, .parquet"]),
    "empty jsonl": ("d.jsonl", "", ["d.jsonl: the file has no rows"]),
    "blank jsonl": ("d.jsonl", "\n \n", ["d.jsonl: the file has no rows"]),
    "empty json": ("d.json", "", ["d.json: the file has no rows"]),
    "empty csv": ("d.csv", "", ["d.csv: the file has no rows"]),
    "header alone": ("d.csv", "prompt,reference\n", ["d.csv: the file has no rows"]),
    "empty parquet": ("d.parquet", "", ["d.parquet: the file has no rows"]),
    "broken line": ("d.jsonl", GOOD + '{"prompt": "x"\n', ["d.jsonl:21: not valid JSON", "column 15"]),
    "broken array": ("d.json", '[{"prompt": "x"},\n{"prompt" "y"}]', ["d.json:2: not valid JSON"]),
    "an object, no array": ("d.json", '{"prompt": "x"}', ["expected one array [...] of objects", ".jsonl"]),
    "a row that is a list": ("d.jsonl", GOOD + "[1]\n", ["d.jsonl:21: the row is a list, not an object"]),
    "a row that is text": ("d.json", '["a"]', ["d.json row 1: the row is a str, not an object"]),
    "deep nesting": ("d.jsonl", "[" * 100_000 + "\n", ["d.jsonl:1: the JSON is nested too deeply"]),
    "not UTF-8": ("d.jsonl", GOOD.encode() + b'{"prompt": "\xe4"}\n', ["d.jsonl:21: not UTF-8"]),
    "latin-1 csv": ("d.csv", b"prompt,reference\na,b\n\xe4,1\n", ["d.csv:3: not UTF-8"]),
    "corrupt parquet": ("d.parquet", "PAR1 or not", ["d.parquet: not a readable Parquet file"]),
    "no prompt column": (
        "d.jsonl",
        rows({"promt": "x", "answer": 1}),
        ["d.jsonl:1: there is no column 'prompt' (source.prompt_column)", "columns: promt, answer", "mean 'promt'"],
    ),
    "no such column at all": (
        "d.csv",
        "a,b\n1,2\n",
        ["d.csv:2: there is no column 'prompt'", "columns: a, b; set source"],
    ),
    "null prompt": ("d.jsonl", rows({"prompt": "x"}, {"prompt": None}), ["d.jsonl:2: the column 'prompt' is empty"]),
    "blank prompt": ("d.csv", "prompt\nx\n\n  \n", ["d.csv:4: the column 'prompt' is empty"]),
    "no messages": ("d.jsonl", rows({"prompt": []}), ["the column 'prompt' is empty"]),
    "a number as prompt": ("d.jsonl", rows({"prompt": 3}), ["d.jsonl:1: the column 'prompt' holds a int"]),
    "a message without role": (
        "d.jsonl",
        rows({"prompt": [{"content": "x"}]}),
        ["d.jsonl:1: column 'prompt', message 1: expected {role: ..., content: ...}"],
    ),
    "an unknown role": (
        "d.jsonl",
        rows({"prompt": [{"role": "user", "content": "x"}, {"role": "human", "content": "x"}]}),
        ["message 2: unknown role 'human'; expected one of system, user"],
    ),
    "content that is no text": (
        "d.jsonl",
        rows({"prompt": [{"role": "user", "content": [1]}]}),
        ["message 1: content must be text, found a list"],
    ),
    "an answered conversation": (
        "d.jsonl",
        rows({"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}),
        ["the last message is the assistant's"],
    ),
    "a message without words": (
        "d.jsonl",
        rows({"prompt": [{"role": "user", "content": " \n"}]}),
        ["d.jsonl:1: column 'prompt', message 1: the user's message is empty"],
    ),
    "a chat without a user": (
        "d.jsonl",
        rows({"prompt": [{"role": "system", "content": "Be brief."}]}),
        ["d.jsonl:1: the chat in column 'prompt' has no message of the user"],
    ),
    "half a character": (
        "d.jsonl",
        GOOD + '{"prompt": "\\ud83d x"}\n',
        ["d.jsonl:21: the column 'prompt' holds half a character"],
    ),
    "half a character deep inside": (
        "d.json",
        '[{"prompt": "x", "more": [{"a": "\\udc00"}]}]',
        ["d.json row 1: the column 'more' holds half a character"],
    ),
    "a number of 5000 digits": (
        "d.jsonl",
        GOOD + f'{{"prompt": "x", "reference": {"1" * 5000}}}\n',
        ["d.jsonl:21: the JSON holds a whole number of more than 4300 digits; put it into quotes"],
    ),
    "an infinite reference": (
        "d.jsonl",
        GOOD + '{"prompt": "x", "reference": -Infinity}\n',
        ["d.jsonl:21: the reference in column 'reference' is -inf; expected a finite number"],
    ),
    "a reference that is no number": (
        "d.jsonl",
        GOOD + '{"prompt": "x", "reference": NaN}\n',
        ["d.jsonl:21: the reference in column 'reference' is nan", "null where there is no answer"],
    ),
    "a list as reference": (
        "d.jsonl",
        rows({"prompt": "x", "reference": [1]}),
        ["d.jsonl:1: the reference", "is a list"],
    ),
    "a truth value as reference": ("d.jsonl", rows({"prompt": "x", "reference": True}), ["is a bool; expected text"]),
    "ragged csv": ("d.csv", "prompt,reference\na,1\nb,2,3\n", ["d.csv:3: 3 cells, but the header has 2", "quotes"]),
    "short csv row": ("d.csv", "prompt,reference\na\n", ["d.csv:2: 1 cells, but the header has 2"]),
    "open quote": ("d.csv", 'prompt,reference\n"a,1\n', ["not valid CSV"]),
    "semicolons": ("d.csv", "prompt;reference\na;1\n", ["separated by semicolons; expected commas"]),
    "a column twice": ("d.csv", "prompt,prompt\na,1\n", ["the column 'prompt' stands twice"]),
    "too few rows": (
        "d.jsonl",
        rows(*[{"prompt": f"p{i % 5}", "reference": 1} for i in range(9)]),
        ["task 't': 5 different prompts (9 rows, 4 duplicates dropped) are too few for split.test (3)", "lower"],
    ),
    "too few labels": (
        "d.jsonl",
        rows(*[{"prompt": f"p{i}", "reference": 1 if i < 4 else None} for i in range(50)]),
        ["50 different prompts, 4 of them with a reference, are too few"],
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    name, content, expected = MALFORMED[case]
    if content is not None:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        build_task(task({"kind": "file", "path": name}), seed=0)
    for part in expected:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    for suffix in (".jsonl", ".parquet"):
        folder = tmp_path / f"d{suffix}"
        folder.mkdir()
        with pytest.raises(DataError, match="this is a directory"):
            read_file(folder)


def test_chat_messages_as_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(rows({"prompt": [{"role": "user", "content": "x"}]}))
    with pytest.raises(DataError, match="chat: false wants plain text"):
        build_task(task({"kind": "file", "path": str(path)}, chat=False), seed=0)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"dataset": "chain_sums"}, ["has no data set 'chain_sums'; did you mean chain_sum"]),
        ({"dataset": "qqqqqq"}, ["it has ab, "]),
        ({"dataset": "gcd", "params": {"max_valeu": 3}}, ["source.params.max_valeu", "did you mean max_value?"]),
        ({"dataset": "gcd", "params": {"seed": 3}}, ["source.params.seed: set the seed of the run"]),
        ({"dataset": "gcd", "params": {"size": 3}}, ["source.params.size: set source.size"]),
        ({"dataset": "gcd", "params": {"min_value": 0}}, ["refuses source.params", "min_value"]),
        ({"dataset": "gcd", "params": {"max_value": "x"}}, ["task 't': reasoning-gym's gcd refuses source.params"]),
        (
            {"dataset": "chain_sum", "size": 500, "params": {"min_terms": 2, "max_terms": 2, "max_digits": 1}},
            ["different prompts (500 rows,", "are too few for split.test (300)"],
        ),
    ],
)
def test_reasoning_gym_errors(source: dict, expected: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        build_task(task({"kind": "reasoning_gym", **source}, split={"validation": 5, "test": 300}), seed=0)
    for part in expected:
        assert part in str(caught.value)


def test_datasets_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"nobody/nothing: cannot be loaded: .*nor in the local cache"):
        build_task(task({"kind": "datasets", "path": "nobody/nothing"}), seed=0)
    data = datasets.Dataset.from_list([{"prompt": f"p{i}"} for i in range(9)])
    datasets.DatasetDict({"learn": data, "judge": data}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="there is no split 'train'; it has learn, judge"):
        build_task(task({"kind": "datasets", "path": str(tmp_path / "saved")}), seed=0)
    (tmp_path / "saved" / "learn" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="saved: cannot be loaded: KeyError"):
        build_task(task({"kind": "datasets", "path": str(tmp_path / "saved"), "split": "learn"}), seed=0)
    (tmp_path / "folder").mkdir()
    data.to_json(str(tmp_path / "folder" / "train.jsonl"))
    with pytest.raises(DataError, match=r"folder: cannot be loaded: ValueError: .*corresponds to no data"):
        build_task(task({"kind": "datasets", "path": str(tmp_path / "folder"), "split": "train[:0]"}), seed=0)


@pytest.mark.parametrize(
    ("change", "make_rows", "expected"),
    [
        ({"loop": {"prompts": 16}}, lambda i: {"prompt": f"p{i}", "reference": i}, "fewer than loop.prompts (16)"),
        (
            {"reward": {"kind": "verifier"}},
            lambda i: {"prompt": f"p{i}", "answer": i},
            "no column 'reference' (source.reference_column); other columns: answer",
        ),
        (
            {"reward": {"kind": "verifier"}},
            lambda i: {"prompt": f"p{i}", "reference": i if i < 12 else None},
            "8 of 15 training prompts have none",
        ),
        (
            {"warm_start": {"examples": 12}},
            lambda i: {"prompt": f"p{i}", "reference": i if i < 12 else None},
            "warm_start.examples asks for 12 labelled training prompts, and there are 7",
        ),
    ],
)
def test_a_stream_without_what_the_run_needs(
    tmp_path: Path, change: dict, make_rows: Callable[[int], dict], expected: str
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(rows(*[make_rows(i) for i in range(20)]))
    task_config = task({"kind": "file", "path": str(path)})
    config = RunConfig(**{"name": "x", "tasks": [task_config], "loop": {"prompts": 4}, **change})
    with pytest.raises(DataError) as caught:
        build_stream(config)
    assert expected in str(caught.value)
