"""`rlsf replay export`, `import`, `filter`, `merge` and `relabel`, through the real commands and on real stores."""

import dataclasses
import json
import math
import resource
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import pytest
from filelock import FileLock

from reward.types import NoQuestionFitsError, Score
from rlsf.cli import main
from rlsf.config.load import load_config
from rlsf.config.replay import ReplayConfig
from rlsf.experience import LESSON, Group
from rlsf.offline.config import ScoreConfig
from rlsf.replay import ReplayReader, ReplayStore
from rlsf.replay.exchange import import_groups
from rlsf.replay.exchange.relabel import _Relabelling
from rlsf.scorer import Scored
from rlsf.tasks import build_stream
from rollouts.types import Rollout
from tests.replay_groups import make_group


def make_store(folder: Path, groups: Sequence[Group], **settings: Any) -> Path:
    with ReplayStore.open(folder, ReplayConfig(**{"capacity": 50, **settings}), seed=7) as store:
        store.add(groups, iteration=4)
    return folder


def make_run(folder: Path, groups: Sequence[Group]) -> Path:
    """As far as these commands look at one."""
    make_store(folder / "replay", groups)
    checkpoint = folder / "checkpoints" / "iter_000004"
    checkpoint.mkdir(parents=True)
    for name, text in (("config.yaml", "name: run\n"), ("versions.json", "{}"), ("latest", "iter_000004\n")):
        (folder / name).write_text(text)
    return folder


def held(folder: Path) -> list[Group]:
    with ReplayReader.open_read_only(folder) as store:
        return list(store.groups())


class Rlsf:
    """`rlsf replay`, in this process: what it imports is imported once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: object, fails: bool = False) -> str:
        """What it said, in one line."""
        self._monkeypatch.setattr("sys.argv", ["rlsf", "replay", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = "".join(self._capsys.readouterr())
        assert (end.value.code or 0) == (2 if fails else 0), said
        return " ".join(said.split())


@pytest.fixture
def rlsf(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Rlsf:
    return Rlsf(monkeypatch, capsys)


GROUPS = [
    make_group("a", iteration=1, rewards=(1.0, 0.0, None)),
    make_group("b", iteration=2, rewards=(0.5, 0.5), priority=0.25),
    make_group("c", iteration=4, rewards=(2.0,), task="other"),
]


def rewards(folder: Path) -> dict[str, list[float | None]]:
    return {group.id: group.rewards for group in held(folder)}


# -- export and import -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["buffer.jsonl", "buffer.parquet", "buffer"])
def test_a_run_leaves_and_comes_back(name: str, tmp_path: Path, rlsf: Rlsf) -> None:
    run = make_run(tmp_path / "run", GROUPS)
    assert rlsf("export", run, tmp_path / name).endswith(f"{name}: 3 groups")
    said = rlsf("import", tmp_path / name, tmp_path / "stores" / "new")
    assert [path.name for path in (tmp_path / "stores" / "new").iterdir()] == ["replay.sqlite"]
    assert said.endswith("new: 3 groups added; it holds 3 of 3")
    assert held(tmp_path / "stores" / "new") == GROUPS
    with ReplayReader.open_read_only(tmp_path / "stores" / "new") as store:
        assert (store.capacity, store.keep, store.last_iteration) == (3, "fifo", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["run", name, "stores"])
    assert "other" in rlsf("stats", tmp_path / "stores" / "new")
    assert "no opinion" in rlsf("show", tmp_path / "stores" / "new", "a")


def test_filters(tmp_path: Path, rlsf: Rlsf) -> None:
    store, out = make_store(tmp_path / "store", GROUPS), tmp_path / "out.jsonl"
    for options, kept in (
        (["--task", "other"], {"c": [2.0]}),
        (["--iteration", "1:2"], {"a": [1.0, 0.0, None], "b": [0.5, 0.5]}),
        (["--iteration", "2:"], {"b": [0.5, 0.5], "c": [2.0]}),
        (["--iteration", ":1"], {"a": [1.0, 0.0, None]}),
        (["--iteration", "2"], {"b": [0.5, 0.5]}),
        (["--min-reward", "0.5"], {"a": [1.0], "b": [0.5, 0.5], "c": [2.0]}),
        (["--min-reward", "0.6", "--max-reward", "1"], {"a": [1.0]}),
    ):
        rlsf("export", store, out, *options)
        assert {group.id: group.rewards for group in import_groups(out)} == kept
        rlsf("filter", store, tmp_path / f"new{options}", *options)
        assert rewards(tmp_path / f"new{options}") == kept
    for options in (["--task", "gone"], ["--iteration", "9:"], ["--min-reward", "7"]):
        said = rlsf("export", store, tmp_path / "none.jsonl", *options, fails=True)
        assert (
            f"nothing fits {' '.join(options)}" in said and "its tasks are other, sums, its iterations 1 to 4" in said
        )
        rlsf("filter", store, tmp_path / "none", *options, fails=True)
    for text in ("a:b", ":", "1:2:3", ""):
        assert "is no range" in rlsf("export", store, out, "--iteration", text, fails=True)
    assert not list(tmp_path.glob("none*")) and not list(tmp_path.glob(".*"))


def test_the_best_of_each_prompt_stay(tmp_path: Path, rlsf: Rlsf) -> None:
    again = dataclasses.replace(make_group("d", rewards=(0.7, 3.0, 1.0)), prompt=GROUPS[0].prompt)
    store = make_store(tmp_path / "store", [*GROUPS, again], keep="reservoir")
    rlsf("filter", store, tmp_path / "new", "--keep-best", "2")
    assert rewards(tmp_path / "new") == {"a": [1.0], "b": [0.5, 0.5], "c": [2.0], "d": [3.0]}
    assert held(tmp_path / "new")[1] == GROUPS[1]  # priority and all
    with ReplayReader.open_read_only(tmp_path / "new") as new:
        assert (new.capacity, new.keep, new.seed) == (50, "reservoir", 7)
    silent = make_store(tmp_path / "silent", [make_group("s", rewards=(None,))])
    said = rlsf("filter", silent, tmp_path / "none", "--keep-best", "2", fails=True)
    assert "no rollout has a reward" in said and not (tmp_path / "none").exists()


def test_importing_into_a_store_that_is_there(tmp_path: Path, rlsf: Rlsf) -> None:
    run = make_run(tmp_path / "run", GROUPS[:1])
    rlsf("export", make_store(tmp_path / "store", GROUPS), tmp_path / "all.parquet")
    said = rlsf("import", tmp_path / "all.parquet", run, fails=True)
    assert "all.parquet row 1: group 'a' is in the store already; --skip-known" in said
    assert "leave out the options" in rlsf("import", tmp_path / "all.parquet", run, "--keep", "fifo", fails=True)
    with FileLock(run / ".lock"):
        assert "another process is working on" in rlsf("import", tmp_path / "all.parquet", run, fails=True)
    assert held(run / "replay") == GROUPS[:1]
    (run / "latest").write_text("iter_000003\n")
    (run / "checkpoints" / "iter_000003").mkdir()
    said = rlsf("import", tmp_path / "all.parquet", run, "--skip-known", fails=True)
    assert "was stopped in iteration 4" in said and "resume it first" in said
    (run / "latest").write_text("iter_000004\n")
    said = rlsf("import", tmp_path / "all.parquet", run / "replay", "--skip-known")
    assert said.endswith("2 groups added; it holds 3 of 50")
    with ReplayStore.open(run / "replay", ReplayConfig(capacity=50), seed=7) as store:
        store.rollback(4)  # as resuming does
        assert list(store.groups()) == GROUPS


def test_settings_of_a_new_store(tmp_path: Path, rlsf: Rlsf) -> None:
    rlsf("export", make_store(tmp_path / "store", GROUPS), tmp_path / "all.jsonl")
    (tmp_path / "small").mkdir()
    said = rlsf("import", tmp_path / "all.jsonl", tmp_path / "small", "--capacity", 2, "--keep", "fifo")
    assert said.endswith("3 groups added; it holds 2 of 2")
    assert held(tmp_path / "small") == GROUPS[1:]
    said = rlsf("import", tmp_path / "all.jsonl", tmp_path / "bad", "--keep", "best", fails=True)
    assert "--keep" in said and "found 'best'" in said and not (tmp_path / "bad").exists()


def test_nothing_is_left_of_an_import_that_fails(tmp_path: Path, rlsf: Rlsf) -> None:
    rlsf("export", make_store(tmp_path / "store", GROUPS), tmp_path / "all.jsonl")
    lines = (tmp_path / "all.jsonl").read_text().splitlines(True)
    (tmp_path / "cut.jsonl").write_text("".join(lines[:-1]) + lines[-1][:50])
    assert "cut.jsonl:6: not valid JSON" in rlsf("import", tmp_path / "cut.jsonl", tmp_path / "new", fails=True)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "1", "chosen": "2", "rejected": "3"}\n')
    said = rlsf("import", tmp_path / "pairs.jsonl", tmp_path / "new", fails=True)
    assert "pairs.jsonl:1: there is no column 'group'" in said and "--format rollouts" in said
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "exists already" in rlsf("import", tmp_path / "all.jsonl", tmp_path / "full", fails=True)
    assert {path.name for path in tmp_path.iterdir()} == {"store", "all.jsonl", "cut.jsonl", "pairs.jsonl", "full"}


def test_nothing_is_left_of_a_store_that_does_not_fit_on_the_disk(tmp_path: Path, rlsf: Rlsf) -> None:
    noise = tuple(math.sin(n) for n in range(3000))
    store = make_store(tmp_path / "store", [make_group(f"g{n}", logprobs=noise) for n in range(5)])
    rlsf("export", store, tmp_path / "all.jsonl")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        for command in (("import", tmp_path / "all.jsonl"), ("filter", store), ("merge", store)):
            assert "the disk is full" in rlsf(*command, tmp_path / "new", fails=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in tmp_path.iterdir()} == {"store", "all.jsonl"}


def test_what_is_protected(tmp_path: Path, rlsf: Rlsf) -> None:
    run = make_run(tmp_path / "run", GROUPS)
    before = (run / "replay" / "replay.sqlite").read_bytes()
    for target in (run / "metrics.jsonl", run / "replay" / "out.parquet", run / "samples" / "out"):
        assert "is a file of the run itself" in rlsf("export", run, target, fails=True)
    for command, more in (("filter", ()), ("merge", (run,)), ("relabel", ("--reward", "r.yaml"))):
        for new, why in (
            (run / "replay", "is a file of the run itself"),
            (run / "checkpoints" / "new", "is a file of the run itself"),
            (run, "run exists already"),
            (run / "config.yaml", "is a file of the run itself"),
        ):
            named = (*more, new) if command == "merge" else (new, *more)
            said = rlsf(command, run, *named, fails=True)
            assert f"NEW: {new}" in said and why in said
    assert "neither a run nor a replay store" in rlsf("export", tmp_path, tmp_path / "a.jsonl", fails=True)
    assert "did you mean" in rlsf("export", tmp_path / "rum", tmp_path / "a.jsonl", fails=True)
    assert (run / "replay" / "replay.sqlite").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# -- what TRL reads ----------------------------------------------------------------------------------------------------


def chat(group: Group) -> Group:
    content = ({"role": "system", "content": "Brief."}, {"role": "user", "content": "1 + 1?"})
    return dataclasses.replace(group, prompt=dataclasses.replace(group.prompt, content=content))


def test_preference_pairs_and_completions(tmp_path: Path, rlsf: Rlsf) -> None:
    store = make_store(tmp_path / "store", GROUPS[:2])
    rlsf("export", store, tmp_path / "pairs.jsonl", "--format", "pairs")
    assert [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()] == [
        {"prompt": "1 + 1 =", "chosen": "2", "rejected": "2"}
    ]
    chats = make_store(tmp_path / "chats", [chat(group) for group in GROUPS[:2]])
    assert rlsf("export", chats, tmp_path / "pairs", "--format", "pairs").endswith("pairs: 1 pair")
    row = datasets.load_from_disk(tmp_path / "pairs")[0]
    messages = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "1 + 1?"}]
    answer = [{"role": "assistant", "content": "2"}]
    assert row == {"prompt": messages, "chosen": answer, "rejected": answer}
    rlsf("export", chats, tmp_path / "trl.parquet", "--format", "trl", "--min-reward", 0.5)
    rows = datasets.Dataset.from_parquet(str(tmp_path / "trl.parquet"), cache_dir=tmp_path / "cache")
    assert list(rows) == [{"prompt": messages, "completion": answer}] * 3
    said = rlsf("export", chats, tmp_path / "no.jsonl", "--format", "pairs", "--min-reward", 1, fails=True)
    assert "no group has two different rewards" in said
    both = make_store(tmp_path / "both", [GROUPS[0], chat(GROUPS[1])])
    said = rlsf("export", both, tmp_path / "both.parquet", "--format", "trl", fails=True)
    assert "some prompts are chats and others plain text" in said and not (tmp_path / "both.parquet").exists()


# -- merging -----------------------------------------------------------------------------------------------------------


def test_merging(tmp_path: Path, rlsf: Rlsf) -> None:
    one, other = make_run(tmp_path / "one", GROUPS[:2]), make_store(tmp_path / "other", GROUPS[1:])
    said = rlsf("merge", one, other, tmp_path / "new", fails=True)
    assert "group 'b' is in one and in other: --prefix" in said and not (tmp_path / "new").exists()
    rlsf("merge", one, other, tmp_path / "first", "--skip-known")
    assert held(tmp_path / "first") == GROUPS
    said = rlsf("merge", one, other, tmp_path / "new", "--prefix")
    assert said.endswith("new: 4 groups of 2 stores; it holds 4 of 4")
    merged = held(tmp_path / "new")
    assert [group.id for group in merged] == ["one/a", "one/b", "other/b", "other/c"]
    ids = [experience.rollout.id for group in merged for experience in group.experiences]
    assert len(set(ids)) == len(ids) and ids[0] == "one/a:0"
    assert merged[3].experiences[0].rollout.group_id == "other/c"
    assert "is the same store as" in rlsf("merge", one, one / "replay", tmp_path / "x", fails=True)
    assert "NEW: name the store to make" in rlsf("merge", one, fails=True)
    empty = make_store(tmp_path / "empty", [])
    assert "all of the stores are empty" in rlsf("merge", empty, tmp_path / "x", fails=True)


def test_stores_of_one_name_are_told_apart_and_evidence_keeps_its_links(tmp_path: Path, rlsf: Rlsf) -> None:
    group = make_group("g", evidence={"met": [{"opponent": "g:1"}], "by id": {"g:0": "g:1 was better"}})
    stores = [make_store(tmp_path / folder / "same", [group]) for folder in ("x", "y")]
    rlsf("merge", *stores, tmp_path / "new", "--prefix")
    first, second = held(tmp_path / "new")
    assert (first.id, second.id) == ("same/g", "same-2/g")
    assert second.experiences[0].score.evidence == {
        "met": [{"opponent": "same-2/g:1"}],
        "by id": {"same-2/g:0": "g:1 was better"},
    }


# -- relabelling -------------------------------------------------------------------------------------------------------


def answers(id: str, *texts: str, task: str = "sums") -> Group:
    group = make_group(id, rewards=tuple(float(n) for n in range(len(texts))), task=task, priority=0.5)
    experiences = tuple(
        dataclasses.replace(experience, rollout=dataclasses.replace(experience.rollout, text=text))
        for experience, text in zip(group.experiences, texts, strict=True)
    )
    return dataclasses.replace(group, experiences=experiences)


def lesson(id: str) -> Group:
    group = make_group(id)
    score = Score(0.25, evidence={LESSON: "critique"})
    return dataclasses.replace(group, experiences=tuple(dataclasses.replace(e, score=score) for e in group.experiences))


def relabel(rlsf: Rlsf, tmp_path: Path, store: Path, reward: str, *more: object, fails: bool = False) -> str:
    (tmp_path / "reward.yaml").write_text(reward)
    return rlsf("relabel", store, tmp_path / "new", "--reward", tmp_path / "reward.yaml", *more, fails=fails)


def test_votes_take_the_place_of_the_old_reward(tmp_path: Path, rlsf: Rlsf) -> None:
    groups = [answers("a", "4", "5", "4"), lesson("l"), answers("b", "7", "8", "8", task="other")]
    store = make_store(tmp_path / "store", groups, keep="reservoir")
    said = relabel(rlsf, tmp_path, store, "reward: {kind: majority}\n")
    assert "6 completions: mean reward 0.6667, no opinion on 0; before: mean reward 1" in said
    assert said.endswith("Lessons, which stay as they are: 1")
    first, unchanged, other = held(tmp_path / "new")
    assert (first.rewards, other.rewards) == ([1.0, 0.0, 1.0], [0.0, 1.0, 1.0])
    assert unchanged == groups[1]
    evidence = first.experiences[1].score.evidence
    assert evidence["votes"] == {"4": 2, "5": 1}
    assert evidence["old_reward"] == {"reward": 1.0, "components": {"majority": 1.0}}
    for old, new in zip(groups, held(tmp_path / "new"), strict=True):
        assert [dataclasses.replace(e, score=Score(None)) for e in old.experiences] == [
            dataclasses.replace(e, score=Score(None)) for e in new.experiences
        ]
    with ReplayReader.open_read_only(tmp_path / "new") as new:
        assert (new.capacity, new.keep, new.seed) == (50, "reservoir", 7)


def test_large_stores_are_scored_in_parts_where_the_reward_has_no_memory(tmp_path: Path, rlsf: Rlsf) -> None:
    groups = [answers(f"g{n}", "1", "1", str(n)) for n in range(300)]
    store = make_store(tmp_path / "store", groups, capacity=300)
    relabel(rlsf, tmp_path, store, "reward: {kind: majority}\n")
    assert rewards(tmp_path / "new") == {f"g{n}": [1.0, 1.0, float(n == 1)] for n in range(300)}
    (tmp_path / "new").rename(tmp_path / "parts")
    voted = "reward: {kind: weighted_sum, components: {v: {normalize: task, reward: {kind: majority}}}}\n"
    relabel(rlsf, tmp_path, store, voted)
    values = [value for group in held(tmp_path / "new") for value in group.rewards if value is not None]
    assert len(values) == 900 and abs(sum(values)) < 1e-6  # normalised over all groups, not over parts of them


def test_a_verifier_takes_references_from_a_file(tmp_path: Path, rlsf: Rlsf) -> None:
    store = make_store(tmp_path / "store", [answers("a", "4", "5"), answers("b", "7", "8")])
    verifier = "reward: {kind: verifier}\n"
    assert "a store keeps none; name a file" in relabel(rlsf, tmp_path, store, verifier, fails=True)
    references = tmp_path / "references.jsonl"
    for text, why in (
        ('{"prompt_id": "prompt-a", "reference": "5"}', "has no reference for prompt 'prompt-b' (1 of 2 have none)"),
        ('{"prompt_id": 7, "reference": "5"}', "references.jsonl:1: prompt_id must be text"),
        ('{"prompt_id": "prompt-a", "answer": "5"}', "neither a reference nor a grading; columns: prompt_id, answer"),
        ('{"prompt_id": "a", "reference": 1}\n{"prompt_id": "a", "reference": 2}', ":2: prompt 'a' has another refer"),
        ('{"prompt_id": "a", "reference": [1]}', "the reference in column 'reference' is a list"),
    ):
        references.write_text(text + "\n")
        assert why in relabel(rlsf, tmp_path, store, verifier, "--references", references, fails=True)
        assert not (tmp_path / "new").exists()
    references.write_text('{"prompt_id": "prompt-a", "reference": 5}\n{"prompt_id": "prompt-b", "reference": "7"}\n')
    relabel(rlsf, tmp_path, store, verifier, "--references", references)
    assert rewards(tmp_path / "new") == {"a": [0.0, 1.0], "b": [1.0, 0.0]}


def test_a_reward_that_fails_leaves_nothing_and_the_old_store(tmp_path: Path, rlsf: Rlsf) -> None:
    store = make_store(tmp_path / "store", [answers("a", "4", "5")])
    before = (store / "replay.sqlite").read_bytes()
    (tmp_path / "mine.py").write_text("def f(completions, **rest):\n    raise KeyError('x')\n")
    for reward, why in (
        (f"reward: {{kind: function, path: {tmp_path}/mine.py:f}}\n", "raised KeyError"),
        ("reward: {kind: self_certainty}\n", "reads the model's probabilities, and no model is named"),
        ("reward: {kind: majorities}\n", "majority"),
        (
            "reward: {kind: judge, samples: 1, retries: 0, by: {kind: openai, base_url: 'http://127.0.0.1:9/v1', "
            "model: m, api_key_env: null, timeout: 1}}\n",
            "not one of the 2 questions that the reward asked was answered",
        ),
    ):
        assert why in relabel(rlsf, tmp_path, store, reward, fails=True)
        assert not (tmp_path / "new").exists()
    assert (store / "replay.sqlite").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"store", "mine.py", "reward.yaml"}


def test_the_config_of_a_run_must_have_the_tasks(tmp_path: Path, rlsf: Rlsf) -> None:
    store = make_store(tmp_path / "store", [answers("a", "4", "5", "4")])
    config = (Path(__file__).parent.parent / "configs" / "smoke.yaml").read_text()
    assert "there is no task 'sums', of which the store has groups; its tasks are sum." in relabel(
        rlsf, tmp_path, store, config, fails=True
    )
    relabel(rlsf, tmp_path, store, config.replace("name: sum\n", "name: sums\n"))
    assert rewards(tmp_path / "new") == {"a": [1.0, 0.0, 1.0]}


def test_a_run_brings_its_own_references(tmp_path: Path, rlsf: Rlsf) -> None:
    run = make_run(tmp_path / "run", [])
    (run / "config.yaml").write_text(
        "name: run\nmodel: {source: lab}\nreward: {kind: majority}\ntasks:\n"
        "  - name: sum\n    split: {validation: 2, test: 2}\n"
        "    source: {kind: reasoning_gym, dataset: chain_sum, params: {max_terms: 2}, size: 60}\n"
    )
    stream = build_stream(load_config(run / "config.yaml"))
    (run / "versions.json").write_text(json.dumps({"data": stream.digests()}))
    prompt = stream.tasks[0].train[0]
    group = answers("a", str(prompt.reference), "no", task="sum")
    of_run = dataclasses.replace(
        group,
        prompt=prompt.without_labels(),
        experiences=tuple(
            dataclasses.replace(e, rollout=dataclasses.replace(e.rollout, prompt_id=prompt.id))
            for e in group.experiences
        ),
    )
    make_store(tmp_path / "other", [of_run, dataclasses.replace(group, id="b")])
    rlsf("export", tmp_path / "other", tmp_path / "all.jsonl")
    rlsf("import", tmp_path / "all.jsonl", run)
    said = relabel(rlsf, tmp_path, run, "reward: {kind: verifier}\n", fails=True)
    assert f"the data of {run} has no reference for prompt 'prompt-a' (1 of 2 have none)" in said
    make_run(tmp_path / "again", [of_run])
    for name in ("config.yaml", "versions.json"):
        (run / name).replace(tmp_path / "again" / name)
    relabel(rlsf, tmp_path, tmp_path / "again", "reward: {kind: verifier}\n")
    assert rewards(tmp_path / "new") == {"a": [1.0, 0.0]}
    (tmp_path / "again" / "versions.json").write_text('{"data": {"sum": "another"}}')
    (tmp_path / "new").rename(tmp_path / "verified")
    said = relabel(rlsf, tmp_path, tmp_path / "again", "reward: {kind: verifier}\n", fails=True)
    assert "the data of task 'sum' is not what" in said


def test_the_models_probabilities_are_those_of_the_stored_tokens(tmp_path: Path, rlsf: Rlsf) -> None:
    store = make_store(tmp_path / "store", [answers("a", "4", "5"), lesson("l")])
    relabel(rlsf, tmp_path, store, "reward: {kind: self_certainty}\nmodel: {source: lab}\n")
    scored, kept = held(tmp_path / "new")
    assert kept == lesson("l")
    first, second = scored.rewards
    assert first == second and first is not None and first > 0  # the texts differ, the tokens do not


class NoRoom:
    """A scorer to which no question of some groups fits."""

    def __init__(self, *ids: str) -> None:
        self._ids = ids

    def score(
        self, prompts: object, rollouts: Sequence[Sequence[Rollout]], *, none_fits: Callable[[Any], object], **rest: Any
    ) -> Scored:
        if all(group[0].group_id in self._ids for group in rollouts):
            none_fits(NoQuestionFitsError("not one question fits"))
        return Scored([[Score(None) for _ in group] for group in rollouts], {}, {}, [], None)


def test_questions_that_fit_nowhere_are_an_error_only_where_it_is_so_in_every_part() -> None:
    groups = [answers("a", "4", "5"), answers("b", "7", "8")]
    for scorer, fails in ((NoRoom("a"), False), (NoRoom("a", "b"), True)):
        relabelling = _Relabelling(scorer, ScoreConfig(), {}, lambda rollouts: None)  # type: ignore[arg-type]
        for group in groups:
            (scored,) = relabelling.score([group])
            assert scored.rewards == [None, None]
        with pytest.raises(NoQuestionFitsError) if fails else nullcontext():
            relabelling.check()
