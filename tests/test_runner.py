"""`rlsf run` and `rlsf resume` when something around them is amiss: data, disk, another process, reward, engine."""

import json
import os
import resource
import shutil
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from rlsf.replay import ReplayStore
from rlsf.run_dir import RunDir, read_jsonl
from tests.killing import Moment, run_cli, run_here

ROWS = [{"prompt": f"{a} + {b} =", "reference": str(a + b)} for a in range(10) for b in range(10)]
CONFIG = """
name: run
output_dir: {folder}/runs
model: {{source: lab}}
engine: {{kind: {engine}}}
tasks:
  - name: sums
    source: {{kind: file, path: {folder}/data.jsonl}}
    split: {{validation: 4, test: 4}}
    max_tokens: 4
sampling: {{n: 2}}
reward: {reward}
loop: {{iterations: 3, prompts: 4}}
evaluation: {{every: 2, samples: 2, final_samples: 2}}
preflight: {{canary: 4}}
"""


def write_experiment(folder, *overrides, rows=ROWS, engine="transformers", reward="{kind: majority}"):
    """Writes data and config; returns what starts the run."""
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder, engine=engine, reward=reward))
    return ["run", str(folder / "config.yaml"), *[part for o in overrides for part in ("--set", o)]]


@pytest.fixture
def experiment(tmp_path):
    return partial(write_experiment, tmp_path)


def fails(arguments, log: Path, arm=None) -> str:
    """What rlsf says when it fails as it should: status 2, one error, no traceback."""
    status = run_cli([str(argument) for argument in arguments], log, arm)
    said = log.read_text()
    assert status == 2, f"status {status}:\n{said}"
    assert "Traceback" not in said
    assert said.count("error:") == 1, said
    return " ".join(said.split())


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[{"prompt": row["prompt"]} for row in ROWS], ROWS])
def test_a_label_free_run_needs_no_labels(rows, experiment, tmp_path):
    """On data without references, or with a config that does not look at them, nothing is graded and all else works."""
    overrides = [] if "reference" not in rows[0] else ["tasks.0.source.reference_column=null"]
    log = tmp_path / "log"
    assert run_cli(experiment(*overrides, rows=rows), log) == 0, log.read_text()
    said = " ".join(log.read_text().split())
    assert "its accuracy cannot be measured" in said
    assert "sums: no reference answers, so no accuracy" in said
    run = tmp_path / "runs" / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["tasks"]["sums"]["final"] is None
    assert summary["iterations"] == 3
    assert not list((run / "evaluations").iterdir())
    assert "nothing to grade with" in fails(["eval", run], tmp_path / "eval")


def test_choosing_by_validation_needs_labels(experiment, tmp_path):
    command = experiment("evaluation.select=best", rows=[{"prompt": row["prompt"]} for row in ROWS])
    assert "select: best need reference answers" in fails(command, tmp_path / "log")


def test_a_run_is_not_resumed_on_other_data(killed, killed_once, tmp_path):
    data = killed_once.parent.parent / "data.jsonl"
    content = data.read_text()
    try:
        data.write_text(content + '{"prompt": "11 + 5 =", "reference": "16"}\n')
        assert "the data of task 'sums' is not what" in fails(["resume", killed], tmp_path / "resumed")
    finally:
        data.write_text(content)


# -- starting ----------------------------------------------------------------------------------------------------------


def test_a_run_that_cannot_start_leaves_no_trace(experiment, tmp_path):
    command = experiment("model.lora.target_modules=[nothing]")
    assert "target_modules" in fails(command, tmp_path / "log")
    assert not (tmp_path / "runs" / "run").exists()


def test_overwriting_keeps_the_old_run_until_the_new_one_stands(experiment, tmp_path):
    run = tmp_path / "runs" / "run"
    assert run_cli(experiment("loop.iterations=1"), tmp_path / "log") == 0
    old = (run / "summary.json").read_bytes()
    fails([*experiment("model.lora.target_modules=[nothing]"), "--overwrite"], tmp_path / "failed")
    assert (run / "summary.json").read_bytes() == old
    log = tmp_path / "second"
    assert run_cli([*experiment("loop.iterations=2"), "--overwrite"], log) == 0, log.read_text()
    assert json.loads((run / "summary.json").read_text())["iterations"] == 2
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_the_old_run_is_kept_until_the_new_one_has_a_checkpoint(experiment, tmp_path):
    run, log = tmp_path / "runs" / "run", tmp_path / "log"
    assert run_cli(experiment("loop.iterations=1"), log) == 0, log.read_text()
    old = (run / "summary.json").read_bytes()
    (tmp_path / "own.py").write_text("def reward(completions, **columns):\n    raise KeyError('oops')\n")
    bad = experiment("loop.iterations=2", reward=f"{{kind: function, path: '{tmp_path}/own.py:reward'}}")
    said = fails([*bad, "--overwrite"], tmp_path / "failed")
    assert "The run that was to be replaced is still there" in said
    assert (run.parent / ".run.previous" / "summary.json").read_bytes() == old
    assert run_cli([*experiment("loop.iterations=2"), "--overwrite"], log) == 0, log.read_text()
    assert [path.name for path in run.parent.iterdir()] == ["run"]


@dataclass(frozen=True)
class Meanwhile:
    """Another rlsf process begins in the middle of this one's start."""

    arguments: list[str]
    log: Path

    def arm(self) -> None:
        import rlsf.runner

        original = rlsf.runner.provenance

        def provenance():
            rlsf.runner.provenance = original
            if os.fork() == 0:
                os._exit(run_here(self.arguments, self.log))
            time.sleep(3)
            return original()

        rlsf.runner.provenance = provenance


def test_two_starts_at_once_lose_nothing(experiment, tmp_path):
    """The second one, without --overwrite, finds half a folder and the old run beside it."""
    run, log, other = tmp_path / "runs" / "run", tmp_path / "log", tmp_path / "other"
    assert run_cli(experiment("loop.iterations=1", "seed=1"), log) == 0, log.read_text()
    again = experiment("loop.iterations=2", "seed=2")
    assert run_cli([*again, "--overwrite"], log, Meanwhile(again, other)) == 0, log.read_text()
    assert "holds a run already" in other.read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["seed"], summary["iterations"]) == (2, 2)
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_ctrl_c_before_the_run_stands_points_at_no_other_run(experiment, tmp_path):
    run, log = tmp_path / "runs" / "run", tmp_path / "log"
    assert run_cli(experiment("loop.iterations=1"), log) == 0, log.read_text()
    old = (run / "summary.json").read_bytes()
    again = [*experiment("loop.iterations=2"), "--overwrite"]
    for target in ("rlsf.runner:build_stream", "rlsf.runner:provenance", "rlsf.run:resolve_model"):
        log = tmp_path / target.rpartition(":")[2]
        assert run_cli(again, log, Moment(target, sends=signal.SIGINT)) == 130, log.read_text()
        assert log.read_text().splitlines()[-1] == "interrupted before the run began; nothing was changed"
        assert (run / "summary.json").read_bytes() == old


def test_a_run_in_use_is_not_resumed(killed, tmp_path):
    with RunDir(killed).locked():
        assert "another process is working on" in fails(["resume", killed], tmp_path / "resumed")
    assert run_cli(["resume", str(killed)], tmp_path / "again") == 0


def test_a_reward_that_raises_is_met_before_the_base_model_is_measured(experiment, tmp_path):
    (tmp_path / "own.py").write_text("def reward(completions, **columns):\n    raise KeyError('oops')\n")
    command = experiment(reward=f"{{kind: function, path: '{tmp_path}/own.py:reward'}}")
    assert "KeyError('oops')" in fails(command, tmp_path / "log")
    assert not list((tmp_path / "runs" / "run" / "evaluations").iterdir())


def test_wandb_without_a_login_says_how_to_log_in(experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    said = fails(experiment("tracking.wandb.mode=online"), tmp_path / "log", NoNetrc(str(tmp_path)))
    assert "wandb login" in said
    assert "offline" in said


@dataclass(frozen=True)
class NoNetrc:
    """The child was forked before the environment changed."""

    home: str

    def arm(self) -> None:
        import os

        os.environ["HOME"] = self.home
        os.environ.pop("WANDB_API_KEY", None)


def test_a_run_killed_as_it_starts_can_be_started_again(experiment, tmp_path):
    for target in ("rlsf.runner:provenance", "rlsf.runner:resolved_yaml", "rlsf.run:resolve_model"):
        assert run_cli([*experiment("loop.iterations=1"), "--overwrite"], tmp_path / "log", Moment(target)) == -9
    log = tmp_path / "second"
    assert run_cli([*experiment("loop.iterations=1"), "--overwrite"], log) == 0, log.read_text()


def test_the_old_run_survives_a_kill_of_the_start_that_would_replace_it(experiment, tmp_path):
    run = tmp_path / "runs" / "run"
    assert run_cli(experiment("loop.iterations=1"), tmp_path / "log") == 0
    old = (run / "summary.json").read_bytes()
    killed = [*experiment("loop.iterations=2"), "--overwrite"]
    for _ in range(2):
        assert run_cli(killed, tmp_path / "killed", Moment("rlsf.run:resolve_model")) == -9
    fails([*experiment("model.lora.target_modules=[nothing]"), "--overwrite"], tmp_path / "failed")
    assert (run / "summary.json").read_bytes() == old


# -- resuming ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory):
    """A run with checkpoints of iterations 0 and 1, killed in iteration 2."""
    folder = tmp_path_factory.mktemp("killed")
    assert run_cli(write_experiment(folder), folder / "log", Moment("rlsf.run:Run.deliver", call=2)) == -9
    return folder / "runs" / "run"


@pytest.fixture
def killed(killed_once, tmp_path):
    return shutil.copytree(killed_once, tmp_path / "runs" / "run")


DAMAGE = {
    "latest is gone": (lambda run: (run / "latest").unlink(), "latest is missing: write the name of one that is there"),
    "latest is garbage": (lambda run: (run / "latest").write_bytes(b"\xff\xfe"), "which is not in"),
    "a checkpoint is gone": (lambda run: (run / "latest").write_text("iter_000007\n"), "iter_000000, iter_000001"),
    "no optimizer": (lambda run: _algorithm(run).unlink(), "cannot be restored"),
    "half an optimizer": (
        lambda run: _algorithm(run).write_bytes(_algorithm(run).read_bytes()[:900]),
        "cannot be restored",
    ),
    "an empty optimizer": (lambda run: _algorithm(run).write_bytes(b""), "cannot be restored"),
    "no reference": (
        lambda run: shutil.rmtree(run / "checkpoints/iter_000001/policy/reference"),
        "no reference adapter",
    ),
    "no adapter": (lambda run: shutil.rmtree(run / "checkpoints/iter_000001/policy"), "adapter"),
    "another state": (lambda run: (run / "checkpoints/iter_000001/state.json").write_text("{}"), "is of iteration 0"),
    "an unknown state": (
        lambda run: (run / "checkpoints/iter_000001/state.json").write_text('{"mood": 1}'),
        "cannot be restored",
    ),
    "a state of another type": (
        lambda run: _edit(run / "checkpoints/iter_000001/state.json", policy_version="x"),
        "cannot be restored",
    ),
    "versions are a list": (lambda run: (run / "versions.json").write_text("[]"), "versions.json: it holds no object"),
    "a summary of nothing": (lambda run: (run / "summary.json").write_text("{}"), "is no summary of a run"),
    "TensorBoard's folder is a file": (
        lambda run: (shutil.rmtree(run / "tensorboard"), (run / "tensorboard").write_text("")),
        "cannot write",
    ),
    "latest is a folder": (
        lambda run: ((run / "latest").unlink(), (run / "latest").mkdir()),
        "latest is missing",
    ),
    "no base evaluation": (lambda run: (run / "evaluations/test_base_sums.json").unlink(), "test_base_sums.json"),
}


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _algorithm(run):
    return run / "checkpoints/iter_000001/algorithm/algorithm.pt"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_says_what_is_wrong_and_loses_nothing(damage, killed, tmp_path):
    hurt, expected = DAMAGE[damage]
    hurt(killed)
    kept = [killed / "metrics.jsonl", *killed.glob("checkpoints/*/policy/*/*"), *killed.glob("samples/*")]
    before = {path: path.read_bytes() for path in kept}
    with ReplayStore.open_read_only(killed / "replay") as store:
        digest = store.digest()
    assert expected in fails(["resume", killed], tmp_path / "resumed")
    assert all(path.read_bytes() == content for path, content in before.items())
    with ReplayStore.open_read_only(killed / "replay") as store:
        assert store.digest() == digest


def test_lines_that_are_gone_are_missed(killed, tmp_path):
    (killed / "metrics.jsonl").unlink()
    log = tmp_path / "resumed"
    assert run_cli(["resume", str(killed)], log) == 0, log.read_text()
    assert "metrics.jsonl has 0 lines, and the run has written 2" in log.read_text()


def test_a_reward_that_was_edited_in_the_meantime_is_pointed_out(experiment, tmp_path):
    reward = tmp_path / "mine.py"
    reward.write_text("def short(completions, **columns):\n    return [-float(len(str(c))) for c in completions]\n")
    command = experiment(reward=f"{{kind: function, path: '{reward}:short'}}")
    log, run = tmp_path / "log", tmp_path / "runs" / "run"
    assert run_cli(command, log, Moment("rlsf.run:Run.deliver", call=2)) == -9, log.read_text()
    reward.write_text(reward.read_text().replace("-float", "float"))
    assert run_cli(["resume", str(run)], log) == 0, log.read_text()
    assert f"the reward {reward}:short has changed since the run began" in log.read_text()


def test_a_reward_that_changes_what_the_process_shares_does_no_harm(experiment, tmp_path, monkeypatch):
    """Reward models switch gradients off, and scripts change the working directory."""
    (tmp_path / "rude.py").write_text(
        "import os, torch\n\n\ndef rude(completions, **columns):\n    torch.set_grad_enabled(False)\n"
        "    os.chdir('/')\n    return [float(len(str(c))) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    log, command = tmp_path / "log", experiment("output_dir=here", reward="{kind: function, path: 'rude.py:rude'}")
    assert run_cli(command, log) == 0, log.read_text()
    summary = json.loads((tmp_path / "here" / "run" / "summary.json").read_text())
    assert summary["optimizer_steps"] > 0


def test_a_reward_in_a_module_that_is_not_there(experiment, tmp_path):
    command = experiment(reward="{kind: function, path: 'os.no_such_module:f'}")
    assert "os.no_such_module cannot be imported" in fails(command, tmp_path / "log")


def test_a_file_that_is_sought_in_the_wrong_folder(experiment, tmp_path, monkeypatch):
    """Relative paths in a run's config start wherever it is resumed."""
    monkeypatch.chdir(tmp_path)
    command = experiment("tasks.0.source.path=data.jsonl")
    log = tmp_path / "log"
    assert run_cli(command, log, Moment("rlsf.run:Run.deliver", call=1)) == -9, log.read_text()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    said = fails(["resume", tmp_path / "runs" / "run"], tmp_path / "failed")
    assert f"there is no such file (relative paths start at {elsewhere})" in said


def test_a_stray_copy_among_the_checkpoints_does_no_harm(killed, tmp_path):
    copies = [killed / "checkpoints" / name for name in ("iter_backup", "iter_000001_keep")]
    for copy in copies:
        shutil.copytree(killed / "checkpoints/iter_000001", copy)
    log = tmp_path / "resumed"
    assert run_cli(["resume", str(killed)], log) == 0, log.read_text()
    assert all((copy / "state.json").exists() for copy in copies)


def test_a_run_is_resumed_with_the_config_it_began_with(killed, tmp_path):
    config = killed / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("max_tokens: 4", "max_tokens: 5").replace("soft: false", "soft: true"))
    said = fails(["resume", killed], tmp_path / "changed")
    assert "tasks.0.max_tokens, reward.soft changed since the run began" in said
    config.write_text(text.replace("patience: null", "patience: 3").replace("\n  samples: 2\n", "\n  samples: 3\n"))
    said = fails(["resume", killed], tmp_path / "scores that cannot be compared")
    assert "evaluation.samples changed since the run began" in said
    config.write_text(text.replace("keep_checkpoints: 2", "keep_checkpoints: 5"))
    versions = killed / "versions.json"
    began = json.loads(versions.read_text())
    del began["config"]["delivery"], began["config"]["sampling"]["top_p"]  # as an older rlsf left it
    versions.write_text(json.dumps(began))
    log = tmp_path / "resumed"
    assert run_cli(["resume", str(killed)], log) == 0, log.read_text()


def test_the_warm_start_may_change_before_the_first_checkpoint(experiment, tmp_path):
    """What diverged there is told to lower the rate and resume."""
    log, run = tmp_path / "log", tmp_path / "runs" / "run"
    command = experiment("warm_start={examples: 4, steps: 2, learning_rate: 0.5}")
    assert run_cli(command, log, Moment("rlsf.run:Run.deliver")) == -9, log.read_text()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("learning_rate: 0.5", "learning_rate: 0.001"))
    assert run_cli(["resume", str(run)], log) == 0, log.read_text()
    config.write_text(config.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002"))
    (run / "summary.json").unlink()
    assert "warm_start.learning_rate changed since" in fails(["resume", run], tmp_path / "later")


def test_the_learning_rate_may_change_on_resume(killed, tmp_path):
    config, log = killed / "config.yaml", tmp_path / "resumed"
    config.write_text(config.read_text().replace("learning_rate: 0.0001", "learning_rate: 0.0025"))
    assert run_cli(["resume", str(killed)], log) == 0, log.read_text()
    rates = {row["iteration"]: row.get("train/learning_rate") for row in read_jsonl(killed / "metrics.jsonl")}
    assert rates[1] in (None, 0.0001)
    assert {rates[2], rates[3]} - {None} == {0.0025}


def test_a_run_without_one_step_says_so(experiment, tmp_path):
    (tmp_path / "own.py").write_text("def reward(completions, **columns):\n    return [1.0] * len(completions)\n")
    log = tmp_path / "log"
    command = experiment("loop.iterations=1", reward=f"{{kind: function, path: '{tmp_path}/own.py:reward'}}")
    assert run_cli(command, log) == 0, log.read_text()
    assert "not one optimizer step was taken" in " ".join(log.read_text().split())


def test_a_warm_start_that_teaches_answers_too_long_is_refused(experiment, tmp_path):
    warm = "warm_start={examples: 4, answer_template: 'The answer is {reference}'}"
    assert "max_tokens cuts off after 4" in fails(experiment(warm), tmp_path / "log")


def test_the_last_planned_iteration_is_no_early_stop(experiment, tmp_path):
    command = experiment("evaluation.patience=1", "evaluation.every=3", "algorithm.learning_rate=0")
    assert run_cli(command, tmp_path / "log") == 0
    assert json.loads((tmp_path / "runs/run/summary.json").read_text())["stop_reason"] is None


# -- the disk ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SmallDisk:
    """No file may grow beyond `limit` bytes: the nearest that a test comes to a full disk."""

    limit: int

    def arm(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))


@pytest.mark.parametrize("limit", [2_000, 40_000, 120_000, 400_000])
def test_a_full_disk_is_one_clear_message(limit, experiment, tmp_path):
    """Met by the store, the adapter, the optimizer's state: wherever, the run says which file and how to go on."""
    (tmp_path / "log").touch()
    said = fails(experiment("algorithm.kl_coef=0.1"), tmp_path / "log", SmallDisk(limit))
    assert "cannot write" in said or "disk is full" in said


def test_a_run_in_half_precision(experiment, tmp_path):
    """The delivery check asks the engine for its precision: nothing in between may hide it."""
    log = tmp_path / "log"
    assert run_cli(experiment("model.dtype=bfloat16", "loop.iterations=1"), log) == 0, log.read_text()
    assert "bfloat16" in log.read_text()


# -- the engine --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sabotage:
    """Breaks the second delivery of a run: the engine believes that all is well."""

    engine: str
    how: str

    def arm(self) -> None:
        import importlib

        from safetensors.torch import load_file, save_file

        module, _, name = self.engine.partition(":")
        owner = getattr(importlib.import_module(module), name)
        original, calls = owner.sync, []

        def sync(engine, folder, version):
            calls.append(version)
            if len(calls) == 1:
                shutil.copytree(folder, Path(folder).parent.parent / "first")
            elif self.how == "late":
                folder = Path(folder).parent.parent / "first"
            elif self.how == "altered":
                file = Path(folder) / "adapter_model.safetensors"
                aside = Path(folder).parent.parent / "altered"
                shutil.copytree(folder, aside)
                tensors = load_file(file)
                save_file({key: 1.01 * tensor for key, tensor in tensors.items()}, aside / file.name)
                folder = aside
            elif self.how == "dropped":
                return
            original(engine, folder, version)

        owner.sync = sync


ENGINES = {
    "transformers": ("rollouts.transformers_engine:TransformersEngine", "{kind: transformers}"),
    "vllm-merge": ("rollouts.vllm_engine:VllmEngine", "{kind: vllm, sync: merge, max_model_len: 64}"),
    "vllm-adapter": ("rollouts.vllm_engine:VllmEngine", "{kind: vllm, sync: adapter, max_model_len: 64}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["dropped", "altered", "late"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_delivery_that_went_wrong_stops_the_run(engine, how, experiment, tmp_path):
    patched, section = ENGINES[engine]
    if engine.startswith("vllm"):
        pytest.importorskip("vllm")
    command = experiment(f"engine={section}", "algorithm.learning_rate=0.01", reward="{kind: self_certainty}")
    said = fails(command, tmp_path / "log", Sabotage(patched, how))
    assert ("the sync was dropped" if how == "dropped" else "loaded other weights") in said
    metrics = (tmp_path / "runs" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["iteration"] for row in metrics] == [0, 1], "it went on after the broken delivery"
