"""The smoke config through the real command: a model improves on its own votes, and no label reaches the loop."""

import json
from pathlib import Path

import pytest

from rlsf.replay import ReplayStore
from tests.killing import run_cli

CONFIG = Path(__file__).parent.parent / "configs" / "smoke.yaml"


@pytest.mark.slow
def test_the_lab_model_teaches_itself(tmp_path):
    log = tmp_path / "log"
    assert run_cli(["run", str(CONFIG), "--set", f"output_dir={tmp_path}"], log) == 0, log.read_text()
    run = tmp_path / "smoke"
    summary = json.loads((run / "summary.json").read_text())
    task = summary["tasks"]["sum"]
    assert task["change"]["pass@1"]["low"] > 0
    assert task["change"]["greedy"]["high"] > 0
    assert task["final"]["pass@1"]["value"] > 10 * max(trivial["value"] for trivial in task["trivial"].values())
    assert summary["labels"] == {
        "warm_start_examples": 0,
        "reward_sees_labels": False,
        "validation_labels_choose": False,
    }
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1 + 16
    with ReplayStore.open_read_only(run / "replay") as store:
        assert len(store) == 16 * 64
        for group in store.groups(iteration=1):
            assert group.prompt.reference is None
            assert not group.prompt.grading
