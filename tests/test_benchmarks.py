"""The arithmetic of the benchmarks, on cells made by hand, and the settings that their results belong to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cells, collapse, continual, replay, rewordings, self_feedback, signals
from benchmarks.cells import Cell, check_settings, curve_of, mean_interval
from rlsf.config.load import load_config
from rlsf.replay import ReplayReader


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": 0.0, "high": 1.0, "n": 8}


def result(curve: list[float] = [], *, final: int = 0, **stages: float) -> dict[str, Any]:  # noqa: B006
    """A cell with pass@1 at each stage, a loop that began where the warm start ended, and a held-out curve."""
    measured = {stage: {"pass@1": estimate(value)} for stage, value in stages.items()}
    return {
        "summary": {"tasks": {"sum": {**measured, "change": {"from": "warm_start"}}}, "adapter_iteration": final},
        "curve": [{"iteration": i, "validation/sum/pass@1": value} for i, value in enumerate(curve)],
    }


def test_the_interval_of_a_ratio_is_fiellers() -> None:
    assert self_feedback.ratio_interval([0.3], [0.2]) == (pytest.approx(1.5), None, None)  # one seed shows no spread
    ratio, low, high = self_feedback.ratio_interval([0.1, 0.12, 0.11], [0.2, 0.24, 0.22])
    assert (ratio, low, high) == pytest.approx((0.5, 0.5, 0.5))  # always the half
    assert self_feedback.ratio_interval([0.1, 0.2], [0.1, -0.05])[1:] == (None, None)
    rng = np.random.default_rng(0)
    pairs = 0.1 + 0.01 * rng.normal(size=(1000, 2, 5))
    intervals = [self_feedback.ratio_interval(x, y)[1:] for x, y in pairs]
    covered = [low is not None and high is not None and low <= 1 <= high for low, high in intervals]
    assert 0.93 < np.mean(covered) < 0.97


def test_the_interval_of_a_mean_is_students() -> None:
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2, 2 - 2.484, 2 + 2.484), abs=1e-3)
    assert mean_interval([1.0]) == (1, None, None)


def test_a_gain_is_measured_from_where_the_loop_began() -> None:
    run = result(base=0.1, warm_start=0.3)
    run["summary"]["tasks"]["sum"]["final"] = {"pass@1": estimate(0.45)}
    assert self_feedback._gain(run, "majority", "pass@1") == pytest.approx(0.15)
    assert self_feedback._gain(run, "sft", "pass@1") == pytest.approx(0.2)  # what the labels gave, and no loop


def test_a_fall_is_measured_from_where_the_others_peaked() -> None:
    rise_and_fall = dict(enumerate([0.4, 0.5, 0.5, 0.5, 0.3, 0.2]))
    assert collapse.peak(rise_and_fall) == pytest.approx(0.5)
    assert collapse.peak(dict(enumerate([0.4, 0.2, 0.1, 0.0]))) == 0.4  # what only falls is highest at its start
    assert collapse.fair_peaks({0: rise_and_fall}) == {0: pytest.approx(0.5)}
    late = dict(enumerate([0.4, 0.4, 0.4, 0.6, 0.6, 0.6]))
    fair = collapse.fair_peaks({0: rise_and_fall, 1: late})
    assert fair == {0: pytest.approx((0.5 + 0.3 + 0.2) / 3), 1: pytest.approx((0.4 + 0.4 + 0.6) / 3)}
    rng = np.random.default_rng(0)
    flat = [dict(enumerate(0.5 + 0.02 * rng.normal(size=40))) for _ in range(400)]
    falls = [collapse.fair_peaks(dict(enumerate(flat[i : i + 5])))[0] - flat[i][39] for i in range(0, 400, 5)]
    assert abs(np.mean(falls)) < 0.007  # noise alone is no fall


def test_the_end_is_that_of_the_adapter_that_was_kept() -> None:
    assert collapse.end(result([0.4, 0.6, 0.1], final=1)) == 0.6
    assert curve_of(result([0.4]), "validation/sum/pass@1") == {0: 0.4}
    assert curve_of(result([0.4]), "reward/mean") == {}


def test_what_was_lost_when_the_canary_first_reported() -> None:
    run = result([0.4, 0.5, 0.5, 0.5, 0.2, 0.2, 0.2])
    run["summary"]["guard"] = []
    assert collapse.lost_when_noticed(run) is None
    other = {"iteration": 4, "reason": "rollout/entropy is 0.1 (mean of 3), below 0.2"}
    canary = {"iteration": 5, "reason": "0.2 of the canary's answers agree with references (mean of 3), down from 0.5"}
    run["summary"]["guard"] = [other, canary]
    assert collapse.lost_when_noticed(run) == pytest.approx(1 - 0.3 / 0.5)


def test_a_result_of_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    cell = Cell("b", "c", cells.CONFIGS / "lab.yaml", ("seed=3",))
    cell.path.parent.mkdir()
    config = load_config(cell.config, (*cell.overrides, "output_dir=elsewhere", "name=other"))
    cell.path.write_text(json.dumps({"summary": {"config": config.model_dump(mode="json")}}))
    check_settings(cell)
    with pytest.raises(SystemExit, match=r"measured with other settings \(loop\)"):
        check_settings(Cell("b", "c", cell.config, ("seed=3", "loop.prompts=8")))
    earlier = config.model_dump(mode="json")
    del earlier["evaluation"]["matrix"], earlier["stream"]["until"]
    cell.path.write_text(json.dumps({"summary": {"config": earlier}}))  # of a day before there were these settings
    check_settings(cell)


def test_signals_of_other_rollouts_or_settings_are_not_shown_beside_each_other() -> None:
    def measured(name: str, rollouts: str = "a", **changes: Any) -> dict[str, Any]:
        config = signals.signals()[name].model_dump(mode="json") | changes
        return {"config": config, "rollouts": rollouts, "report": {"task": "sums", "name": name}}

    signals._check_comparable([measured("majority"), measured("judge")])
    with pytest.raises(SystemExit, match="different rollouts"):
        signals._check_comparable([measured("majority"), measured("judge", "b")])
    with pytest.raises(SystemExit, match="judge was measured with other settings"):
        signals._check_comparable([measured("majority"), measured("judge", chat=None)])


def test_the_measured_signals_are_those_of_now() -> None:
    cells = [json.loads(path.read_text("utf-8")) for path in sorted(signals.CELLS.glob("*.json"))]
    signals._check_comparable(cells)
    assert len(cells) >= 3 * 10


def test_every_cell_has_a_valid_config() -> None:
    wanted = [
        *self_feedback.lab_cells(list(self_feedback.TASKS), [*self_feedback.REWARDS, "sft"], [0]),
        *self_feedback.smollm2_cells([*self_feedback.REWARDS, *self_feedback.JUDGED], [0]),
        *collapse.cells(list(collapse.SIGNALS), list(collapse.GUARDS), [0]),
        *(
            continual.cell_of("majority", order, method, 1)
            for order in continual.ORDERS
            for method in continual.METHODS
        ),
        *(continual.smollm2_cell(method, 1) for method in continual.SMOLLM2),
    ]
    for cell in wanted:
        load_config(cell.config, cell.overrides)


def test_the_rewordings_ask_four_things_about_the_same_pairs(tmp_path: Path) -> None:
    rewordings.write_tasks(tmp_path)
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in rewordings.QUESTIONS
    }
    assert {len({row["prompt"] for row in found}) for found in rows.values()} == {rewordings.PAIRS}
    for row in zip(*rows.values(), strict=True):
        a, b = (int(word) for word in row[0]["prompt"].split() if word.isdecimal())
        assert [part["reference"] for part in row] == [str(a + b), str(max(a, b)), str(a)[::-1], str(b)]


def test_methods_are_compared_with_joint_training_of_the_same_seed() -> None:
    def summary(accuracy: float, transfer: float | None) -> dict[str, Any]:
        values = {"ACC": accuracy, "BWT": transfer, "FWT": None, "forgetting": None}
        metrics = {name: None if value is None else estimate(value) for name, value in values.items()}
        return {"continual": {"metrics": metrics}, "tokens": {"generate": 2000}}

    joint = {1: summary(0.8, None), 2: summary(0.5, None)}
    found = continual._figures({1: summary(0.8, -0.1), 2: summary(0.4, -0.3), 3: summary(0.9, -0.2)}, joint)
    assert found["share of joint ACC"].value == pytest.approx((1.0 + 0.8) / 2)
    assert found["share of joint ACC"].seeds == (1, 2)
    assert found["BWT"].value == pytest.approx(-0.2) and found["BWT"].n == 3
    assert "FWT" not in found
    assert found[continual.COST].value == 2.0


def test_the_replay_benchmark_measures_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "DRAWN", 64)
    filled = replay.child("fill", "rlsf", 200, tmp_path)
    used = replay.child("use", "rlsf", 200, tmp_path)
    assert 0 < filled["insert"] < 1
    assert filled["disk"] > 200 * 1000  # a group of this size takes kilobytes, and all were written
    with ReplayReader.open_read_only(tmp_path / "rlsf") as reader:
        assert reader.stats().groups == 200
        assert reader.stats().seen == 220  # a tenth more, into the full store
        assert reader.stats().drawn == 6 * 64
    rows = {row.name: row.value for row in replay.rows_of({200: {"rlsf": filled | used}})}
    assert rows["rlsf, 200 groups: draw of 256, with payload"] == pytest.approx(used["draw"] * 1000)
