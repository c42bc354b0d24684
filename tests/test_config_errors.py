"""Malformed configs: each one clear message with file, line, key, what was found and what to write instead."""

import os
from pathlib import Path

import pytest

from rlsf.config import check_config, load_config
from rlsf.errors import ConfigError

HEAD = "name: x\ntasks:\n  - {name: a, source: {kind: reasoning_gym, dataset: gcd}}\n"
FILE_TASK = "  - {name: b, source: {kind: file, path: b.jsonl, reference_column: null}}\n"

MALFORMED = {
    "empty": ("", ["run.yaml: the file is empty"]),
    "only a comment": ("# nothing\n", ["the file is empty"]),
    "a list": ("- a\n", ["expected `key: value` lines, found a list of 1"]),
    "a text": ("hello\n", ['found "hello"']),
    "broken YAML": ("name: x\ntasks: [1, 2\n", ["run.yaml:3: not valid YAML", "expected ',' or ']'"]),
    "a tab": ("name: x\nloop:\n\titerations: 3\n", ["run.yaml:3: not valid YAML", "not tabs"]),
    "a colon in text": ("name: x: y\n", ["run.yaml:1: not valid YAML", "into quotes"]),
    "an undefined alias": ("name: *nobody\n", ["run.yaml:1: not valid YAML", "nobody"]),
    "two documents": ("name: x\n---\nname: y\n", ["not valid YAML", "another document"]),
    "a tag": ("name: !!python/object:os.system x\n", ["run.yaml:1: not valid YAML"]),
    "a cycle": ("name: &a {b: *a}\n", ["run.yaml:1: an alias (*) stands inside the value it refers to"]),
    "a key twice": (HEAD + "seed: 1\nloop: {}\nseed: 2\n", ["run.yaml:6: the key 'seed' stands twice (line 4 too)"]),
    "a nested key twice": (
        HEAD + "loop:\n  prompts: 1\n  prompts: 2\n",
        ["run.yaml:6: the key 'prompts' stands twice"],
    ),
    "no name": (
        "tasks: []\n",
        ["run.yaml: name: missing", "run.yaml:1: tasks: found a list of 0; expected at least 1"],
    ),
    "a number as name": (HEAD.replace("x", "7", 1), ["run.yaml:1: name: found 7; expected text; put it into quotes"]),
    "a path as name": (HEAD.replace("x", "a/b", 1), ['name: found "a/b"; expected letters, digits']),
    "a parent folder as name": (HEAD.replace("x", "..", 1), ['name: found ".."']),
    "unknown section": (HEAD + "smapling: {n: 2}\n", ["run.yaml:4: smapling: unknown key; did you mean sampling?"]),
    "unknown key": (
        HEAD + "loop:\n  iteratons: 3\n",
        ["run.yaml:5: loop.iteratons: unknown key; did you mean iterations?"],
    ),
    "a key one level too high": (
        HEAD + "max_grad_norm: 1\n",
        ["max_grad_norm: unknown key here", "algorithm.max_grad_norm"],
    ),
    "a key of nowhere": (HEAD + "loop: {zzz: 1}\n", ["loop.zzz: unknown key; loop knows iterations, prompts"]),
    "a key of another kind": (
        HEAD + "algorithm: {kind: grpo, gae_lambda: 0.9}\n",
        ["run.yaml:4: algorithm.gae_lambda: unknown key of kind grpo; it belongs to kind ppo"],
    ),
    "a dual clip inside the clip": (
        HEAD + "algorithm: {kind: grpo, clip_high: 0.4, dual_clip: 1.3}\n",
        ["algorithm.dual_clip: 1.3 is below 1 + clip_high (1.4)"],
    ),
    "an adaptive KL from nothing": (
        HEAD + "algorithm: {kind: ppo, kl_coef: 0, kl_target: 0.5}\n",
        ["kl_target: an adaptive coefficient cannot start from kl_coef 0"],
    ),
    "robust without noise": (HEAD + "algorithm: {kind: dpo, loss: robust}\n", ["label_smoothing: with `robust`"]),
    "smoothing that nothing uses": (
        HEAD + "algorithm: {kind: dpo, loss: ipo, label_smoothing: 0.1}\n",
        ["label_smoothing: the loss 'ipo' does not use it"],
    ),
    "a replay ratio that rounds to nothing": (
        HEAD + "loop: {prompts: 4}\nreplay: {ratio: 0.1}\n",
        ["replay.ratio: 0.1 times loop.prompts (4) rounds to no group at all"],
    ),
    "a replay ratio beyond numbers": (
        HEAD + "replay: {ratio: 1.0e+308}\n",
        ["replay.ratio: found 1e+308; expected at most 1000"],
    ),
    "a buffer beyond counting": (
        HEAD + "replay: {capacity: 9223372036854775808}\n",
        ["replay.capacity: found 9223372036854775808; expected at most 1000000000000"],
    ),
    "more completions than anybody means": (
        HEAD + "sampling: {n: 1000000000000}\n",
        ["run.yaml:4: sampling.n: found 1000000000000; expected at most 65536"],
    ),
    "half a character": (
        HEAD.replace("name: a,", 'name: a, system: "\\ud83d",'),
        ["run.yaml:3: tasks.0.system: found half a character"],
    ),
    "a rate beyond sense": (
        HEAD + "algorithm: {learning_rate: 1.0e+39}\n",
        ["algorithm.learning_rate: found 1e+39; expected at most 1000"],
    ),
    "a name too long for a file": (
        HEAD.replace("name: x", f"name: {'x' * 300}"),
        ["run.yaml:1: name: found", "expected at most 100 characters"],
    ),
    "true as a number": (HEAD + "loop: {iterations: true}\n", ["loop.iterations: found true; expected a number"]),
    "true as a fraction": (
        HEAD + "model: {lora: {alpha: true}}\n",
        ["model.lora.alpha: found true; expected a number"],
    ),
    "false as a number": (
        HEAD + "evaluation: {patience: false}\n",
        ["evaluation.patience: found false; expected a number"],
    ),
    "a buffer of one iteration": (
        HEAD + "loop: {prompts: 4}\nreplay: {ratio: 1, capacity: 4}\n",
        ["replay.capacity: 4 groups hold no more than one iteration's"],
    ),
    "a warm start without the label": (
        HEAD + "warm_start: {answer_template: hello}\n",
        ["warm_start.answer_template: must contain {reference}"],
    ),
    "unknown kind": (
        HEAD + "algorithm: {kind: gpro}\n",
        ['run.yaml:4: algorithm.kind: found "gpro"; expected one of grpo, ppo, dpo; did you mean grpo?'],
    ),
    "no kind": (
        "name: x\ntasks:\n  - {name: a, source: {path: x.csv}}\n",
        ["run.yaml:3: tasks.0.source.kind: missing; expected one of reasoning_gym, file, datasets"],
    ),
    "a kind instead of a section": (
        HEAD + "reward: verifier\n",
        ['reward: found "verifier"; expected a section; write reward.kind: verifier'],
    ),
    "text for a whole number": (HEAD + "sampling: {n: many}\n", ['sampling.n: found "many"; expected a whole number']),
    "a fraction for a whole number": (
        HEAD + "sampling: {n: 2.5}\n",
        ["sampling.n: found 2.5; expected a whole number"],
    ),
    "a list for a number": (HEAD + "sampling: {n: [2]}\n", ["sampling.n: found a list of 1; expected a whole number"]),
    "a number for a section": (HEAD + "loop: 3\n", ["run.yaml:4: loop: found 3; expected a section"]),
    "null for a section": (HEAD + "loop:\n", ["loop: found nothing (null); expected a section"]),
    "below the least": (
        HEAD + "algorithm: {learning_rate: -1e-5}\n",
        ["learning_rate: found -1e-05; expected at least 0"],
    ),
    "above the most": (HEAD + "sampling: {top_p: 1.5}\n", ["sampling.top_p: found 1.5; expected at most 1"]),
    "infinite": (
        HEAD + "algorithm: {learning_rate: .inf}\n",
        ["learning_rate: found Infinity; expected a finite number"],
    ),
    "deep nesting": ("name: " + "[" * 5000 + "\n", ["run.yaml: not valid YAML: it is nested too deeply"]),
    "a wrong choice": (
        HEAD + "algorithm: {schedule: cosin}\n",
        ["algorithm.schedule", "'constant', 'linear' or 'cosine'; did you mean cosine?"],
    ),
    "an error deep in a reward": (
        HEAD + "reward: {kind: weighted_sum, components: {m: {reward: {kind: verifier, verifier: {kind: exat}}}}}\n",
        ["reward.components.m.reward.verifier.kind", "did you mean exact?"],
    ),
    "neither text nor list": (
        HEAD + "model: {lora: {target_modules: 3}}\n",
        ["target_modules: found 3; expected text or a list"],
    ),
    "a function without a module": (
        HEAD + "reward: {kind: function, path: f}\n",
        ['run.yaml:4: reward.path: found "f"; expected `module:function` or `path/to/file.py:function`'],
    ),
    "several at once": (HEAD + "seed: -1\nsampling: {n: x}\n", ["run.yaml:4: seed", "run.yaml:5: sampling.n"]),
    "a beta of 1.5": (
        HEAD + "algorithm: {betas: [1.5, -3]}\n",
        ["algorithm.betas.0: found 1.5; expected a number below 1"],
    ),
    "a negative beta": (HEAD + "algorithm: {betas: [0.9, -3]}\n", ["algorithm.betas.1: found -3; expected at least 0"]),
    "a broken pattern of modules": (
        HEAD + "model: {lora: {target_modules: '('}}\n",
        ["run.yaml:4: model.lora.target_modules: '(' is no regular expression"],
    ),
    "an empty stop string": (
        HEAD + "sampling: {stop: ['']}\n",
        ['sampling.stop.0: found ""; expected at least 1 character(s)'],
    ),
    "a number of 5000 digits": (
        HEAD + f"seed: {'1' * 5000}\n",
        ["run.yaml:4: not valid YAML: '1111", "... (5000 characters)' cannot be read as !!int"],
    ),
    "a number of 5000 hexadecimal digits": (HEAD + f"seed: 0x{'f' * 5000}\n", ["cannot be read as !!int"]),
    "no whole number": (HEAD + "seed: !!int abc\n", ["run.yaml:4: not valid YAML: 'abc' cannot be read as !!int"]),
    "no number": (HEAD + "seed: !!float abc\n", ["'abc' cannot be read as !!float"]),
    "no truth value": (HEAD + "seed: !!bool maybe\n", ["run.yaml:4: not valid YAML: 'maybe' cannot be read as !!bool"]),
    "no time": (
        HEAD + "seed: !!timestamp hello\n",
        ["run.yaml:4: not valid YAML: 'hello' cannot be read as !!timestamp"],
    ),
    "two tasks of one name": (HEAD + HEAD.splitlines()[2] + "\n", ["tasks: the name 'a' is used twice"]),
    "greedy training": (
        HEAD + "sampling: {temperature: 0}\n",
        ["run.yaml:4: sampling: training needs temperature > 0"],
    ),
    "a group of one": (HEAD + "sampling: {n: 1}\n", ["sampling.n: grpo compares"]),
    "completions longer than the context": (
        HEAD + "engine: {kind: auto, max_model_len: 64}\n",
        ["run.yaml:4: engine.max_model_len: 64 tokens hold prompt and completion", "256"],
    ),
    "a buffer below one batch": (
        HEAD + "replay: {ratio: 1, capacity: 4}\n",
        ["replay.capacity: 4", "loop.prompts (16)"],
    ),
    "labels that are not there": (
        HEAD + FILE_TASK + "reward: {kind: verifier}\n",
        ["reward: it needs reference", "'b'"],
    ),
    "labels hidden in a sum": (
        HEAD + FILE_TASK + "reward: {kind: weighted_sum, components: {v: {reward: {kind: verifier}}}}\n",
        ["reward: it needs reference answers"],
    ),
    "warm start without labels": (
        "name: x\ntasks:\n" + FILE_TASK + "warm_start: {}\n",
        ["warm_start: it needs reference"],
    ),
    "warm start beyond train": (
        HEAD.replace("}}", "}, split: {train: 10}}") + "warm_start: {examples: 11}\n",
        ["warm_start.examples: 11 are more than split.train of task"],
    ),
    "no room for a task": (
        HEAD.replace("}}", "}, iterations: 20}") + FILE_TASK,
        ["loop.iterations: 20 leave nothing for b"],
    ),
    "too few problems": (
        HEAD.replace("gcd", "gcd, size: 300"),
        ["run.yaml:3: tasks.0.source.size: 300 problems are too few", "expected 301 or more"],
    ),
    "a template without the prompt": (
        HEAD.replace("}}", "}, template: hi}"),
        ["tasks.0.template: must contain {prompt}"],
    ),
    "a system message for plain text": (
        HEAD.replace("}}", "}, chat: false, system: hi}"),
        ["tasks.0.system: plain text (chat: false) has no system message"],
    ),
}


@pytest.fixture
def run_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("run.yaml")


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_config(run_yaml: Path, case: str) -> None:
    text, expected = MALFORMED[case]
    run_yaml.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(run_yaml)
    for part in expected:
        assert part in str(caught.value)
    assert "pydantic" not in str(caught.value).lower()


NESTED = "reward: {kind: weighted_sum, components: {a: {reward: {kind: majority}, weight: %s}}}\n"


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("guard: {canary: {then: [stap]}}\n", 'guard.canary.then.0: found "stap"; expected one of'),
        (NESTED % "{x: 1}", 'weight.x: found the key "x"; expected a whole number'),
        (NESTED % "{-3: 1}", "weight.-3: found the key -3; expected at least 0"),
        (NESTED % "{0: x}", 'weight.0: found "x"; expected a number'),
        (NESTED % "x", 'weight: found "x"; expected a number or a section'),
    ],
)
def test_one_error_is_one_line(run_yaml: Path, wrong: str, expected: str) -> None:
    run_yaml.write_text(HEAD + wrong)
    with pytest.raises(ConfigError) as caught:
        load_config(run_yaml)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_several_errors_are_one_line_each(run_yaml: Path) -> None:
    run_yaml.write_text(HEAD + "seed: -1\nsampling: {n: x}\nlop: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(run_yaml, ["loop.prompts=0"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert sum(line.startswith("run.yaml:") for line in lines) == 3
    assert sum(line.startswith("override loop.prompts=0: loop.prompts: found 0") for line in lines) == 1


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sampling.n", ["override 'sampling.n'", "expected key=value"]),
        ("=3", ["empty part"]),
        ("sampling..n=3", ["empty part"]),
        ("seed.x=1", ["override seed.x=1: seed is 0, not a section"]),
        ("tasks.5.split.test=1", ["tasks has no '5' (1 item, counted from 0)", "names: a"]),
        ("tasks.aa.split.test=1", ["did you mean tasks.a?"]),
        ("sampling.m=3", ["override sampling.m=3: sampling.m: unknown key"]),
        (f"seed={'1' * 5000}", ['seed: found "1111', "expected a whole number"]),
        ("seed=!!int abc", ['seed: found "!!int abc"; expected a whole number']),
        ("sampling.n=[1", ['sampling.n: found "[1"; expected a whole number']),
        ("reward.kind=majorty", ["did you mean majority?"]),
        ("tasks=[{nam: a}]", ["override tasks=[{nam: a}]: tasks.0.nam: unknown key; did you mean name?"]),
    ],
)
def test_malformed_override(run_yaml: Path, override: str, expected: list[str]) -> None:
    run_yaml.write_text(HEAD + "seed: 0\n")
    with pytest.raises(ConfigError) as caught:
        load_config(run_yaml, [override])
    for part in expected:
        assert part in str(caught.value)


def test_files_that_are_no_config(run_yaml: Path) -> None:
    for make, expected in [
        (lambda: None, "there is no such file"),
        (lambda: run_yaml.write_bytes(b"name: x\nseed: \xff\xfe\n"), "run.yaml:2: not UTF-8"),
        (lambda: run_yaml.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x01"), "not UTF-8"),
        (lambda: run_yaml.write_bytes(b"name: \x00\x01\n"), "not valid YAML"),
        (lambda: (run_yaml.unlink(), run_yaml.mkdir()), "this is a directory"),
    ]:
        make()
        with pytest.raises(ConfigError, match=r"run\.yaml") as caught:
            load_config(run_yaml)
        assert expected in str(caught.value)


def test_a_byte_order_mark_is_no_error(run_yaml: Path) -> None:
    run_yaml.write_bytes(b"\xef\xbb\xbf" + HEAD.encode())
    assert load_config(run_yaml).name == "x"


def test_a_good_config_has_no_problems(run_yaml: Path) -> None:
    run_yaml.write_text(HEAD)
    Path("b.jsonl").write_text('{"prompt": "1 + 1"}\n')
    Path("r.py").write_text("def good(prompts, **_):\n    return [0.0 for _ in prompts]\n")
    config = load_config(run_yaml, ["reward={kind: function, path: 'r.py:good'}"])
    assert check_config(config) == []


@pytest.mark.parametrize(
    ("setup", "overrides", "expected"),
    [
        (
            "data.jsonl",
            ["tasks.0.source={kind: file, path: data.jsnl}"],
            "tasks.0.source.path: data.jsnl ends in '.jsnl'",
        ),
        ("data.jsonl", ["tasks.0.source={kind: file, path: dat.jsonl}"], "no dat.jsonl; did you mean data.jsonl?"),
        ("data.jsonl", ["tasks.0.source={kind: file, path: no/dat.jsonl}"], "nor its folder"),
        ("d.csv/", ["tasks.0.source={kind: file, path: d.csv}"], "d.csv is a directory"),
        ("out", ["output_dir=out"], "output_dir: out is a file"),
        ("", ["reward={kind: function, path: 'f.py:g'}"], "reward.path: there is no f.py"),
        ("", [f"reward={{kind: function, path: '{'f' * 300}.py:g'}}"], "cannot be reached: File name too long"),
        ("", ["reward={kind: function, path: '~nobodyxyz/f.py:g'}"], "there is no ~nobodyxyz/f.py"),
        (
            "",
            [f"tasks.0.source={{kind: file, path: {'f' * 300}.csv}}"],
            "ffff... cannot be reached: File name too long",
        ),
        ("", ["tasks.0.source={kind: file, path: ~nobodyxyz/d.csv}"], "there is no ~nobodyxyz/d.csv"),
        ("", [f"output_dir={'o' * 300}"], "output_dir: oooo"),
        ("", ["model.source=~nobodyxyz/m"], "model.source: there is no ~nobodyxyz/m"),
        ("", [f"model.source=./{'m' * 300}"], "cannot be reached: File name too long"),
        ("", ["model.source=a/b/c"], "model.source: there is no a/b/c"),
        ("", ["model.chat_template={{ bad"], "model.chat_template: line 1 is no valid Jinja"),
        ("f.py", ["reward={kind: function, path: 'f.py:rewrd'}"], "f.py has no 'rewrd'; did you mean reward?"),
        ("bad.py", ["reward={kind: function, path: 'bad.py:f'}"], "bad.py is no valid Python"),
        ("", ["reward={kind: function, path: 'no_such_module.x:f'}"], "no module 'no_such_module'"),
        ("", ["model.source=./no.gguf"], "model.source: there is no no.gguf"),
        ("", ["model.source=package:no_such_package"], "'no_such_package' is not installed"),
        ("", ["reward={kind: reflection, feedback: no.jsonl}"], "reward.feedback: "),
        ("", ["reward={kind: judge, by: {kind: local, source: ./no}}"], "reward.by.source: "),
        (
            "",
            ["reward={kind: pairwise_judge, by: {kind: openai, model: m, api_key_env: NO_SUCH_KEY}}"],
            "reward.by.api_key_env: the environment variable NO_SUCH_KEY is not set",
        ),
    ],
)
def test_problems_with_this_machine(run_yaml: Path, setup: str, overrides: list[str], expected: str) -> None:
    contents = {"f.py": "def reward():\n    raise SystemExit('must not run')\nreward()\n", "bad.py": "def f(:\n"}
    run_yaml.write_text(HEAD)
    if setup.endswith("/"):
        Path(setup).mkdir()
    elif setup:
        Path(setup).write_text(contents.get(setup, "x"))
    (problem,) = check_config(load_config(run_yaml, overrides))
    assert expected in problem


@pytest.mark.parametrize(
    "settings",
    [
        "output_dir=~/runs",
        "model.source=google/gemma-3-1b-it",
        "model.source=package:some-models",
        "model.chat_template={% for m in messages %}{%- generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}",
        "tasks.0.source={kind: file, path: ~/data.csv}",
    ],
)
def test_no_problems_with_this_machine(run_yaml: Path, monkeypatch: pytest.MonkeyPatch, settings: str) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.syspath_prepend(Path.cwd())
    for folder in ("google", "some_models"):
        Path(folder).mkdir()
    Path("data.csv").write_text("prompt\n1\n")
    run_yaml.write_text(HEAD)
    config = load_config(run_yaml, [settings])
    assert check_config(config) == []
    assert "~" not in config.output_dir


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everywhere")
@pytest.mark.parametrize(
    "override",
    [
        "output_dir=locked/in/runs",
        "model.source=./locked/model",
        "tasks.0.source={kind: file, path: locked/d.csv}",
        "reward={kind: function, path: 'locked/f.py:g'}",
    ],
)
def test_what_lies_in_an_unreadable_folder(run_yaml: Path, override: str) -> None:
    run_yaml.write_text(HEAD)
    Path("locked").mkdir(mode=0)
    (problem,) = check_config(load_config(run_yaml, [override]))
    assert "locked" in problem and "cannot be reached: Permission denied" in problem


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_output_dir(run_yaml: Path) -> None:
    run_yaml.write_text(HEAD)
    Path("locked").mkdir(mode=0o555)
    (problem,) = check_config(load_config(run_yaml, ["output_dir=locked/runs"]))
    assert "output_dir: locked is not writable" in problem
