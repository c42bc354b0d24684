"""The guard's decisions, on figures made by hand; and what a run does about them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from rlsf.config.guard import CanaryConfig, GuardConfig, WatchConfig
from rlsf.guard import Guard, GuardState, Halves, Verdict, relative_bound
from rlsf.run_dir import OWN, read_jsonl
from tests.killing import run_cli
from tests.lab_run import metrics_of, run_lab


def begun(config: GuardConfig) -> Guard:
    guard = Guard(config, GuardState())
    guard.begin("t", 0)
    return guard


def watching(**settings: Any) -> Guard:
    return begun(GuardConfig(watch=(WatchConfig(**settings),)))


def feed(guard: Guard, values: Sequence[float], metric: str = "m") -> dict[int, list[Verdict]]:
    """Verdicts by iteration, those without any left out."""
    found = {i: guard.observe(i, {metric: value}) for i, value in enumerate(values, start=1)}
    return {i: verdicts for i, verdicts in found.items() if verdicts}


def test_a_watch_compares_the_mean_of_its_window_and_reports_once_until_it_recovers() -> None:
    guard = watching(metric="m", above=1.0, window=2)
    found = feed(guard, [0, 3, 3, 3, 0, 0, 3, 3])  # means: -, 1.5, 3, 3, 1.5, 0, 1.5, 3
    assert list(found) == [2, 7]
    assert found[2][0].reason == "m is 1.5 (mean of 2), above 1"


def test_a_watch_below_relative_to_its_start() -> None:
    guard = watching(metric="m", below=0.5, relative=True, window=2)
    found = feed(guard, [4, 2, 2, 1.1, 1.1])  # start 3, bound 1.5; means: 3, 2, 1.55, 1.1
    assert list(found) == [5]
    assert "0.5 times its start, 1.5" in found[5][0].reason


def test_a_metric_that_is_not_there_is_no_trouble() -> None:
    assert feed(watching(metric="m", above=0.0, window=1), [5, 5], metric="other") == {}


def test_without_a_canary_the_way_back_leads_before_the_last_sound_window() -> None:
    guard = watching(metric="m", above=1.0, window=2, then=("roll_back",))
    found = feed(guard, [0, 0, 0, 0, 1.5, 5])  # iteration 5 shows adapter 4: its mean, 0.75, is still within bounds
    assert found[6][0].to_iteration == 3  # the window of iterations 4 and 5 looked at adapters 3 and 4


def test_a_ruined_adapter_never_becomes_the_one_to_go_back_to() -> None:
    guard = watching(metric="m", above=1.0, window=3, then=("roll_back",))
    found = feed(guard, [0, 0, 0, 5, 5, 5, 5, 5, 5, 5, 5, 5])
    assert {verdict.to_iteration for verdicts in found.values() for verdict in verdicts} == {0}


def test_an_adapter_that_nobody_looked_at_is_not_gone_back_to() -> None:
    guard = watching(metric="validation/t/pass@1", below=0.3, window=1, then=("roll_back",))
    measured = {5: 0.45, 10: 0.1, 15: 0.1}
    found = {i: guard.observe(i, {"validation/t/pass@1": measured[i]} if i in measured else {}) for i in range(1, 16)}
    # Validation of an iteration is of its own adapter. After going back, nothing is sound until it is measured again.
    assert {i: v[0].to_iteration for i, v in found.items() if v} == {10: 5, 15: 5}


def test_until_validation_has_been_sound_the_way_back_leads_to_the_beginning() -> None:
    watches = (
        WatchConfig(metric="rollout/kl", above=1.0, window=1, then=("roll_back",)),
        WatchConfig(metric="validation/t/pass@1", below=0.3, window=1, then=("roll_back",)),
    )
    guard = begun(GuardConfig(watch=watches))
    for i in range(1, 5):
        guard.observe(i, {"rollout/kl": 0.0})
    assert guard.state.best_iteration == 0  # the divergence is fine: whether the answers are, nobody knows
    assert guard.observe(5, {"rollout/kl": 0.0, "validation/t/pass@1": 0.1})[0].to_iteration == 0


def test_the_rarest_measurement_decides_how_far_back_it_goes() -> None:
    watches = (
        WatchConfig(metric="often", above=1.0, window=2, then=("roll_back",)),
        WatchConfig(metric="rarely", above=1.0, window=2, then=("roll_back",)),
    )
    guard = begun(GuardConfig(watch=watches))
    for i in range(1, 10):
        guard.observe(i, {"often": 0.0} | ({"rarely": 0.0} if i in (3, 6, 9) else {}))
    assert guard.state.best_iteration == 5  # iterations 6 and 9 looked at adapters 5 and 8
    assert guard.state.may_go_back_to() == {5, 7, 8}
    assert guard.observe(10, {"often": 9.0})[0].to_iteration == 5


def test_watches_of_one_metric_do_not_share_their_windows() -> None:
    watches = (
        WatchConfig(metric="m", above=1.0, window=1),
        WatchConfig(metric="m", above=1.0, window=3, then=("stop",)),
    )
    guard = begun(GuardConfig(watch=watches))
    found = feed(guard, [2, 2, 2])
    assert [v.actions for v in found[1]] == [("warn",)] and [v.actions for v in found[3]] == [("stop",)]


def test_other_settings_begin_anew() -> None:
    guard = watching(metric="m", above=1.0)
    assert guard.follows("t") and not guard.follows("other")
    assert not Guard(GuardConfig(), guard.state).follows("t")


def test_a_canary_with_nothing_to_say_leaves_the_decision_to_the_watches() -> None:
    config = GuardConfig(
        canary=CanaryConfig(truth="votes"), watch=(WatchConfig(metric="m", above=1.0, window=1, then=("roll_back",)),)
    )
    guard = begun(config)
    assert feed(guard, [0, 0, 0, 5])[4][0].to_iteration == 2 and not guard.has_canary


def canary(**settings: Any) -> Guard:
    config = CanaryConfig(**{"window": 1, "max_drop": 0.1, **settings})
    return begun(GuardConfig(canary=config, watch=(), max_rollbacks=1))


RIGHT = np.tile([0.4, 0.6, 0.5, 0.5], 8)


def both(shares: np.ndarray) -> Halves:
    """Both halves of a measurement alike."""
    return tuple(shares.tolist()), tuple(shares.tolist())


def test_the_canary_follows_the_best_and_tells_a_fall_from_chance() -> None:
    guard = canary()
    guard.take_baseline(both(RIGHT))
    assert guard.state.best_iteration == 0
    assert guard.observe(1, {}, both(RIGHT + 0.1)) == []
    assert guard.state.best_iteration == 1
    assert guard.observe(2, {}, both(RIGHT + 0.05)) == []  # 8% lower: within max_drop
    one_prompt = RIGHT + 0.1
    one_prompt[0] -= 0.5 * 8  # 13% lower on average, but on a single prompt: chance
    assert guard.observe(3, {}, both(one_prompt)) == []
    [verdict] = guard.observe(4, {}, both(RIGHT - 0.1))
    assert verdict.actions == ("lower_rate", "roll_back") and verdict.to_iteration == 1
    assert "0.400" in verdict.reason and "0.600 at their best" in verdict.reason


def test_the_baseline_stands_for_a_whole_window() -> None:
    guard = canary(window=3)
    guard.take_baseline(both(RIGHT))
    assert guard.observe(1, {}, both(RIGHT + 0.3)) == []
    assert np.mean(guard.state.best) == pytest.approx(0.6)  # (0.5 + 0.5 + 0.8) / 3


def steady(guard: Guard, *, samples: int, seed: int, fall: float = 0.0) -> int | None:
    """The first iteration of 40 in which a canary is in trouble whose policy falls by that share from iteration 10 to
    30, measured on draws of which each moves on from the one before."""
    rng = np.random.default_rng(seed)
    right = rng.beta(1, 1.4, size=(32, 1))
    noise = rng.normal(size=(32, samples))

    def measure(iteration: int) -> Halves:
        noise[:] = 0.8 * noise + 0.6 * rng.normal(size=noise.shape)
        lost = fall * np.clip((iteration - 10) / 20, 0, 1)
        rights = norm.cdf(noise) < right * (1 - lost)
        return tuple(rights[:, ::2].mean(axis=1).tolist()), tuple(rights[:, 1::2].mean(axis=1).tolist())

    guard.begin("t", 0, iterations=40)
    guard.take_baseline(measure(0))
    return next((i for i in range(1, 41) if guard.observe(i, {}, measure(i))), None)


def test_a_policy_that_stays_as_it_was_is_left_alone_and_one_that_falls_is_not() -> None:
    alarms = [steady(canary(window=3, max_drop=0.05), samples=8, seed=seed) for seed in range(100)]
    assert sum(alarm is not None for alarm in alarms) <= 15  # at most 10 are to be expected
    falls = [steady(canary(window=3, max_drop=0.05), samples=16, seed=seed, fall=0.5) for seed in range(20)]
    assert all(found is not None and found > 10 for found in falls)


@pytest.mark.parametrize(("false_alarms", "reported"), [(0.05, False), (0.2, True)])
def test_the_more_false_alarms_are_allowed_the_less_it_takes_to_be_reported(
    false_alarms: float, reported: bool
) -> None:
    guard = canary(false_alarms=false_alarms)
    guard.begin("t", 0, iterations=10)
    guard.take_baseline(both(RIGHT))
    fallen = RIGHT.copy()
    fallen[:6] -= 0.4  # by a paired t test p is 0.0059; the level is a tenth of what is allowed in 10 looks
    assert bool(guard.observe(1, {}, both(fallen))) is reported


@pytest.mark.parametrize(("better_by", "best"), [(0.0, 1), (1.0, 0), (0.4, 1)])
def test_an_adapter_that_is_not_clearly_better_does_not_take_over(better_by: float, best: int) -> None:
    guard = canary(better_by=better_by)
    guard.take_baseline(both(RIGHT))
    flipped = RIGHT.copy()
    flipped[[0, 4, 8]] += 0.3
    flipped[[1, 5]] -= 0.3  # better by 0.3 / 32, 0.44 standard errors of it
    guard.observe(1, {}, both(flipped))
    assert guard.state.best_iteration == best


def test_a_half_that_was_lucky_is_no_height_to_fall_from() -> None:
    guard = canary()
    guard.take_baseline(both(RIGHT))
    lucky, plain = both(RIGHT + 0.3)[0], both(RIGHT)[0]
    guard.observe(1, {}, (lucky, plain))
    assert np.mean(guard.state.best) == pytest.approx(0.65) and guard.state.best_iteration == 1
    assert guard.state.peaks == both(RIGHT)  # the other half saw nothing of it
    assert guard.observe(2, {}, both(RIGHT)) == []


def test_the_last_of_a_window_is_chosen_only_where_it_is_no_worse_than_the_window() -> None:
    guard = canary(window=3)
    guard.take_baseline(both(RIGHT))
    for iteration, gain in enumerate((0.3, 0.3, 0.1), start=1):
        guard.observe(iteration, {}, both(RIGHT + gain))
    assert guard.state.best_iteration == 2  # the last window is better, and its last adapter worse


def test_a_bound_relative_to_a_negative_start() -> None:
    assert [relative_bound(start, 0.5) for start in (4, -4)] == [2, -6]
    assert [relative_bound(start, 2) for start in (4, -4)] == [8, 0]
    guard = watching(metric="m", below=0.5, relative=True, window=1)
    assert list(feed(guard, [-1, -1, -1.4, -1.6])) == [4]


@pytest.mark.parametrize("prompts", [1, 4, 32])
def test_prompts_that_all_fall_alike_are_still_that_many_prompts(prompts: int) -> None:
    guard = canary()
    guard.begin("t", 0, iterations=10)
    half = np.full(prompts, 0.75)
    guard.take_baseline(both(half))
    assert bool(guard.observe(1, {}, both(half - 0.25))) is (prompts == 32)  # 4: a chance of 1 / 16 is no news


def test_a_watch_goes_back_to_what_the_canary_found_best_in_the_same_iteration() -> None:
    watch = WatchConfig(metric="m", above=1.0, window=1, then=("roll_back",))
    guard = begun(GuardConfig(canary=CanaryConfig(window=1), watch=(watch,)))
    guard.take_baseline(both(RIGHT))
    [verdict] = guard.observe(1, {"m": 2.0}, both(RIGHT + 0.2))
    assert verdict.to_iteration == 1


def test_past_the_allowed_rollbacks_trouble_ends_the_run() -> None:
    guard = canary()
    guard.take_baseline(both(RIGHT))
    [first] = guard.observe(1, {}, both(RIGHT - 0.2))
    [second] = guard.observe(2, {}, both(RIGHT - 0.2))
    assert "stop" not in first.actions and second.actions == ("lower_rate", "roll_back", "stop")
    assert second.to_iteration == 0 and guard.state.rollbacks == 2


def test_only_one_verdict_of_an_iteration_rolls_back() -> None:
    watches = tuple(WatchConfig(metric=m, above=0.0, window=1, then=("lower_rate", "roll_back")) for m in "ab")
    guard = begun(GuardConfig(watch=watches))
    verdicts = guard.observe(1, {"a": 1.0, "b": 1.0})
    assert [v.actions for v in verdicts] == [("lower_rate", "roll_back"), ("warn",)]
    assert guard.state.rollbacks == 1
    watches = (watches[0], WatchConfig(metric="b", above=0.0, window=1, then=("roll_back", "stop")))
    guard = begun(GuardConfig(watch=watches))
    assert [v.actions for v in guard.observe(1, {"a": 1.0, "b": 1.0})][1] == ("stop",)


def test_a_new_task_starts_anew_but_rollbacks_count_over_the_run() -> None:
    guard = canary()
    guard.take_baseline(both(RIGHT))
    guard.observe(1, {}, both(RIGHT - 0.2))
    guard.begin("next", 5)
    assert guard.state == GuardState(task="next", config=guard.state.config, rollbacks=1, best_iteration=5)


def test_the_state_survives_json() -> None:
    guard = canary(window=2)
    guard.take_baseline(both(RIGHT))
    guard.observe(1, {"m": 1.0}, both(RIGHT + 0.1))
    assert GuardState.from_json(json.loads(json.dumps(asdict(guard.state)))) == guard.state


# -- in a run ----------------------------------------------------------------------------------------------------------

ASTRAY = """
tasks: [{name: sum, source: $sums, max_tokens: 8, split: {validation: 16, test: 16}}]
sampling: {n: 4}
reward: {kind: length_penalty, max_tokens: 8}  # the shortest answer wins, right or wrong
algorithm: {kind: grpo, learning_rate: 1.0e-2}
loop: {iterations: 6, prompts: 8, checkpoint_every: 2}
evaluation: {every: 100}
preflight: {enabled: false}
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a hackable reward and a rate that ruins it, and a canary of votes."""
    canary = "guard={canary: {truth: votes, prompts: 16, samples: 32, window: 1}, watch: [], max_rollbacks: 1}"
    return run_lab(tmp_path_factory.mktemp("guarded"), ASTRAY, canary, "evaluation.select=canary", "loop.iterations=12")


def test_a_run_goes_back_lowers_its_rate_and_stops(guarded: Path) -> None:
    log = list(read_jsonl(guarded / "guard.jsonl"))
    assert [row["actions"] for row in log] == [["lower_rate", "roll_back"], ["lower_rate", "roll_back", "stop"]]
    rows = metrics_of(guarded)
    rates = [rows[i]["train/learning_rate"] for i in sorted(rows) if "train/learning_rate" in rows[i]]
    assert rates[0] == pytest.approx(1e-2) and rates[-1] == pytest.approx(5e-3)
    summary = json.loads((guarded / "summary.json").read_text())
    assert summary["stop_reason"].startswith("guard: ") and summary["iterations"] < 12
    assert summary["guard"] == log
    assert summary["labels"]["validation_labels_choose"] is False
    to = log[-1]["to_iteration"]
    assert summary["adapter_iteration"] == to == 0  # nothing was ever better than the start
    assert summary["tasks"]["sum"]["change"]["pass@1"]["value"] == 0.0


def test_without_the_guard_the_same_run_is_ruined(tmp_path: Path) -> None:
    run = run_lab(tmp_path, ASTRAY)
    change = json.loads((run / "summary.json").read_text())["tasks"]["sum"]["change"]["pass@1"]
    assert change["high"] < 0


def test_a_guarded_run_resumes_bit_for_bit(guarded: Path, tmp_path: Path) -> None:
    canary = "guard={canary: {truth: votes, prompts: 16, samples: 32, window: 1}, watch: [], max_rollbacks: 1}"
    run = run_lab(tmp_path, ASTRAY, canary, "evaluation.select=canary", "loop.iterations=12", "loop.checkpoint_every=1")
    stopped = json.loads((run / "summary.json").read_text())["iterations"]
    (run / "latest").write_text(f"iter_{stopped - 1:06d}\n")
    (run / "summary.json").unlink()
    assert run_cli(["resume", str(run)], tmp_path / "log2") == 0, (tmp_path / "log2").read_text()
    assert metrics_of(run) == metrics_of(guarded)
    assert list(read_jsonl(run / "guard.jsonl")) == list(read_jsonl(guarded / "guard.jsonl"))


def test_the_default_watches_warn_without_touching_the_run() -> None:
    config = GuardConfig()
    assert {watch.then for watch in config.watch} == {("warn",)} and not config.rolls_back


def test_a_canary_on_which_no_vote_is_decisive_says_so_and_stays_silent(tmp_path: Path) -> None:
    run = run_lab(
        tmp_path, ASTRAY, "guard={canary: {truth: votes, prompts: 16, min_share: 1.0, votes: 64}}", "loop.iterations=1"
    )
    assert "none of the 16 canary prompts" in (tmp_path / "log").read_text()
    assert "guard/canary" not in metrics_of(run)[1]


def test_watches_roll_back_in_a_run_that_resumes_with_a_canary_added(tmp_path: Path) -> None:
    length = "{metric: rollout/tokens, below: 3.0, window: 2, then: [roll_back]}"
    watch = f"guard={{watch: [{length}, {{metric: rolout/kl, above: 1}}]}}"
    run = run_lab(tmp_path, ASTRAY, watch, "loop.checkpoint_every=1", "loop.keep_checkpoints=9")
    assert "there is no metric rolout/kl yet" in (tmp_path / "log").read_text()
    log = list(read_jsonl(run / "guard.jsonl"))
    assert log and all(row["to_iteration"] < row["iteration"] - 1 for row in log)
    (run / "latest").write_text("iter_000002\n")
    (run / "summary.json").unlink()
    config = run / "config.yaml"
    text = config.read_text()
    config.write_text(text[: text.index("\nguard:")] + "\nguard: {canary: {truth: votes, prompts: 8}}\n")
    assert run_cli(["resume", str(run)], tmp_path / "log2") == 0, (tmp_path / "log2").read_text()
    rows = metrics_of(run)
    assert "guard/canary" not in rows[2] and "guard/canary" in rows[6]


def test_what_was_gone_back_from_is_not_gone_back_to(tmp_path: Path) -> None:
    """Without a canary every iteration's adapter is kept: after going back, the one that was gone back to."""
    watch = "guard={watch: [{metric: rollout/tokens, below: 3.0, window: 2, then: [roll_back]}], max_rollbacks: 9}"
    run = run_lab(tmp_path, ASTRAY, watch, "loop.checkpoint_every=1", "loop.keep_checkpoints=99")
    first, *_ = read_jsonl(run / "guard.jsonl")

    def weights(iteration: int) -> bytes:
        folder = run / "checkpoints" / "guarded" / f"iter_{iteration:06d}"
        return next(folder.rglob("adapter_model.safetensors")).read_bytes()

    assert weights(first["iteration"]) == weights(first["to_iteration"])
    assert weights(first["iteration"] - 1) != weights(first["to_iteration"])


def test_adapters_do_not_pile_up_where_nothing_can_be_gone_back_to(tmp_path: Path) -> None:
    watch = "guard={watch: [{metric: rolout/kl, above: 1, then: [roll_back]}]}"
    run = run_lab(tmp_path, ASTRAY, watch, "loop.checkpoint_every=1", "loop.keep_checkpoints=2")
    kept = {path.name for path in (run / "checkpoints" / "guarded").iterdir()}
    assert kept == {"iter_000000", "iter_000005", "iter_000006"}


def test_what_the_guard_writes_belongs_to_the_run(guarded: Path) -> None:
    assert {path.name for path in guarded.iterdir()} <= OWN  # else --overwrite would refuse the folder
