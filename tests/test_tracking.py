"""wandb (offline) and TensorBoard through the real command: every figure arrives, and a resumed run goes on as one."""

import json
import struct
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from rlsf.errors import RunDirError
from rlsf.tracking.base import Tracker
from rlsf.tracking.tensorboard import TensorBoardBackend
from tests.killing import Moment, run_cli

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parent.parent / "examples" / "my_reward.py"
CONFIG = f"""
name: tracked
model: {{source: lab}}
engine: {{kind: transformers}}
tasks:
  - name: sums
    source: {{kind: reasoning_gym, dataset: chain_sum, params: {{min_terms: 2, max_terms: 2}}, size: 100}}
    split: {{validation: 4, test: 4}}
    max_tokens: 6
sampling: {{n: 4}}
reward: {{kind: function, path: "{EXAMPLE}:short_and_even"}}
loop: {{iterations: 3, prompts: 4}}
evaluation: {{samples: 2, final_samples: 2}}
preflight: {{canary: 4}}
tracking: {{wandb: {{mode: offline, project: rlsf-tests, tags: [one], rollout_rows: 8}}}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was killed in its second iteration and resumed."""
    folder = tmp_path_factory.mktemp("tracking")
    config, log = folder / "config.yaml", folder / "log"
    config.write_text(CONFIG + f"output_dir: {folder}\n")
    assert run_cli(["run", str(config)], log, Moment("rlsf.run:Run.deliver", call=2)) == -9
    assert run_cli(["resume", str(folder / "tracked")], log) == 0, log.read_text()
    return folder / "tracked"


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def wandb_records(run):
    """Of all sittings, in order."""
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        for data in leveldb_log(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            yield record


def leveldb_log(content):
    """Records of a .wandb file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    assert content[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:  # the rest of the block is padding
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_tensorboard_holds_every_metric_of_every_iteration(run):
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    for name in rows_of(run)[-1]:
        if name in {"iteration", "task", "policy_version"}:
            continue
        expected = {row["iteration"]: row[name] for row in rows_of(run) if name in row}
        assert {event.step: event.value for event in events.Scalars(name)} == pytest.approx(expected, rel=1e-5)
    assert [event.step for event in events.Scalars("tokens_per_second")] == [1, 2, 3]
    assert "rollouts/text_summary" in events.Tags()["tensors"]


def test_tensorboard_on_a_full_disk_is_one_message(tmp_path, capfd):
    backend = TensorBoardBackend(tmp_path, purge_after=0)
    backend.log(1, {"figure": 1.0})
    (events,) = tmp_path.iterdir()
    events.unlink()
    events.mkdir()  # what is appended to it raises an OSError, as a full disk would
    with pytest.raises(RunDirError, match=r"cannot write .*rlsf resume"):
        backend.log(2, {"figure": 2.0})
    assert "Traceback" not in capfd.readouterr().err


def test_one_tracker_that_fails_leaves_none_open():
    class Backend:
        def __init__(self, error=None):
            self.error, self.finished = error, 0

        def finish(self, summary):
            self.finished += 1
            if self.error is not None:
                raise self.error

    broken, sound = Backend(RunDirError("full")), Backend()
    tracker = Tracker([broken, sound])
    with pytest.raises(RunDirError, match="full"):
        tracker.finish()
    tracker.finish()
    assert (broken.finished, sound.finished) == (1, 1)


def test_wandb_holds_them_too_as_one_run(run):
    ids, history, keys = set(), {}, set()
    for record in wandb_records(run):
        if record.HasField("run"):
            ids.add(record.run.run_id)
            assert record.run.project == "rlsf-tests"
            assert list(record.run.tags) == ["one"]
        if record.HasField("history"):
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            keys |= set(items)
            history.setdefault(items.get("iteration"), {}).update(items)
    assert len(ids) == 1, "the resumed run became another one"
    for row in rows_of(run):
        for name in {"reward/mean", "train/loss", "delivery/largest_difference", "validation/sums/pass@1"} & set(row):
            assert history[row["iteration"]][name] == pytest.approx(row[name])
    assert {row["iteration"] for row in rows_of(run)} == {0, 1, 2, 3}
    assert any(key.startswith("rollouts") for key in keys)


def test_wandb_keeps_rollouts_as_increments(run):
    tables = [json.loads(path.read_text()) for path in run.glob("wandb/offline-run-*/files/media/table/*.json")]
    iterations = sorted(row[table["columns"].index("iteration")] for table in tables for row in table["data"])
    assert set(iterations) == {1, 2, 3}
    assert all(len({row[0] for row in table["data"]}) == 1 for table in tables), "a table repeats earlier rows"
    assert len(iterations) == 3 * 8


def test_the_distance_to_the_reference_is_measured_though_nothing_is_penalised(run):
    """GRPO's kl_coef is 0 here, so that only the metrics ask for the reference."""
    rows = {row["iteration"]: row for row in rows_of(run)}
    assert rows[1]["rollout/kl"] == pytest.approx(0, abs=1e-6)  # the first rollouts come from the reference itself
    assert rows[3]["rollout/kl"] > 1e-6
    assert 0 < rows[3]["rollout/entropy"] < 5


def test_the_example_reward_scored_the_rollouts(run):
    for line in (run / "samples" / "iter_000002.jsonl").read_text().splitlines():
        row = json.loads(line)
        text = row["completion"].strip()
        expected = float(text.isdecimal() and int(text) % 2 == 0) - 0.01 * len(row["completion"])
        assert row["reward"] == pytest.approx(expected)
