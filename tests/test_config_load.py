"""YAML to RunConfig: scalars, overrides, exchanged kinds, round trip, speed."""

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlsf.config import load_config, resolved_yaml
from rlsf.config.yaml_text import dump, parse
from rlsf.errors import ConfigError

BASE = """\
name: test
tasks:
  - name: sums
    source: {kind: reasoning_gym, dataset: chain_sum}
  - name: gcd.small
    source: {kind: reasoning_gym, dataset: gcd, params: {max_value: 20}}
sampling: {n: 4, max_tokens: 16}
algorithm: {kind: grpo, loss: dapo, scale_rewards: none, learning_rate: 1e-5, clip_low: 0.3}
reward: {kind: majority, soft: true}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(BASE)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ("1e5x", "1e5x"),
        ("'1e5'", "1e5"),
        ("[1e-3, a]", [1e-3, "a"]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    parsed = parse(text, "x").value
    assert parsed == value
    assert type(parsed) is type(value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=12)
    | st.sampled_from(["1e-5", "1e5", "yes", "0o7", "null", "~", "None", "010", ".5", "2024-01-01", "a: b", "# x", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(json_values)
def test_dumped_yaml_reads_back_the_same(value: object) -> None:
    assert parse(dump(value), "x").value == value


def test_text_that_yaml_1_1_misreads_is_quoted() -> None:
    """Other programs read config.yaml too."""
    assert yaml.safe_load(dump({"a": "yes", "b": "1e-5", "c": "2024-01-01"})) == {
        "a": "yes",
        "b": "1e-5",
        "c": "2024-01-01",
    }


def test_resolved_config_loads_to_an_equal_one(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file, ["algorithm.kind=ppo", "name=1e5", "warm_start.steps=3"])
    again = tmp_path / "resolved.yaml"
    again.write_text(resolved_yaml(config))
    assert load_config(again) == config


def test_merge_keys_and_anchors(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: x\ntasks:\n"
        "  - &first\n    name: a\n    source: {kind: reasoning_gym, dataset: gcd}\n    split: {test: 50}\n"
        "  - <<: *first\n    name: b\n"
    )
    config = load_config(path)
    assert [task.name for task in config.tasks] == ["a", "b"]
    assert config.tasks[1].split.test == 50


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("sampling.n=8", lambda c: c.sampling.n, 8),
        ("--sampling.n=8", lambda c: c.sampling.n, 8),
        ("--algorithm.learning_rate=2e-06", lambda c: c.algorithm.learning_rate, 2e-6),
        ("--evaluation.greedy=False", lambda c: c.evaluation.greedy, False),
        ("--evaluation.patience=None", lambda c: c.evaluation.patience, None),
        ("tasks.0.split.test=50", lambda c: c.tasks[0].split.test, 50),
        ("tasks.sums.iterations=5", lambda c: c.tasks[0].iterations, 5),
        ("tasks.gcd.small.split.test=7", lambda c: c.tasks[1].split.test, 7),
        (
            "tasks.1.source.params.min_numbers=3",
            lambda c: c.tasks[1].source.params,
            {"max_value": 20, "min_numbers": 3},
        ),
        (
            "algorithm={'learning_rate': 1e-06}",
            lambda c: (c.algorithm.learning_rate, c.algorithm.clip_low),
            (1e-6, 0.3),
        ),
        ("algorithm.betas=[0.8, 0.9]", lambda c: c.algorithm.betas, (0.8, 0.9)),
        ("warm_start.steps=4", lambda c: c.warm_start.steps, 4),
        ("name=2024", lambda c: c.name, "2024"),
        ("name='a'", lambda c: c.name, "a"),
        ("tasks.0.template={prompt}", lambda c: c.tasks[0].template, "{prompt}"),
        ("tasks.0.template=Q: {prompt} # 1", lambda c: c.tasks[0].template, "Q: {prompt} # 1"),
        ("tasks.0.system=null", lambda c: c.tasks[0].system, None),
        ("tasks.0.system=a=b", lambda c: c.tasks[0].system, "a=b"),
        ("reward.soft=false", lambda c: c.reward.soft, False),
    ],
)
def test_override(config_file: Path, override: str, read, value: object) -> None:
    assert read(load_config(config_file, [override])) == value


def test_the_last_override_counts(config_file: Path) -> None:
    assert load_config(config_file, ["sampling.n=8", "--sampling.n=2"]).sampling.n == 2


def test_a_section_without_kind_is_of_the_default_kind(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: x\ntasks: [{name: a, source: {kind: reasoning_gym, dataset: gcd}}]\n")
    config = load_config(path, ["algorithm.learning_rate=1e-6", "engine.max_model_len=512"])
    assert (config.algorithm.kind, config.algorithm.learning_rate) == ("grpo", 1e-6)
    assert (config.engine.kind, config.engine.max_model_len) == ("auto", 512)


@pytest.mark.parametrize("order", [0, 1])
def test_an_exchanged_kind_keeps_what_it_knows_and_says_what_it_drops(
    config_file: Path, caplog: pytest.LogCaptureFixture, order: int
) -> None:
    overrides = ["algorithm.kind=ppo", "algorithm.value_clip=0.5"]
    with caplog.at_level(logging.WARNING):
        algorithm = load_config(config_file, overrides[::-1] if order else overrides).algorithm
    assert (algorithm.kind, algorithm.value_clip) == ("ppo", 0.5)
    assert (algorithm.learning_rate, algorithm.clip_low) == (1e-5, 0.3)
    dropped = [record.getMessage() for record in caplog.records]
    assert len(dropped) == 2
    assert any("run.yaml:8: algorithm.loss is left out" in line for line in dropped)
    assert any("algorithm.scale_rewards" in line for line in dropped)


def test_a_key_of_the_same_name_but_another_meaning_does_not_move(config_file: Path) -> None:
    """GRPO's loss is dapo here, which DPO does not know: DPO takes its own default."""
    assert load_config(config_file, ["algorithm.kind=dpo"]).algorithm.loss == "sigmoid"


def test_an_exchanged_kind_never_drops_what_the_command_line_set(config_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"override algorithm\.loss=dapo: algorithm\.loss: unknown key of kind ppo"):
        load_config(config_file, ["algorithm.kind=ppo", "algorithm.loss=dapo"])


def test_a_typo_of_the_file_survives_an_exchanged_kind(config_file: Path) -> None:
    config_file.write_text(BASE.replace("clip_low", "clip_lwo"))
    with pytest.raises(ConfigError, match=r"run\.yaml:8: algorithm\.clip_lwo: unknown key"):
        load_config(config_file, ["algorithm.kind=ppo"])


@pytest.mark.parametrize(
    ("iterations", "budgets", "expected"),
    [(20, (None, None), (10, 10)), (7, (None, None), (4, 3)), (20, (5, None), (5, 15)), (99, (5, 3), (5, 3))],
)
def test_budgets(config_file: Path, iterations: int, budgets: tuple, expected: tuple) -> None:
    overrides = [f"loop.iterations={iterations}", *(f"tasks.{i}.iterations={b}" for i, b in enumerate(budgets))]
    assert load_config(config_file, overrides).task_iterations == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(text=st.text(max_size=60) | st.from_regex(r"[a-z.]{0,12}[=:]?[\[\]{}&*!|>'\"%@`a-z0-9:, -]{0,20}"))
def test_no_text_breaks_the_loader(config_file: Path, text: str) -> None:
    """As a file and as an override: a config or a ConfigError, never anything else."""
    broken = config_file.with_name("any.yaml")
    broken.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        load_config(broken)
    try:
        load_config(config_file, [text])
    except ConfigError as error:
        assert str(error)


def test_loading_takes_less_than_two_seconds_and_no_torch(config_file: Path) -> None:
    code = (
        "import sys; from rlsf.config import load_config, check_config\n"
        f"config = load_config({str(config_file)!r}); check_config(config)\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'trl', 'vllm', 'reasoning_gym') if m in sys.modules])"
    )
    start = time.process_time(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    assert done.stdout.strip() == "[]"
    assert time.monotonic() - start[1] < 10  # about 0.6 s on an idle machine; the margin is for busy ones
