"""Streams and strategies in real runs on the lab model: every config of configs/continual, what the store is told, and
runs that are killed where tasks change."""

import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from rlsf.continual.table import compare_runs
from rlsf.errors import RunDirError
from rlsf.replay import ReplayStore
from rlsf.run_dir import read_jsonl
from tests.killing import Moment, run_cli
from tests.test_resume import _result as result_of

pytestmark = pytest.mark.slow

CONFIGS = sorted((Path(__file__).parent.parent / "configs" / "continual").glob("*.yaml"))
SEQUENTIAL = next(path for path in CONFIGS if path.stem == "sequential")
TINY = {
    "loop.iterations": 6,
    "loop.prompts": 4,
    "sampling.n": 4,
    **{f"tasks.{i}.source.size": 120 for i in range(3)},
    **{f"tasks.{i}.split": "{validation: 8, test: 12}" for i in range(3)},
    "evaluation.every": 1,
    "evaluation.samples": 2,
    "evaluation.final_samples": 2,
    "tracking.tensorboard": "false",
}
SHOWN = {
    "l2": "continual/l2",
    "ewc": "continual/ewc",
    "orthogonal": "continual/orthogonal",
    "distill": "continual/distill",
    "combined": "continual/distill",
    "hidden": "identity/contexts",
    "curriculum": "clusters/number",
    "replay_samples": "train/replayed/ess",
    "replay_priorities": "train/replayed/ess",
    "replay_success": "train/replayed/ess",
    "replay_prompts": "reward/mean/gcd",
    "joint": "reward/mean/gcd",
    "blurred": "reward/mean/gcd",
    "drifting": "reward/mean/bits",
}
"""A metric that is there only where the strategy is at work."""


def run(config: Path, folder: Path, *overrides: str, moment: Moment | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    settings = [*(f"{key}={value}" for key, value in TINY.items()), f"output_dir={folder}", "name=run", *overrides]
    changes = [part for setting in settings for part in ("--set", setting)]
    log = folder / "log.txt"
    status = run_cli(["run", str(config), *changes], log, moment)
    if moment is not None:
        assert status == -9, f"{moment} was never reached:\n{log.read_text()}"
        status = run_cli(["resume", str(folder / "run")], log)
    assert status == 0, log.read_text()
    return folder / "run"


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[str, Path]:
    """Runs of this module by config, for the comparison at the end."""
    return {}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs_and_measures_every_task_after_every_segment(config, tmp_path_factory, finished) -> None:
    wide = ["stream.overlap=1"] if config.stem == "blurred" else []  # two iterations leave no room for half of that
    folder = run(config, tmp_path_factory.mktemp(config.stem), *wide)
    found = summary_of(folder)["continual"]
    rows = {"joint": 2, "recurring": 7}.get(config.stem, 4)
    assert (len(found["matrix"]), [len(row) for row in found["matrix"]]) == (rows, [3] * rows)
    assert all(value is not None for row in found["matrix"] for value in row)
    assert found["metrics"]["ACC"]["value"] == pytest.approx(sum(found["matrix"][-1]) / 3)
    assert (found["metrics"]["BWT"] is None) == (config.stem == "joint")
    assert set(found["kl_from_base"]) == {"sum", "gcd", "bits"}
    metrics = list(read_jsonl(folder / "metrics.jsonl"))
    if config.stem in SHOWN:
        assert any(SHOWN[config.stem] in row for row in metrics)
    if config.stem == "frozen":
        assert len({tuple(row) for row in map(tuple, found["matrix"])}) == 1
        assert max(found["kl_from_base"].values()) == pytest.approx(0, abs=1e-6)
    finished[config.stem] = folder


def test_the_runs_stand_side_by_side(finished, tmp_path, capsys) -> None:
    names = ("sequential", "ewc", "per_task", "joint", "frozen")
    if any(name not in finished for name in names):
        pytest.skip("the runs were made by another process")
    console = Console(width=160)
    compare_runs([finished[name] for name in names], console, output=tmp_path / "table.json")
    shown = capsys.readouterr().out
    assert all(column in shown for column in ("ACC", "BWT", "FWT", "forgetting", "intransigence", "KL from base"))
    written = json.loads((tmp_path / "table.json").read_text())
    sequential, joint = (summary_of(finished[name])["continual"] for name in ("sequential", "joint"))
    figures = {Path(path).parent.name.rstrip("0"): row for path, row in written["figures"].items()}
    expected = [joint["matrix"][-1][j] - sequential["matrix"][j + 1][j] for j in range(3)]
    assert figures["sequential"]["intransigence"]["value"] == pytest.approx(sum(expected) / 3)
    assert math.isclose(figures["sequential"]["BWT"]["value"], sequential["metrics"]["BWT"]["value"])
    with pytest.raises(RunDirError, match=r"config\.yaml is missing"):
        compare_runs([tmp_path], console, output=None)


def test_where_the_task_is_hidden_the_store_is_not_told(tmp_path) -> None:
    hidden = next(path for path in CONFIGS if path.stem == "hidden")
    folder = run(hidden, tmp_path, "continual.identity.consecutive=1", "loop.prompts=8")
    with ReplayStore.open_read_only(folder / "replay") as store:
        labels = {group.task for group in store.groups()}
        true = {group.prompt.task for group in store.groups()}
    assert true == {"sum", "gcd", "bits"}
    assert labels == {"context-1", "context-2", "context-3"}


def test_adapters_of_tasks_can_be_measured_by_name(finished, tmp_path) -> None:
    if "merge" not in finished:
        pytest.skip("the run was made by another process")
    outcomes = tmp_path / "outcomes.json"
    for name in ("merged", "gcd"):
        command = ["eval", str(finished["merge"]), "--adapter", name, "--samples", "2", "--output", str(outcomes)]
        assert run_cli(command, tmp_path / "log.txt") == 0, (tmp_path / "log.txt").read_text()
        if name == "merged":
            measured = {row["task"]: row["outcomes"] for row in json.loads(outcomes.read_text())}
            for task, rows in measured.items():
                final = json.loads((finished["merge"] / "evaluations" / f"test_final_{task}.json").read_text())
                assert [row["answers"] for row in rows] == [row["answers"] for row in final["outcomes"]]


def test_a_run_begins_with_what_an_earlier_one_remembers(tmp_path) -> None:
    first = run(SEQUENTIAL, tmp_path / "first", "loop.iterations=3")
    file = tmp_path / "buffer.parquet"
    assert run_cli(["replay", "export", str(first), str(file)], tmp_path / "export.txt") == 0
    settings = (f"replay.begin_with={file}", "replay.ratio=1", "continual.distill={groups: 2}", "algorithm.kl_coef=0.1")
    second = run(SEQUENTIAL, tmp_path / "second", *settings, "loop.iterations=3")  # with the same seed
    with ReplayStore.open_read_only(second / "replay") as store:
        groups = list(store.groups())
        assert len(groups) == 12 + 12
        imported = [group for group in groups if group.iteration == 0]
        assert len(imported) == 12 and {group.policy_version for group in imported} == {0}
        assert store.stats().drawn >= 12
    metrics = list(read_jsonl(second / "metrics.jsonl"))
    assert any("train/replayed/ess" in row for row in metrics)
    halves = [f"tasks.{i}.split={{validation: 30, test: 30}}" for i in range(3)]
    third = run(SEQUENTIAL, tmp_path / "third", *settings, *halves, "loop.iterations=3")  # holds out more
    held_out = {
        outcome["prompt_id"]
        for path in (third / "evaluations").glob("*.json")
        for outcome in json.loads(path.read_text()).get("outcomes", [])
    }
    with ReplayStore.open_read_only(third / "replay") as store:
        known = {group.prompt.id for group in store.groups() if group.iteration == 0}
    assert known and held_out and not known & held_out
    assert "of prompts that this run is validated or tested on" in " ".join(
        (tmp_path / "third" / "log.txt").read_text().split()
    )
    missing = run_cli(
        ["run", str(SEQUENTIAL), "--set", "replay.begin_with=nowhere.parquet", "--set", f"output_dir={tmp_path}"],
        tmp_path / "missing.txt",
    )
    assert missing == 2 and "replay.begin_with: there is no nowhere.parquet" in (tmp_path / "missing.txt").read_text()


EVERYTHING = (
    "continual={reference: last_task, l2: {}, ewc: {samples: 4}, distill: {groups: 2}, cppo: {}, transfer: {}, "
    "layers: {freeze: [0], importance: 1.0}, orthogonal: {rank: 4}}",
    "replay={keep: diverse, capacity: 14, draw: {kind: per_cluster, within: {kind: prioritized}}, ratio: 1}",
    "clusters={clusters: {kind: kmeans, k: 3, every: 2}, curriculum: {}}",
    "warm_start={tasks: each, examples: 8, steps: 4, batch_size: 4}",
)
ADAPTERS = (
    "continual={adapters: {use: route, init: start}, identity: {kind: drift, consecutive: 1}}",
    "replay={keep: balanced, capacity: 14, draw: {kind: per_task}, ratio: 1, mode: prompts}",
    "stream={kind: recurring, rounds: 2, until: {window: 1, patience: 1}}",
    "loop.iterations=9",
)
MOMENTS = {
    "as a task ends": (EVERYTHING, Moment("rlsf.continual.strategies:Strategies.end_task", call=2, after=True)),
    "in a later warm start": (EVERYTHING, Moment("rlsf.algorithms.sft:WarmStart.run", call=3, after=True)),
    "in an update": (EVERYTHING, Moment("torch.optim:AdamW.step", call=17)),
    "between fits": (EVERYTHING, Moment("rlsf.replay:ReplayStore.set_clusters", call=2, after=True)),
    "as tasks are measured": (ADAPTERS, Moment("rlsf.run:Run.evaluate_row", call=2, after=True)),
    "as an adapter is kept": (ADAPTERS, Moment("rlsf.continual.adapters:AdapterBank.keep", call=6, after=True)),
    "as prompts come back": (ADAPTERS, Moment("rlsf.loop:replayed_prompts", call=4, after=True)),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    kept: dict[tuple[str, ...], dict] = {}

    def result(settings: tuple[str, ...]) -> dict:
        if settings not in kept:
            kept[settings] = result_of(run(SEQUENTIAL, tmp_path_factory.mktemp("alone"), *settings))
        return kept[settings]

    return result


@pytest.mark.parametrize("name", MOMENTS, ids=lambda name: name.replace(" ", "-"))
def test_killed_and_resumed_is_the_same_bit_for_bit(name, undisturbed, tmp_path) -> None:
    settings, moment = MOMENTS[name]
    resumed = run(SEQUENTIAL, tmp_path, *settings, moment=moment)
    assert result_of(resumed) == undisturbed(settings)
