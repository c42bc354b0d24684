"""The command line as people meet it: what goes wrong ends in one clear message, status 2 and no traceback."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlsf.cli import main
from tests.killing import Moment, run_cli

ROWS = [{"prompt": f"{a} + {b} =", "reference": str(a + b)} for a in range(10) for b in range(10)]
FILE_TASK = """
name: run
model: {{source: {model}}}
engine: {{kind: transformers}}
tasks:
  - name: sums
    source: {{kind: file, path: {data}}}
    split: {{validation: 4, test: 4}}
    max_tokens: 4
sampling: {{n: 2}}
loop: {{iterations: 1, prompts: 4}}
evaluation: {{samples: 2, final_samples: 2}}
preflight: {{canary: 4}}
{more}
"""


@pytest.fixture
def experiment(tmp_path):
    """Writes a data file and a config for it; returns the config's path."""

    def write(rows=ROWS, *, suffix="jsonl", model="lab", more="", text=None, edit=lambda config: config):
        data = tmp_path / f"data.{suffix}"
        content = "".join(json.dumps(row) + "\n" for row in rows) if text is None else text
        if isinstance(content, bytes):
            data.write_bytes(content)
        else:
            data.write_text(content)
        config = tmp_path / "config.yaml"
        config.write_text(
            edit(FILE_TASK.format(model=model, data=data, more=f"output_dir: {tmp_path / 'runs'}\n{more}"))
        )
        return config

    return write


def fails(arguments, log: Path) -> str:
    """Runs rlsf, expects a clean failure, and returns what it said."""
    status = run_cli([str(argument) for argument in arguments], log)
    said = log.read_text()
    assert status == 2, f"status {status}:\n{said}"
    assert "Traceback" not in said
    assert said.count("error:") == 1, said
    return " ".join(said.split())


def replacing(old, new):
    return lambda config: config.replace(old, new)


CONFIGS = {
    "unknown key": (replacing("loop:", "lop:"), "lop: unknown key; did you mean loop?"),
    "nested unknown key": (replacing("prompts: 4}", "promts: 4}"), "loop.promts: unknown key; did you mean prompts?"),
    "wrong type": (
        replacing("iterations: 1", "iterations: many"),
        'loop.iterations: found "many"; expected a whole number',
    ),
    "negative": (replacing("iterations: 1", "iterations: -1"), "loop.iterations: found -1; expected at least 1"),
    "wrong kind": (
        replacing("kind: transformers", "kind: transformer"),
        'engine.kind: found "transformer"; expected one of auto, vllm, transformers; did you mean transformers?',
    ),
    "no tasks": (lambda config: "name: run\n", "tasks: missing; it has no default"),
    "empty": (lambda config: "", "the file is empty; a config needs at least `name` and `tasks`"),
    "a list": (lambda config: "- name: run\n", "found a list of 1"),
    "broken YAML": (replacing("engine: {kind", "engine: {{kind"), "config.yaml:5: not valid YAML"),
    "key twice": (lambda config: config + "\nname: again\n", "the key 'name' stands twice (line 2 too); remove one"),
    "top_p": (
        replacing("sampling: {n: 2}", "sampling: {n: 2, top_p: 0.9}"),
        "sampling: training needs temperature > 0, top_p = 1 and top_k = 0",
    ),
    "one sample for GRPO": (
        replacing("sampling: {n: 2}", "sampling: {n: 1}"),
        "sampling.n: grpo compares the rollouts of a group and needs n of at least 2",
    ),
    "not a name": (
        replacing("name: run", "name: a/b"),
        "name: found \"a/b\"; expected letters, digits, '_', '.' and '-', not starting with '.' or '-'",
    ),
    "no such reward": (
        lambda config: config + "\nreward: {kind: applause}\n",
        'reward.kind: found "applause"; expected one of majority, semantic_entropy',
    ),
    "no such file of functions": (
        lambda config: config + "\nreward: {kind: function, path: nothing.py:f}\n",
        "reward.path: there is no nothing.py",
    ),
}


@pytest.mark.parametrize("case", CONFIGS, ids=lambda name: name.replace(" ", "-"))
def test_a_broken_config_is_refused(case, experiment, tmp_path):
    edit, expected = CONFIGS[case]
    said = fails(["run", experiment(edit=edit)], tmp_path / "log")
    assert expected in said
    assert not (tmp_path / "runs").exists()


DATA = {
    "empty file": ({"text": ""}, "data.jsonl: the file has no rows"),
    "broken line": ({"text": '{"prompt": "1"}\n{"prompt": \n'}, "data.jsonl:2: not valid JSON: Expecting value"),
    "row is no object": ({"text": "[1, 2]\n" * 20}, "data.jsonl:1: the row is a list, not an object"),
    "missing column": (
        {"rows": [{"question": "1 + 1"}] * 20},
        "data.jsonl:1: there is no column 'prompt' (source.prompt_column); columns: question",
    ),
    "null prompt": ({"rows": [*ROWS, {"prompt": None}]}, "data.jsonl:101: the column 'prompt' is empty"),
    "unknown role": (
        {"rows": [{"prompt": [{"role": "narrator", "content": "x"}]}] * 20},
        "message 1: unknown role 'narrator'; expected one of system, user, assistant, tool",
    ),
    "reference is a list": (
        {"rows": [{**row, "reference": [1]} for row in ROWS]},
        "the reference in column 'reference' is a list; expected text or a number",
    ),
    "too few rows": (
        {"rows": ROWS[:8]},
        "task 'sums': 8 different prompts are too few for split.test (4), split.validation (4) and at least one",
    ),
    "too few rows for a batch": (
        {"rows": ROWS[:9]},
        "task 'sums': 1 training prompts are fewer than loop.prompts (4)",
    ),
    "all the same": (
        {"rows": ROWS[:1] * 50},
        "task 'sums': 1 different prompts (50 rows, 49 duplicates dropped) are too few",
    ),
    "not UTF-8": ({"text": b'{"prompt": "\xff\xfe"}\n'}, "data.jsonl:1: not UTF-8 text; save the file as UTF-8"),
    "corrupt Parquet": ({"text": "PAR1 not", "suffix": "parquet"}, "data.parquet: not a readable Parquet file"),
    "unknown suffix": ({"text": "x", "suffix": "xlsx"}, "data.xlsx ends in '.xlsx'; expected one of .jsonl"),
    "labels are missing": (
        {"rows": [{"prompt": r["prompt"]} for r in ROWS], "more": "reward: {kind: verifier}"},
        "the reward needs reference answers, and 92 of 92 training prompts have none; there is no column 'reference'",
    ),
}


@pytest.mark.parametrize("case", DATA, ids=lambda name: name.replace(" ", "-"))
def test_broken_data_is_refused_before_a_run_is_made(case, experiment, tmp_path):
    arguments, expected = DATA[case]
    said = fails(["run", experiment(**arguments)], tmp_path / "log")
    assert expected in said
    assert not (tmp_path / "runs" / "run" / "config.yaml").exists()


FUNCTIONS = {
    "raises": (
        "def f(completions, **kwargs):\n    raise KeyError('colour')\n",
        "reward function 'f' raised KeyError('colour') while scoring rollouts",
    ),
    "ends the program": (
        "import sys\nf = lambda **kwargs: sys.exit(0)\n",
        "raised SystemExit(0) while scoring rollouts",
    ),
    "wrong length": (
        "def f(completions, **kwargs):\n    return [1.0]\n",
        "reward function 'f' returned 1 rewards for 2 completions",
    ),
    "not a number": (
        "def f(completions, **kwargs):\n    return ['good'] * len(completions)\n",
        "reward function 'f' returned 'good' for rollout",
    ),
    "NaN": (
        "def f(completions, **kwargs):\n    return [float('nan')] * len(completions)\n",
        "a value of nan; a reward must be finite",
    ),
}


@pytest.mark.parametrize("case", FUNCTIONS, ids=lambda name: name.replace(" ", "-"))
def test_a_reward_function_that_breaks_stops_the_run(case, experiment, tmp_path):
    source, expected = FUNCTIONS[case]
    (tmp_path / "broken.py").write_text(source)
    config = experiment(more=f"reward: {{kind: function, path: {tmp_path}/broken.py:f}}")
    said = fails(["run", config], tmp_path / "log")
    assert expected in said


def test_a_model_that_is_not_there(experiment, tmp_path):
    said = fails(["run", experiment(model="./no/such/model")], tmp_path / "log")
    assert "model.source: there is no no/such/model" in said


def test_a_run_directory_that_cannot_be_made(experiment, tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    said = fails(["run", experiment()], tmp_path / "log")
    assert "output_dir: " in said and "runs is a file, not a folder" in said


def test_ctrl_c_says_how_to_go_on(experiment, tmp_path):
    config, run = experiment(), tmp_path / "runs" / "run"
    interrupt = Moment("rlsf.run:Run.record", sends=signal.SIGINT)
    assert run_cli(["run", str(config)], tmp_path / "log", interrupt) == 130
    said = (tmp_path / "log").read_text()
    assert said.splitlines()[-1] == f"interrupted; `rlsf resume {run}` continues from the last checkpoint"
    assert "Traceback" not in said and "Aborted" not in said
    assert run_cli(["resume", str(run)], tmp_path / "again", interrupt) == 130
    assert "interrupted; `rlsf resume" in (tmp_path / "again").read_text()
    assert run_cli(["resume", str(run)], tmp_path / "once more") == 0


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate")])
def test_out_of_memory_is_one_message(error, monkeypatch, capsys):
    def app():
        raise error

    monkeypatch.setattr("rlsf.cli.app", app)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "error: out of memory (" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch):
    def app():
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("rlsf.cli.app", app)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main()


def test_a_path_in_brackets_is_no_markup(experiment, tmp_path):
    config = experiment()
    odd = tmp_path / "[" / "a]"
    odd.mkdir(parents=True)
    config.rename(odd / "x.yaml")
    log = tmp_path / "log"
    assert run_cli(["config", "check", str(odd / "x.yaml")], log) == 0, log.read_text()
    assert "[/a]/x.yaml: valid." in "".join(log.read_text().split("\n"))
    assert "[/b]/x.yaml: there is no such file" in fails(["config", "check", "[/b]/x.yaml"], tmp_path / "second")


def test_a_config_that_is_not_there(tmp_path):
    assert "nothing.yaml: there is no such file" in fails(["run", tmp_path / "nothing.yaml"], tmp_path / "log")


def test_resuming_what_is_no_run(tmp_path):
    assert "config.yaml is missing" in fails(["resume", tmp_path], tmp_path / "log")


def test_a_run_from_start_to_the_commands_that_look_at_it(experiment, tmp_path):
    """`run`, `resume` of what is finished, `eval`, `replay stats` and `show`, and the refusal to overwrite."""
    config, log, run = experiment(), tmp_path / "log", tmp_path / "runs" / "run"
    assert run_cli(["run", str(config)], log) == 0, log.read_text()
    written = {path.relative_to(run).parts[0] for path in run.rglob("*") if path.is_file()}
    assert written >= {
        "config.yaml", "versions.json", "metrics.jsonl", "timings.jsonl", "summary.json", "samples", "evaluations",
        "replay", "checkpoints", "latest", "tensorboard",
    }  # fmt: skip
    sample = json.loads((run / "samples" / "iter_000001.jsonl").read_text().splitlines()[0])
    for command in (
        ["resume", run],
        ["eval", run, "--adapter", "base", "--samples", "2", "--output", tmp_path / "eval.json"],
        ["eval", run, "--samples", "2", "--output", tmp_path / "last.json"],
        ["eval", run, "--adapter", "best", "--prompts", "1"],
        ["replay", "stats", run],
        ["replay", "show", run, sample["group"][:-2]],
    ):
        assert run_cli([str(part) for part in command], log) == 0, log.read_text()
    assert len(json.loads((tmp_path / "eval.json").read_text())[0]["outcomes"]) == 4
    final = json.loads((run / "evaluations" / "test_final_sums.json").read_text())
    assert json.loads((tmp_path / "last.json").read_text())[0]["outcomes"] == final["outcomes"]
    for output, why in ((run, "is a folder"), (run / "latest" / "eval.json", "File exists")):
        said = fails(["eval", run, "--output", output], tmp_path / f"unwritable {output.name}")
        assert f"--output: {'cannot write ' if output != run else ''}{output}" in said and why in said
        assert "start engine" not in said
    shutil.rmtree(run / "checkpoints" / "iter_000001" / "policy" / "default")
    assert "cannot copy the adapter" in fails(["eval", run], tmp_path / "gone")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    assert "seed changed since the run began" in fails(["eval", run, "--adapter", "base"], tmp_path / "reseeded")
    (run / "config.yaml").write_text(text)
    said = fails(["run", config], tmp_path / "second")
    assert "rlsf resume" in said
    assert "has no adapter '7'" in fails(["eval", run, "--adapter", "7"], tmp_path / "third")


def test_checking_a_config_imports_no_torch_and_takes_under_two_seconds():
    config = Path(__file__).parent.parent / "configs" / "smoke.yaml"
    code = (
        "import sys, time; start = time.process_time(); sys.argv = ['rlsf', 'config', 'check', sys.argv[1]]\n"
        "from rlsf.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'trl', 'vllm', 'datasets'} & set(sys.modules)\n"
        "print('cpu', time.process_time() - start)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(config)], capture_output=True, text=True, check=True)
    assert float(result.stdout.rsplit("cpu ", 1)[1]) < 2.0, result.stdout


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (Path(__file__).parent.parent / "configs").glob("*.yaml"))
)
def test_every_shipped_config_is_valid(name, tmp_path):
    log = tmp_path / "log"
    assert run_cli(["config", "check", str(Path(__file__).parent.parent / "configs" / name)], log) == 0, log.read_text()
    assert "valid" in log.read_text()
