"""Signals held against the truth: figures, tables and plots of made-up rollouts, and the real command on a run and a
file."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter
from rich.console import Console
from sklearn.metrics import roc_auc_score

from reward.config import RewardConfig
from reward.factory import make_reward
from reward.numerals import canonical_number
from reward.types import RewardError
from rlsf.config.load import load_config
from rlsf.config.replay import ReplayConfig
from rlsf.config.schema import FileSource, TaskConfig
from rlsf.evaluation.grading import Grader
from rlsf.evaluation.statistics import Estimate
from rlsf.offline.plot import plot_signals
from rlsf.offline.signals import DEFAULT_SIGNALS, SignalReport, best_first, measure_signals
from rlsf.offline.stored import ENOUGH, describe_versions, nearest_groups
from rlsf.offline.table import _label_free_table, _truth_table, signals_table, write_signals
from rlsf.replay import ReplayStore
from rlsf.run_dir import RunDir
from rlsf.scorer import Scorer
from rlsf.tasks import Task, build_stream
from rlsf.tasks.splits import DataReport
from rollouts.types import Prompt, Rollout
from tests.killing import run_cli
from tests.lab_run import run_lab
from tests.replay_groups import make_group
from tests.reward_fakes import CrampedEngine, ScriptedEngine, group, prompt

GRADER = Grader(TaskConfig(name="sums", source=FileSource(path="")))
TEXTS = [("12", "12", "7", "no idea"), ("3", "4", "4", "4"), ("8", "8", "8", "8")]
PROMPTS = [prompt("12", id="a"), prompt("3", id="b"), prompt("8", id="c")]
"""Of the first group the majority is right, of the second wrong; the third is all right."""
MAJORITY: Mapping[str, Any] = {"kind": "majority"}


def rollouts_of(prompts: Sequence[Prompt] = PROMPTS) -> list[list[Rollout]]:
    return [group(*texts, prompt_id=p.id) for texts, p in zip(TEXTS, prompts, strict=True)]


def measure(
    signals: Mapping[str, Mapping[str, Any]], prompts: Sequence[Prompt] = PROMPTS, engine: Any = None
) -> dict[str, SignalReport]:
    configs = {name: TypeAdapter(RewardConfig).validate_python(dict(config)) for name, config in signals.items()}

    def make_scorer(config: RewardConfig) -> Scorer:
        return Scorer(make_reward(config, graders=GRADER.verifier), {"sums": GRADER}, None, engine)

    reports = measure_signals(configs, prompts, rollouts_of(prompts), GRADER, make_scorer, seed=0)
    return {report.name: report for report in reports}


def report(name: str = "votes", **changes: Any) -> SignalReport:
    figures: dict[str, Any] = {
        "task": "sums",
        "prompts": 100,
        "groups": 100,
        "rollouts": 800,
        "labelled": 100,
        "right": 0.4,
        "auroc_within_groups": Estimate(0.8, 0.75, 0.85, 60),
        "auroc_within_answered": Estimate(0.6, 0.55, 0.65, 50),
        "auroc": Estimate(0.7, 0.65, 0.75, 100),
        "spearman": -0.31,
        "calibration_error": None,
        "calibrated_error": 0.04,
        "mean": -123.456,
        "deviation": 1.5,
        "no_opinion": 0.025,
        "unreadable": 0.125,
        "failed": 0.0625,
        "length_correlation": None,
        "tokens_per_rollout": 12.0,
        "seconds_per_rollout": 0.0021,
    }
    return SignalReport(name, **{**figures, **changes})


# -- figures -----------------------------------------------------------------------------------------------------------


def test_figures_worked_by_hand() -> None:
    found = measure({"votes": MAJORITY, "soft": {"kind": "majority", "soft": True}})
    votes = found["votes"]
    assert (votes.prompts, votes.groups, votes.rollouts, votes.labelled) == (3, 3, 12, 3)
    assert votes.right == pytest.approx(7 / 12)
    assert votes.mean == pytest.approx(9 / 12)
    # Within the groups: 4 of 4 pairs won, then 0 of 3.
    assert votes.auroc_within_groups is not None and votes.auroc is not None
    assert votes.auroc_within_groups.value == pytest.approx(4 / 7)
    assert votes.auroc_within_groups.n == 2
    truth = [1, 1, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1]
    assert votes.auroc.value == pytest.approx(roc_auc_score(truth, [1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]))
    assert votes.calibration_error == pytest.approx(abs(1 / 3 - 0) * 3 / 12 + abs(6 / 9 - 1) * 9 / 12)
    soft = [0.5, 0.5, 0.25, 0, 0.25, 0.75, 0.75, 0.75, 1, 1, 1, 1]
    lengths = [2, 2, 1, 7, 1, 1, 1, 1, 1, 1, 1, 1]  # the fake rollouts have one token per character
    assert found["soft"].length_correlation == pytest.approx(np.corrcoef(soft, lengths)[0, 1])
    assert found["soft"].deviation == pytest.approx(np.std(soft))
    assert votes.tokens_per_rollout == 0 and votes.seconds_per_rollout > 0


def test_that_an_answer_is_missing_is_no_knowledge_of_which_is_right() -> None:
    rule = {"name": "digits", "kind": "pattern", "require": "[0-9]"}
    found = measure({"form": {"kind": "rules", "rules": [rule]}})["form"]
    # Of the first group "no idea" alone has none: 2 of 7 pairs are won for that, the others are ties.
    assert found.auroc_within_groups is not None and found.auroc_within_groups.value == pytest.approx((2 + 5 / 2) / 7)
    assert found.auroc_within_answered == Estimate(0.5, 0.5, 0.5, 2)


def test_where_no_question_of_a_batch_fits_others_are_still_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlsf.offline.batches.BATCH", 4)
    signals = {"judge": {"kind": "judge", "samples": 1}}
    found = measure(signals, engine=CrampedEngine(lambda *_: "5", too_long="Proposed answer: 8"))["judge"]
    assert found.no_opinion == pytest.approx(4 / 12)
    with pytest.raises(RewardError, match="no question fits"):
        measure(signals, engine=CrampedEngine(lambda *_: "5", too_long="Proposed answer"))


def test_the_verifier_is_the_truth_itself() -> None:
    truth = measure({"truth": {"kind": "verifier"}})["truth"]
    assert truth.auroc is not None and truth.auroc.value == 1
    assert (truth.spearman, truth.calibration_error) == (pytest.approx(1), 0)


def test_rollouts_without_an_opinion_are_counted_and_left_out() -> None:
    found = measure({"sure": {"kind": "majority", "min_share": 0.7}})["sure"]
    assert found.no_opinion == pytest.approx(4 / 12)
    assert found.auroc_within_groups is not None and found.auroc_within_groups.value == 0


def test_without_references_only_the_label_free_part_is_measured() -> None:
    bare = [p.without_labels() for p in PROMPTS]
    with_labels, without = measure({"votes": MAJORITY})["votes"], measure({"votes": MAJORITY}, bare)["votes"]
    assert (without.labelled, without.right, without.auroc, without.auroc_within_groups) == (0, None, None, None)
    assert (without.spearman, without.calibration_error, without.calibrated_error) == (None, None, None)
    assert (without.mean, without.deviation) == (with_labels.mean, with_labels.deviation)
    assert (without.no_opinion, without.length_correlation) == (with_labels.no_opinion, with_labels.length_correlation)


def test_the_truth_is_looked_for_where_there_are_references() -> None:
    partly = [PROMPTS[0].without_labels(), *PROMPTS[1:]]
    found = measure({"votes": MAJORITY}, partly)["votes"]
    assert (found.labelled, found.right) == (2, pytest.approx(5 / 8))
    assert found.auroc_within_groups is not None and found.auroc_within_groups.value == 0
    assert found.mean == pytest.approx(9 / 12)


def test_references_reach_no_signal_that_does_not_ask_for_them() -> None:
    poisoned = [prompt("999", id=p.id) for p in PROMPTS]
    signals = {"votes": MAJORITY, "entropy": {"kind": "semantic_entropy"}}
    clean, wrong = measure(signals), measure(signals, poisoned)
    for name in signals:
        assert (clean[name].mean, clean[name].deviation) == (wrong[name].mean, wrong[name].deviation)
    assert wrong["votes"].right == 0


def test_tokens_that_judges_write_are_a_cost() -> None:
    engine = ScriptedEngine(lambda prompt, index: "Grade: 3")  # eight tokens
    judge = {"kind": "judge", "samples": 2, "retries": 0}
    combined = {"kind": "weighted_sum", "components": {"judge": {"reward": judge}, "votes": {"reward": MAJORITY}}}
    found = measure({"judge": judge, "combined": combined}, engine=engine)
    asked = len(engine.asked) // 2  # equal answers are asked about once, if at all
    assert found["judge"].tokens_per_rollout == pytest.approx(asked * 2 * 8 / 12)
    assert found["combined"].tokens_per_rollout == found["judge"].tokens_per_rollout


def test_the_best_signal_comes_first_and_what_cannot_be_ranked_last() -> None:
    sure, even = Estimate(0.9, 0.8, 1.0, 9), Estimate(0.8, 0.7, 0.9, 9)
    reports = [
        report("unknown", auroc_within_groups=None, auroc=None),
        report("second", auroc=even),
        report("best", auroc_within_groups=sure),
        report("first", auroc=sure),
    ]
    assert [r.name for r in best_first(reports)] == ["best", "first", "second", "unknown"]


# -- tables, files and plots -------------------------------------------------------------------------------------------


def printed(reports: Sequence[SignalReport], width: int = 80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(signals_table(reports))
    return console.export_text()


def test_the_tables_fit_a_terminal_of_80_columns_and_lose_nothing() -> None:
    reports = [report(name) for name in DEFAULT_SIGNALS]
    text = printed(reports)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for name in DEFAULT_SIGNALS:
        assert text.count(f"{name} ") == 2
    assert text.count("0.80 [0.75, 0.85]") == len(reports)
    assert "-0.31" in text and "-123" in text and "2.10" in text and "12.0" in text


def test_the_documentation_shows_the_columns_of_the_tables() -> None:
    page = (Path(__file__).parent.parent / "docs" / "signals.md").read_text("utf-8")
    for table in (_truth_table([report()]), _label_free_table([report(unreadable=None, failed=None)])):
        words = [part for column in table.columns for part in str(column.header).split("\n")]
        assert [word for word in words if word not in page] == []


def test_a_table_without_truth_has_no_columns_for_it() -> None:
    text = printed([report(labelled=0, right=None, auroc=None, auroc_within_groups=None)])
    assert "AUROC" not in text and "deviation" in text


def test_the_files_hold_every_figure(tmp_path: Path) -> None:
    reports = [report("votes"), report("none", auroc=None, mean=None)]
    write_signals(reports, {"run": "runs/x"}, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "signals.json").read_text())
    assert content["run"] == "runs/x"
    assert content["signals"] == [r.as_json() for r in reports]
    assert content["signals"][0]["auroc"] == {"value": 0.7, "low": 0.65, "high": 0.75, "n": 100}
    with (tmp_path / "out" / "signals.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["auroc"] for row in rows] == ["0.7", ""]
    assert (rows[0]["auroc_within_groups_low"], rows[1]["auroc_high"]) == ("0.75", "")
    assert rows[1]["mean"] == ""


def test_the_plot_names_every_signal_and_its_cost(tmp_path: Path) -> None:
    reports = [
        report("votes"),
        report("judge", auroc_within_groups=Estimate(0.6, 0.5, 0.7, 9), seconds_per_rollout=1.5, tokens_per_rollout=64),
        report("unknown", auroc=None, auroc_within_groups=None, tokens_per_rollout=0),
    ]
    plot_signals(reports, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    for words in ("votes", "judge", "unknown", "1500 ms, 64 tokens", "2.1 ms", "AUROC against the truth"):
        assert f"<!-- {words}" in drawn, words
    plot_signals(reports, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.tmp"))


# -- what a run left ---------------------------------------------------------------------------------------------------


def store_with(folder: Path, per_iteration: int, iterations: int) -> Any:
    store = ReplayStore.open(folder, ReplayConfig(), seed=0)
    for iteration in range(1, iterations + 1):
        store.add(
            [make_group(f"g{iteration}-{index}", iteration=iteration) for index in range(per_iteration)],
            iteration=iteration,
        )
    store.close()
    return ReplayStore.open_read_only(folder)


def task_of(*prompts: Prompt) -> Task:
    return Task("sums", TaskConfig(name="sums", source=FileSource(path="")), prompts, (), (), 0, DataReport(0))


def test_the_policys_own_rollouts_are_taken_where_there_are_enough(tmp_path: Path) -> None:
    with store_with(tmp_path, ENOUGH, 3) as store:
        groups = nearest_groups(store, task_of(), iteration=1, version=1, limit=1000)
        assert [g.version for g in groups] == [1] * ENOUGH
        assert describe_versions(groups, 1) == f"{ENOUGH} groups, written by this very policy (version 1)"
        assert len(nearest_groups(store, task_of(), iteration=1, version=1, limit=5)) == 5


def test_else_those_of_the_nearest_versions_stand_in_and_it_is_said(tmp_path: Path) -> None:
    with store_with(tmp_path, 4, 5) as store:
        last = nearest_groups(store, task_of(), iteration=5, version=5, limit=10)
        assert [g.version for g in last] == [4] * 4 + [3] * 4 + [2] * 2
        said = describe_versions(last, 5)
        assert "written by policy versions 2 to 4: the adapter's own version, 5, wrote too few" in said
        base = nearest_groups(store, task_of(), iteration=None, version=0, limit=6)
        assert [g.version for g in base] == [0] * 4 + [1] * 2


def test_references_come_from_the_data_of_the_task(tmp_path: Path) -> None:
    known = Prompt("prompt-g1-0", "sums", "1 + 1 =", reference="2")
    with store_with(tmp_path, 2, 1) as store:
        groups = nearest_groups(store, task_of(known), iteration=None, version=0, limit=10)
    assert [g.prompt.reference for g in groups] == ["2", None]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = """
tasks:
  - name: sums
    source:  # the lab model half knows sums of two digits
      kind: reasoning_gym
      dataset: chain_sum
      params: {min_terms: 2, max_terms: 2, min_digits: 2, max_digits: 2}
      size: 200
    split: {validation: 4, test: 4}
    max_tokens: 6
sampling: {n: 4}
loop: {iterations: 2, prompts: 8}
evaluation: {samples: 2, final_samples: 2}
preflight: {canary: 4}
"""
    return run_lab(tmp_path_factory.mktemp("signals"), settings)


def test_signals_of_a_run(lab: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in lab.iterdir())
    assert run_cli(["signals", str(lab), "--output", str(tmp_path / "out")], tmp_path / "log") == 0
    said = " ".join((tmp_path / "log").read_text().split())
    assert "task sums: 16 groups, written by policy versions 0 to 1: the adapter's own version, 2," in said
    assert "64 rollouts of 16 prompts of task sums" in said
    content = json.loads((tmp_path / "out" / "signals.json").read_text())
    assert (content["adapter"], content["iteration"], content["policy_version"]) == ("last", 2, 2)
    reports = {row["name"]: row for row in content["signals"]}
    assert reports.keys() == DEFAULT_SIGNALS.keys()
    assert (tmp_path / "out" / "signals.png").stat().st_size > 10_000
    assert (tmp_path / "out" / "signals.csv").read_text().count("\n") == 1 + len(DEFAULT_SIGNALS)
    assert sorted(path.name for path in lab.iterdir()) == before

    # The same from the files of the run: votes as they were paid, and probabilities as they were sampled.
    prompts = {p.id: p for p in build_stream(load_config(lab / "config.yaml")).tasks[0].train}
    with ReplayStore.open_read_only(RunDir.open(lab).replay) as store:
        experiences = [e for group in store.groups() for e in group.experiences]
    right = [e.score.evidence["answer"] == answer_to(prompts[e.rollout.prompt_id]) for e in experiences]
    paid = [e.score.value for e in experiences]
    known = [(r, value) for r, value in zip(right, paid, strict=True) if value is not None]
    assert reports["majority"]["right"] == pytest.approx(np.mean(right))
    assert reports["majority"]["auroc"]["value"] == pytest.approx(roc_auc_score(*zip(*known, strict=True)))
    sampled = [np.mean(e.rollout.logprobs) for e in experiences]
    assert reports["mean_log_probability"]["mean"] == pytest.approx(np.mean(sampled))
    assert reports["mean_log_probability"]["auroc"]["value"] == pytest.approx(roc_auc_score(right, sampled))
    assert reports["self_certainty"]["seconds_per_rollout"] > reports["mean_log_probability"]["seconds_per_rollout"]


def answer_to(prompt: Prompt) -> str:
    assert prompt.reference is not None
    return canonical_number(prompt.reference)


def test_signals_of_the_base_model_and_of_chosen_signals(lab: Path, tmp_path: Path) -> None:
    signals = tmp_path / "signals.yaml"
    signals.write_text(
        "signals:\n  votes: {kind: majority}\n  truth: {kind: verifier}\n"
        "  drift: {kind: token_entropy, model: reference}\n"
        "  judge: {kind: judge, samples: 1, max_tokens: 4, retries: 0}\n"
    )
    arguments = ["signals", str(lab), "--adapter", "base", "--signals", str(signals), "--limit", "8"]
    assert run_cli([*arguments, "--output", str(tmp_path / "out")], tmp_path / "log") == 0
    assert "written by this very policy (version 0)" in " ".join((tmp_path / "log").read_text().split())
    content = json.loads((tmp_path / "out" / "signals.json").read_text())
    found = {row["name"]: row for row in content["signals"]}
    assert found.keys() == {"votes", "truth", "drift", "judge"}
    assert found["truth"]["auroc"]["value"] == 1
    assert found["votes"]["rollouts"] == 32
    assert found["judge"]["tokens_per_rollout"] > 0
    assert found["drift"]["mean"] < 0


def test_what_a_run_cannot_be_asked_is_refused(lab: Path, tmp_path: Path) -> None:
    for arguments, expected in (
        (["--adapter", "7"], "has no adapter '7'"),
        (["--config", str(lab / "config.yaml")], "--config: a run brings its own"),
        (["--output", str(lab / "config.yaml")], "is a file; name a folder"),
    ):
        log = tmp_path / f"log{arguments[0]}"
        assert run_cli(["signals", str(lab), *arguments], log) == 2
        assert expected in " ".join(log.read_text().split())


# -- a file ------------------------------------------------------------------------------------------------------------


def answers(path: Path, *, references: bool = True) -> Path:
    rows = [
        {"prompt": f"{i} + 5 = ?", "completions": [str(i + 5)] * (i % 4 + 1) + [str(i)] * 2, "reference": str(i + 5)}
        for i in range(12)
    ]
    kept = rows if references else [{k: v for k, v in row.items() if k != "reference"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return path


def test_signals_of_a_file_without_a_model(tmp_path: Path) -> None:
    source = answers(tmp_path / "answers.jsonl")
    assert run_cli(["signals", str(source), "--output", str(tmp_path / "out")], tmp_path / "log") == 0
    said = " ".join((tmp_path / "log").read_text().split())
    left_out = [name for name in DEFAULT_SIGNALS if name not in ("majority", "majority_soft", "semantic_entropy")]
    assert f"Left out for want of a model: {', '.join(left_out)}; give --config FILE" in said
    content = json.loads((tmp_path / "out" / "signals.json").read_text())
    assert {row["name"] for row in content["signals"]} == {"majority", "majority_soft", "semantic_entropy"}
    votes = next(row for row in content["signals"] if row["name"] == "majority")
    # Groups of 1 to 4 right and 2 wrong answers, three of each: wins 0, half, all, all.
    assert votes["auroc_within_groups"]["value"] == pytest.approx((0 * 2 + 0.5 * 4 + 6 + 8) / (2 + 4 + 6 + 8))


def test_signals_of_a_file_with_a_model(tmp_path: Path) -> None:
    source, config = answers(tmp_path / "answers.jsonl"), tmp_path / "config.yaml"
    config.write_text("model: {source: lab}\n")
    arguments = ["signals", str(source), "--config", str(config), "--limit", "6", "--output", str(tmp_path / "out")]
    assert run_cli(arguments, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    content = json.loads((tmp_path / "out" / "signals.json").read_text())
    assert {row["name"] for row in content["signals"]} == DEFAULT_SIGNALS.keys()
    assert {row["groups"] for row in content["signals"]} == {6}


def test_signals_without_references_are_described_and_not_judged(tmp_path: Path) -> None:
    source = answers(tmp_path / "answers.jsonl", references=False)
    assert run_cli(["signals", str(source), "--output", str(tmp_path / "out")], tmp_path / "log") == 0
    said = " ".join((tmp_path / "log").read_text().split())
    assert "none has a reference, so this is what can be said without the truth" in said
    assert "AUROC" not in said and "deviation" in said
    assert (tmp_path / "out" / "signals.csv").exists() and not (tmp_path / "out" / "signals.png").exists()


@pytest.mark.parametrize(
    ("signals", "arguments", "expected"),
    [
        ("signals:\n  sure: {kind: p_true}\n", [], "signals.sure: p_true reads the model's probabilities"),
        ("signals:\n  truth: {kind: verifier}\n", [], "the row has no `reference`, and signals.truth: verifier"),
        ("signals: {}\n", [], "signals: found a section; expected at least 1 item(s)"),
        ("signals:\n  votes: {kind: vote}\n", [], 'signals.votes.kind: found "vote"; expected one of majority'),
        ("votes: {kind: majority}\n", [], "votes: unknown key; the top level knows signals"),
        ("signals:\n  votes: {kind: majority}\n", ["--adapter", "last"], "--adapter: it is for runs"),
    ],
)
def test_wrong_signals_are_refused(signals: str, arguments: list[str], expected: str, tmp_path: Path) -> None:
    source, config = answers(tmp_path / "answers.jsonl", references=False), tmp_path / "signals.yaml"
    config.write_text(signals)
    command = ["signals", str(source), "--signals", str(config), *arguments]
    assert run_cli(command, tmp_path / "log") == 2, (tmp_path / "log").read_text()
    assert expected in " ".join((tmp_path / "log").read_text().split())
