"""A run killed at any moment and resumed ends exactly as the run that was left alone."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlsf.replay import ReplayStore
from rlsf.run_dir import read_jsonl
from tests.killing import Moment, run_cli

CONFIG = Path(__file__).parent / "resume.yaml"

MOMENTS = {
    "warm start": Moment("rlsf.algorithms.sft:WarmStart.run", after=True),
    "first checkpoint": Moment("rlsf.policy:Policy.save"),
    "generation": Moment("rollouts.transformers_engine:TransformersEngine.generate", call=8),
    "scoring": Moment("rlsf.loop:score_rollouts", call=2),
    "buffer write": Moment("rlsf.replay.store:insert", call=11),
    "after the buffer write": Moment("rlsf.replay:ReplayStore.add", call=2, after=True),
    "training": Moment("torch.optim:AdamW.step", call=7),
    "sync": Moment("rollouts.transformers_engine:TransformersEngine.sync", call=3),
    "evaluation": Moment("rlsf.run:evaluate", call=4),
    "metrics": Moment("rlsf.run:Run.record", call=2, after=True),
    "checkpoint write": Moment("rlsf.policy:Policy.save", call=3, after=True),
    "between checkpoint and latest": Moment("rlsf.run_dir:RunDir._point_latest_at", call=3),
    "pruning the journal": Moment("rlsf.replay:ReplayStore.prune_journal", call=3),
    "between iterations": Moment("rlsf.run:Run.finish_iteration", call=3, after=True),
    "final evaluation": Moment("rlsf.run:Run.select_final_adapter", after=True),
}


OTHERS = {
    "grpo": ["--set", "algorithm={kind: grpo, learning_rate: 1.0e-3, kl_coef: 0.05, minibatches: 2}"],
    "dpo": ["--set", "algorithm={kind: dpo, learning_rate: 1.0e-3, pairs: all, minibatches: 2}"],
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return _run(tmp_path_factory.mktemp("undisturbed"), None)


def _run(folder: Path, moment: Moment | None, overrides: Sequence[str] = ()) -> Path:
    folder.mkdir(exist_ok=True)
    log = folder / "log.txt"
    status = run_cli(["run", str(CONFIG), "--set", f"output_dir={folder}", *overrides], log, moment)
    if moment is not None:
        assert status == -9, f"{moment} was never reached:\n{log.read_text()}"
        status = run_cli(["resume", str(folder / "resume")], log)
    assert status == 0, log.read_text()
    return folder / "resume"


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda name: name.replace(" ", "-"))
def test_killed_and_resumed_is_the_same_bit_for_bit(moment, undisturbed, tmp_path):
    resumed = _run(tmp_path, MOMENTS[moment])
    assert _result(resumed) == _result(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", OTHERS)
def test_the_other_algorithms_resume_too(algorithm, tmp_path):
    left_alone = _run(tmp_path / "alone", None, OTHERS[algorithm])
    resumed = _run(tmp_path / "killed", Moment("torch.optim:AdamW.step", call=8), OTHERS[algorithm])
    assert _result(resumed) == _result(left_alone)


def _result(run: Path) -> dict:
    checkpoint = run / "checkpoints" / (run / "latest").read_text().strip()
    with ReplayStore.open_read_only(run / "replay") as store:
        digest = store.digest()
    summary = json.loads((run / "summary.json").read_text())
    return {
        "policy": {
            path.relative_to(checkpoint).as_posix(): path.read_bytes() for path in checkpoint.rglob("*.safetensors")
        },
        "replay": digest,
        "metrics": list(read_jsonl(run / "metrics.jsonl")),
        "samples": {path.name: path.read_bytes() for path in (run / "samples").iterdir()},
        "evaluations": {path.name: path.read_bytes() for path in (run / "evaluations").iterdir()},
        "tasks": summary["tasks"],
        "tokens": summary["tokens"],
    }
