"""Scoring completions from a file: what is read, what is refused, and what comes out, through the real command."""

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter
from rich.console import Console

from reward.config import RewardConfig
from reward.factory import make_reward
from reward.types import RewardContext, RewardError, TokenStats
from rlsf.config.load import load_config
from rlsf.errors import ConfigError, DataError, RunDirError
from rlsf.evaluation.grading import Grader
from rlsf.files import check_output, write_parts
from rlsf.offline.completions import read_completions
from rlsf.offline.config import ScoreConfig, load_score_config
from rlsf.offline.demands import Demands, demands_of, no_model_error
from rlsf.offline.rollouts import as_rollouts, completion_ids, with_logprobs
from rlsf.offline.score import score_file
from rlsf.run_dir import check_not_of_a_run, read_jsonl
from rollouts.types import SamplingParams
from tests.killing import run_cli
from tests.reward_fakes import ScriptedEngine

ROWS = [
    {"prompt": "7 + 5 = ?", "completion": "12", "reference": "12"},
    {"prompt": "2 + 2 = ?", "completion": "5", "reference": "4"},
    {"prompt": "7 + 5 = ?", "completion": "12.0", "reference": "12"},
    {"prompt": "7 + 5 = ?", "completion": "13", "reference": "12"},
]
MAJORITY = "reward: {kind: majority}\n"


def write(path: Path, rows: Sequence[Any] | str) -> Path:
    path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(tmp_path: Path, rows: Sequence[Any] | str, **settings: Any) -> Any:
    return read_completions(write(tmp_path / "answers.jsonl", rows), ScoreConfig(**settings))


def score(tmp_path: Path, rows: Sequence[Any] | str, config: str, *more: str, fails: bool = False) -> str:
    """`rlsf score` on `rows` into out.jsonl; returns what it said."""
    source, settings = write(tmp_path / "answers.jsonl", rows), write(tmp_path / "reward.yaml", config)
    log = tmp_path / f"log{len(list(tmp_path.glob('log*')))}"
    output = str(tmp_path / "out.jsonl")
    status = run_cli(["score", str(source), "--reward", str(settings), "--output", output, *more], log)
    said = log.read_text()
    assert status == (2 if fails else 0), said
    assert "Traceback" not in said
    return " ".join(said.split())


def scored(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


# -- the file ----------------------------------------------------------------------------------------------------------


def test_rows_of_a_prompt_form_a_group_in_the_order_in_which_they_come(tmp_path: Path) -> None:
    groups = read(tmp_path, ROWS)
    assert [[c.text for c in group.completions] for group in groups] == [["12", "12.0", "13"], ["5"]]
    assert [[c.position for c in group.completions] for group in groups] == [[0, 2, 3], [1]]
    assert groups[0].prompt.content == ({"role": "user", "content": "7 + 5 = ?"},)
    assert [group.prompt.reference for group in groups] == ["12", "4"]


def test_one_row_per_prompt_says_the_same_as_one_per_completion(tmp_path: Path) -> None:
    single = [{"prompt": "a", "completion": text, "finish_reason": "stop", "level": 3} for text in ("1", "2")]
    together = [{"prompt": "a", "completions": ["1", "2"], "finish_reason": ["stop", "stop"], "level": 3}]
    one, other = read(tmp_path, single), read(tmp_path, together)
    assert [dict(c.columns) for c in one[0].completions] == [dict(c.columns) for c in other[0].completions]
    assert one[0].prompt == other[0].prompt
    assert one[0].prompt.metadata == {"level": 3}
    several = [{"prompt": p, "completions": texts} for p, texts in (("a", ["1", "2"]), ("b", ["3"]), ("a", ["4"]))]
    assert [[c.position for c in group.completions] for group in read(tmp_path, several)] == [[0, 1, 3], [2]]


def test_ids_and_groups_are_taken_as_they_are_given(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "prompt_id": 7, "completion": "1", "group": "first"},
        {"prompt": "a", "prompt_id": 7, "completion": "2", "group": "second", "temperature": 0.5},
    ]
    groups = read(tmp_path, rows)
    assert [(group.id, group.prompt.id, group.temperature) for group in groups] == [
        ("first", "7", 1.0),
        ("second", "7", 0.5),
    ]


def test_completions_cut_off_are_marked(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completions": ["12", "13"], "finish_reason": ["length", None]}]
    assert [c.finish_reason for c in read(tmp_path, rows)[0].completions] == ["length", "stop"]
    everyone = [{"prompt": "a", "completions": ["12", "13"], "finish_reason": "length"}]
    assert [c.finish_reason for c in read(tmp_path, everyone)[0].completions] == ["length", "length"]


def test_the_wording_of_the_config_is_that_of_the_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": "7 + 5", "completion": "12"}]
    prompt = read(tmp_path, rows, system="Be brief.", template="{prompt} = ?")[0].prompt
    assert [m["content"] for m in prompt.content] == ["Be brief.", "7 + 5 = ?"]
    assert read(tmp_path, rows, chat=False, template="{prompt} =")[0].prompt.content == "7 + 5 ="
    chat = [{"prompt": [{"role": "user", "content": "hi"}], "completion": "12"}]
    assert read(tmp_path, chat)[0].prompt.text == "hi"


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    text = "\ufeff" + "\r\n".join(json.dumps(row) for row in ROWS) + "\r\n\r\n"
    (tmp_path / "answers.jsonl").write_bytes(text.encode())
    groups = read_completions(tmp_path / "answers.jsonl", ScoreConfig())
    assert [len(group.completions) for group in groups] == [3, 1]


def test_metadata_is_what_all_rows_of_a_prompt_agree_on_and_never_an_earlier_scoring(tmp_path: Path) -> None:
    earlier = {"reward": 1.0, "components": {}, "evidence": {"reference": "12"}}
    rows = [{"prompt": "a", "completion": text, "level": 3, "drawn": text, **earlier} for text in ("1", "2")]
    assert read(tmp_path, rows)[0].prompt.metadata == {"level": 3}


BROKEN = {
    "empty file": ("", "answers.jsonl: the file has no rows"),
    "no JSON": ('{"prompt": "a", "completion": "1"}\n{"prompt"\n', "answers.jsonl:2: not valid JSON"),
    "no object": ("[1]\n", "answers.jsonl:1: the row is a list, not an object"),
    "no prompt": ([{"promt": "a", "completion": "1"}], "answers.jsonl:1: there is no column 'prompt'; columns: promt"),
    "no completion": (
        [{"prompt": "a", "completoin": "1"}],
        "answers.jsonl:1: there is neither 'completion' nor 'completions'; columns: prompt, completoin; did you mean "
        "'completoin'?",
    ),
    "both shapes in a row": ([{"prompt": "a", "completion": "1", "completions": ["1"]}], ":1: the row has both"),
    "both shapes in a file": (
        [ROWS[0], {"prompt": "a", "completions": ["1"]}],
        "answers.jsonl:2: the row has 'completions', and ",
    ),
    "number for a completion": ([{"prompt": "a", "completion": 12}], ":1: a completion must be text, found 12"),
    "chat for a completion": (
        [{"prompt": "a", "completion": [{"role": "assistant", "content": "12"}]}],
        "of a chat give the words of the assistant's last message",
    ),
    "null for a completion": ([{"prompt": "a", "completions": ["1", None]}], "must be text, found null"),
    "no completions": ([{"prompt": "a", "completions": []}], ":1: completions must be a list of at least one text"),
    "unknown reason": (
        [{"prompt": "a", "completion": "1", "finish_reason": "eos"}],
        ':1: finish_reason is "eos"; expected "stop" or "length"',
    ),
    "too few reasons": (
        [{"prompt": "a", "completions": ["1", "2"], "finish_reason": ["stop"]}],
        ":1: 2 completions, but 1 entries in finish_reason",
    ),
    "temperature below 0": (
        [{"prompt": "a", "completion": "1", "temperature": -1}],
        ":1: temperature is -1; expected a number of at least 0",
    ),
    "temperature beyond all numbers": (
        f'{{"prompt": "a", "completion": "1", "temperature": 1{"0" * 400}}}\n',
        ":1: temperature is 1000",
    ),
    "nested too deep": (
        f'{{"prompt": "a", "completion": "1", "x": {"[" * 65}{"]" * 65}}}\n',
        ":1: the column 'x' is nested more than 64 levels deep",
    ),
    "temperature true": ([{"prompt": "a", "completion": "1", "temperature": True}], ":1: temperature is true;"),
    "two temperatures": (
        [{"prompt": "a", "completion": "1", "temperature": t} for t in (0.5, 1)],
        ":2: temperature 1, and ",
    ),
    "an id that is a list": ([{"prompt": "a", "completion": "1", "prompt_id": [1]}], ":1: prompt_id is [1]; expected"),
    "one id for two prompts": (
        [{"prompt": p, "completion": "1", "prompt_id": "x"} for p in ("a", "b")],
        ":2: prompt_id 'x' is that of another prompt in ",
    ),
    "two references": (
        [{"prompt": "a", "completion": "1", "reference": r} for r in ("1", "2")],
        ":2: the reference is '2', and ",
    ),
    "one group of two prompts": (
        [{"prompt": p, "completion": "1", "group": "g"} for p in ("a", "b")],
        ":2: group 'g' holds another prompt in ",
    ),
    "NaN": ('{"prompt": "a", "completion": "1", "x": NaN}\n', ":1: the row holds NaN or an infinity"),
    "half a character": ('{"prompt": "a", "completion": "\\ud83d"}\n', ":1: the column 'completion' holds half a"),
    "empty prompt": ([{"prompt": " ", "completion": "1"}], ":1: the column 'prompt' is empty"),
    "reference is a list": ([{"prompt": "a", "completion": "1", "reference": [1]}], "the reference in column"),
}


def test_an_integer_larger_than_any_float_is_a_reference(tmp_path: Path) -> None:
    row = {"prompt": "200!", "completion": "1", "reference": math.factorial(200), "x": json.loads("[" * 64 + "]" * 64)}
    assert read(tmp_path, [row])[0].prompt.reference == str(math.factorial(200))


@pytest.mark.parametrize("case", BROKEN, ids=lambda name: name.replace(" ", "-"))
def test_a_broken_file_is_refused_with_file_and_line(case: str, tmp_path: Path) -> None:
    rows, expected = BROKEN[case]
    with pytest.raises(DataError) as error:
        read(tmp_path, rows)
    assert expected in str(error.value)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a \.jsonl file"):
        read_completions(write(tmp_path / "answers.csv", "prompt,completion\na,1\n"), ScoreConfig())
    with pytest.raises(DataError, match="there is no such file"):
        read_completions(tmp_path / "answer.jsonl", ScoreConfig())


# -- the config --------------------------------------------------------------------------------------------------------


def test_the_config_of_a_run_is_that_of_its_first_task(tmp_path: Path) -> None:
    run = Path(__file__).parent.parent / "configs" / "continual.yaml"
    config, loaded = load_score_config(run, ["reward={kind: verifier}"]), load_config(run)
    assert config.reward.kind == "verifier"
    assert (config.model, config.engine, config.sampling) == (loaded.model, loaded.engine, loaded.sampling)
    first = loaded.tasks[0]
    assert (config.answer, config.template, config.system) == (first.answer, first.template, first.system)
    assert config.task.verifier == first.verifier


@pytest.mark.parametrize(
    ("text", "override", "expected"),
    [
        (
            "reward: {kind: majority, sofd: true}\n",
            None,
            "reward.sofd: unknown key of kind majority; did you mean soft?",
        ),
        ("reward: {kind: applause}\n", None, 'reward.kind: found "applause"; expected one of majority'),
        ("rewards: {kind: majority}\n", None, "rewards: unknown key; did you mean reward?"),
        ("", None, "reward.yaml: the file is empty"),
        (MAJORITY, "sampling.temperature=-1", "sampling.temperature: found -1; expected at least 0"),
        (MAJORITY, "template=words", "template: must contain {prompt}"),
        (MAJORITY, "reward.max_tokens=3", "override reward.max_tokens=3: reward.max_tokens: unknown key of kind"),
    ],
)
def test_a_wrong_config_is_refused_with_its_line(
    text: str, override: str | None, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        load_score_config(write(tmp_path / "reward.yaml", text), [override] if override else [])
    assert expected in str(error.value)


# -- what a reward demands ---------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "majority": {},
    "semantic_entropy": {},
    "self_certainty": {},
    "confidence": {},
    "token_entropy": {},
    "sequence_probability": {},
    "p_true": {},
    "judge": {},
    "pairwise_judge": {},
    "meta_judge": {},
    "reflection": {},
    "verifier": {},
    "function": {"path": f"{__file__}:counts_its_tokens"},
    "rules": {"rules": [{"kind": "expression", "name": "short", "holds": "tokens < 5"}]},
    "length_penalty": {},
    "repetition_penalty": {},
    "language_penalty": {},
    "length_controlled": {"reward": {"kind": "majority"}},
    "weighted_sum": {"components": {"a": {"reward": {"kind": "length_penalty"}}}},
    "product": {"components": {"a": {"reward": {"kind": "sequence_probability", "pay": "probability"}}}},
    "minimum": {"components": {"a": {"reward": {"kind": "self_certainty"}}}},
    "gate": {"condition": {"kind": "length_penalty"}, "reward": {"kind": "majority"}},
}
"""Every kind of reward, where it matters with settings that make it demand most."""


def counts_its_tokens(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def reward_config(kind: str) -> Any:
    return TypeAdapter(RewardConfig).validate_python({"kind": kind, **KINDS[kind]})


class TouchedError(Exception):
    """A reward read what it did not demand."""


class Unknown(tuple):  # type: ignore[type-arg]
    """Tokens or log-probabilities that nobody knows."""

    def __len__(self) -> int:
        raise TouchedError

    def __iter__(self) -> Iterator[Any]:
        raise TouchedError

    def __getitem__(self, key: Any) -> Any:
        raise TouchedError


def test_every_kind_of_reward_is_tried() -> None:
    kinds = {member.model_fields["kind"].default for member in RewardConfig.__origin__.__args__}
    assert kinds == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_reads_no_more_than_it_is_known_to_demand(kind: str, tmp_path: Path) -> None:
    """Tokens and log-probabilities that were not demanded raise where they are looked at."""
    config = reward_config(kind)
    reward = make_reward(config)
    demands = demands_of(config, reward.needs)
    groups = read(tmp_path, ROWS)
    grader = Grader(ScoreConfig().task)
    rollouts = as_rollouts(groups, SamplingParams(), None)
    for group in rollouts:
        for rollout in group:
            object.__setattr__(rollout, "completion_ids", (5, 1) if demands.any else Unknown())
            object.__setattr__(rollout, "logprobs", (-1.0, -1.0) if demands.logprobs else Unknown())
    context = RewardContext(
        prompts={group.prompt.id: group.prompt for group in groups},
        extract=grader.extract,
        **services(reward.needs),
    )
    reward.score(rollouts, context)


def services(needs: frozenset[str]) -> dict[str, Any]:
    stats = TokenStats(*[np.full(2, 0.5)] * 4)
    known = {
        "engine": ScriptedEngine(lambda prompt, index: "3"),
        "token_stats": lambda rollouts, which: [stats] * len(rollouts),
        "likelihood": lambda questions, replies, which: np.full((len(questions), len(replies)), -1.0),
        "answer_tokens": lambda rollout: (0, 1),
    }
    return {name: service for name, service in known.items() if name in needs}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("self_certainty", "reward: self_certainty reads the model's probabilities, and no model is named: do so"),
        ("minimum", "reward.components.a.reward: self_certainty reads the model's probabilities"),
        ("product", "reward.components.a.reward: sequence_probability reads the model's probabilities"),
        ("judge", "reward: judge asks the model questions"),
        ("gate", "reward.condition: length_penalty may count tokens, and no model is named to count them by"),
        ("function", "reward: function may count tokens"),
    ],
)
def test_the_reward_that_demands_a_model_is_named(kind: str, expected: str) -> None:
    config = reward_config(kind)
    assert demands_of(config, make_reward(config).needs).any
    assert expected in str(no_model_error(config, "reward", "do so"))


def test_what_text_alone_can_answer_demands_nothing() -> None:
    for kind in ("majority", "semantic_entropy", "verifier", "language_penalty"):
        config = reward_config(kind)
        assert demands_of(config, make_reward(config).needs) == Demands()


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_text_and_its_end(tmp_path: Path) -> None:
    from rlsf.models import load_tokenizer, resolve_model

    tokenizer = load_tokenizer(resolve_model("lab"))
    rows = [{"prompt": "7 + 5 = ?", "completions": ["12", "12", ""], "finish_reason": ["stop", "length", "stop"]}]
    groups = read(tmp_path, rows, sampling={"temperature": 0.7, "stop": ["\n"]})
    whole, cut, empty = as_rollouts(groups, ScoreConfig(sampling={"stop": ["\n"]}).sampling.params(), tokenizer)[0]
    assert whole.completion_ids == (*cut.completion_ids, tokenizer.eos_token_id)
    assert tokenizer.decode(list(cut.completion_ids)) == "12"
    assert empty.completion_ids == (tokenizer.eos_token_id,)
    assert whole.prompt_ids == cut.prompt_ids and len(whole.prompt_ids) > 5
    assert (whole.sampling.temperature, whole.sampling.stop, whole.sampling.n) == (0.7, ("\n",), 3)
    written = groups[0].completions[0]
    assert completion_ids(tokenizer, written) == whole.completion_ids


def test_log_probabilities_are_those_of_the_policy_at_each_temperature(tmp_path: Path) -> None:
    from rlsf.config.schema import ModelConfig
    from rlsf.models import resolve_model
    from rlsf.policy import Policy

    policy = Policy.create(resolve_model("lab"), ModelConfig(), seed=0)
    rows = [
        {"prompt": "7 + 5 = ?", "completions": ["12", "13"], "temperature": 0.5},
        {"prompt": "7 + 6 = ?", "completions": ["13", "7"], "temperature": 1.0},
    ]
    rollouts = as_rollouts(read(tmp_path, rows), SamplingParams(), policy.tokenizer)
    for group in with_logprobs(rollouts, policy):
        pairs = [(rollout.prompt_ids, rollout.completion_ids) for rollout in group]
        expected = policy.score_tokens(pairs, temperature=group[0].sampling.temperature)
        assert [list(rollout.logprobs) for rollout in group] == [pytest.approx(row, abs=1e-4) for row in expected]


# -- the command -------------------------------------------------------------------------------------------------------


def test_majority_takes_no_model_and_keeps_rows_and_order(tmp_path: Path) -> None:
    said = score(tmp_path, ROWS, MAJORITY)
    rows = scored(tmp_path)
    assert [row["reward"] for row in rows] == [1, 1, 1, 0]
    assert [{key: row[key] for key in source} for row, source in zip(rows, ROWS, strict=True)] == ROWS
    assert rows[3]["evidence"]["votes"] == {"12": 2, "13": 1}
    assert rows[0]["components"] == {"majority": 1}
    assert "4 completions of 2 prompts: mean reward 0.75" in said
    assert not list(tmp_path.glob("*.tmp"))


def test_scoring_by_votes_imports_no_torch_and_starts_in_a_second_or_two(tmp_path: Path) -> None:
    source, config = write(tmp_path / "answers.jsonl", ROWS), write(tmp_path / "reward.yaml", MAJORITY)
    code = (
        "import sys, time; start = time.process_time()\n"
        f"sys.argv = ['rlsf', 'score', {str(source)!r}, '--reward', {str(config)!r}]\n"
        "from rlsf.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'trl', 'vllm', 'datasets'} & set(sys.modules)\n"
        "print('cpu', time.process_time() - start)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout.rsplit("cpu ", 1)[1]) < 3.0, result.stdout
    assert "7 + 5 = ?" in result.stdout and "mean reward 0.75" in result.stdout


def test_self_certainty_reads_the_named_model(tmp_path: Path) -> None:
    from rlsf.config.schema import ModelConfig
    from rlsf.models import resolve_model
    from rlsf.policy import Policy

    score(tmp_path, ROWS, "reward: {kind: self_certainty}\nmodel: {source: lab}\n")
    policy = Policy.create(resolve_model("lab"), ModelConfig(), seed=0)
    groups = as_rollouts(read(tmp_path, ROWS), SamplingParams(), policy.tokenizer)
    found: list[TokenStats] = policy.token_stats([rollout for group in groups for rollout in group])
    expected = [float(stats.self_certainty.mean()) for stats in found]  # of rows 1, 3, 4 and 2
    rows = scored(tmp_path)
    assert [rows[place]["reward"] for place in (0, 2, 3, 1)] == pytest.approx(expected, rel=1e-4)


def test_a_model_is_asked_for_where_one_is_needed_and_nothing_is_written(tmp_path: Path) -> None:
    said = score(tmp_path, ROWS, "reward: {kind: sequence_probability}\n", fails=True)
    assert "reward: sequence_probability reads the model's probabilities, and no model is named" in said
    assert "add `model: {source: ...}`" in said
    assert not (tmp_path / "out.jsonl").exists()


def test_answers_in_free_text_are_compared_by_the_named_model(tmp_path: Path) -> None:
    config = "reward: {kind: majority}\nanswer: {kind: text, equivalence: {kind: embedding, max_distance: 1.99}}\n"
    rows = [{"prompt": "Who?", "completions": ["Paris", "the city of Paris", "42"]}]
    said = score(tmp_path, rows, config, fails=True)
    assert "answer.equivalence: embedding takes a model, and none is named: add `model" in said
    score(tmp_path, rows, config + "model: {source: lab}\n")
    assert [row["reward"] for row in scored(tmp_path)] == [1, 1, 1]  # at such a distance everything is the same


def test_length_counts_the_tokens_of_the_named_model(tmp_path: Path) -> None:
    config = "reward: {kind: length_penalty, max_tokens: 10}\nmodel: {source: lab}\n"
    score(tmp_path, [{"prompt": "7 + 5 = ?", "completion": "12"}], config)
    assert scored(tmp_path)[0]["reward"] == pytest.approx(-0.3)  # two digits and the end


def test_verifiers_grade_with_the_references_of_the_file(tmp_path: Path) -> None:
    score(tmp_path, ROWS, "reward: {kind: verifier}\n")
    assert [row["reward"] for row in scored(tmp_path)] == [1, 0, 1, 0]
    bare = [*ROWS[:2], {"prompt": "1 + 1 = ?", "completion": "2"}]
    said = score(tmp_path, bare, "reward: {kind: verifier}\n", fails=True)
    assert "answers.jsonl:3: the row has no `reference`, and reward: verifier compares with one" in said


def test_completions_cut_off_cast_no_vote(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completions": ["7", "7", "9"], "finish_reason": ["length", "length", "stop"]}]
    score(tmp_path, rows, MAJORITY)
    assert [(row["completion"], row["finish_reason"], row["reward"]) for row in scored(tmp_path)] == [
        ("7", "length", 0),
        ("7", "length", 0),
        ("9", "stop", 1),
    ]


def test_settings_of_the_command_line_reach_the_reward(tmp_path: Path) -> None:
    score(tmp_path, ROWS, MAJORITY, "--set", "reward.soft=true")
    assert [row["reward"] for row in scored(tmp_path)] == pytest.approx([2 / 3, 1, 2 / 3, 1 / 3])
    score(tmp_path, ROWS, MAJORITY, "--reward.soft=true", "--answer.kind=text")
    assert [row["reward"] for row in scored(tmp_path)] == pytest.approx([1 / 3, 1, 1 / 3, 1 / 3])


def test_a_function_written_for_trl_sees_the_columns_of_the_file(tmp_path: Path) -> None:
    function = write(tmp_path / "mine.py", "def f(completions, level, **rest):\n    return [float(x) for x in level]\n")
    rows = [{"prompt": "a", "completion": "1", "level": 3}, {"prompt": "b", "completion": "1", "level": 4}]
    score(tmp_path, rows, f"reward: {{kind: function, path: {function}:f}}\nmodel: {{source: lab}}\n")
    assert [row["reward"] for row in scored(tmp_path)] == [3, 4]


def test_a_scored_file_can_be_scored_again(tmp_path: Path) -> None:
    score(tmp_path, ROWS, MAJORITY)
    first = scored(tmp_path)
    again = [{key: row[key] for key in reversed(row)} for row in first]
    score(tmp_path, again, MAJORITY)
    assert scored(tmp_path) == first


def test_a_reward_with_a_memory_looks_at_the_file_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or values would depend on where a batch ends."""
    monkeypatch.setattr("rlsf.offline.batches.BATCH", 2)
    rows = [{"prompt": f"{i}", "completions": ["1"] * (i + 1) + ["2"] * 3} for i in range(6)]
    part: Mapping[str, Any] = {"normalize": "running", "reward": {"kind": "majority", "soft": True}}
    config = ScoreConfig.model_validate({"reward": {"kind": "weighted_sum", "components": {"votes": part}}})
    source, output = write(tmp_path / "answers.jsonl", rows), tmp_path / "out.jsonl"
    score_file(source, config, Console(), output=output)
    rewards = [row["reward"] for row in scored(tmp_path)]
    assert sum(rewards) == pytest.approx(0, abs=1e-9)  # standardised over everything


def test_a_schedule_of_weights_is_followed_to_the_named_iteration(tmp_path: Path) -> None:
    source = write(tmp_path / "answers.jsonl", [{"prompt": "1", "completions": ["1", "1", "2"]}])
    output = tmp_path / "out.jsonl"
    part: Mapping[str, Any] = {"weight": {0: 1.0, 10: 3.0}, "reward": {"kind": "majority"}}
    reward = {"kind": "weighted_sum", "components": {"votes": part}}
    for iteration, weight in ((0, 1), (5, 2), (10, 3)):
        config = ScoreConfig.model_validate({"reward": reward, "iteration": iteration})
        score_file(source, config, Console(), output=output)
        assert [row["reward"] for row in scored(tmp_path)] == [weight, weight, 0]


def test_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ScoreConfig.model_validate({"reward": {"kind": "majority", "soft": True}})
    rows = [{"prompt": f"{i}", "completions": ["1", "2", "2"], "temperature": 1 + i % 2} for i in range(7)]
    source, output = write(tmp_path / "answers.jsonl", rows), tmp_path / "out.jsonl"
    score_file(source, config, Console(), output=output)
    whole = scored(tmp_path)
    monkeypatch.setattr("rlsf.offline.batches.BATCH", 4)
    score_file(source, config, Console(), output=output)
    assert scored(tmp_path) == whole


def test_the_table_shows_rewards_beside_completions_of_any_length(tmp_path: Path) -> None:
    long = [{"prompt": "why " * 40, "completion": text} for text in ("because " * 40, "\x1b[31mred", "7")]
    source, config = write(tmp_path / "answers.jsonl", [*long, *ROWS]), write(tmp_path / "reward.yaml", MAJORITY)
    arguments = ["score", str(source), "--reward", str(config), "--set", "reward.min_share=0.5"]
    assert run_cli(arguments, tmp_path / "log") == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert max(map(len, lines[:-1])) <= 80
    first = next(line for line in lines if "because" in line)
    assert first.split("│")[1].strip() == "1" and first.split("│")[4].strip() == "no opinion"
    assert "\x1b" not in (tmp_path / "log").read_text()
    assert next(line for line in lines if "│ 13" in line).split("│")[4].strip() == "0"


def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    source, config = write(tmp_path / "answers.jsonl", ROWS), write(tmp_path / "reward.yaml", MAJORITY)
    arguments = ["score", str(source), "--reward", str(config), "--output", str(tmp_path)]
    assert run_cli(arguments, tmp_path / "log") == 2
    assert "is a folder; name a file in it" in " ".join((tmp_path / "log").read_text().split())


def test_a_pipe_is_written_to_and_stays_one_and_a_link_stays_a_link(tmp_path: Path) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    check_output(pipe)
    reader = ThreadPoolExecutor(1).submit(pipe.read_text)
    write_parts(pipe, ("a", "b"))
    assert reader.result() == "ab" and pipe.is_fifo()
    link.symlink_to(target)
    check_output(link)
    write_parts(link, ("c",))
    assert link.is_symlink() and target.read_text() == "c"


def test_the_config_is_not_overwritten_with_what_it_scores(tmp_path: Path) -> None:
    source, config = write(tmp_path / "answers.jsonl", ROWS), write(tmp_path / "reward.yaml", MAJORITY)
    assert run_cli(["score", str(source), "--reward", str(config), "--output", str(config)], tmp_path / "log") == 2
    assert "is the file of --reward" in (tmp_path / "log").read_text() and config.read_text() == MAJORITY


def test_a_prompt_beyond_the_context_is_refused_with_its_line(tmp_path: Path) -> None:
    rows = [ROWS[0], {"prompt": "1 + " * 2000, "completion": "2"}]
    said = score(tmp_path, rows, "reward: {kind: self_certainty}\nmodel: {source: lab}\n", fails=True)
    assert "answers.jsonl:2: prompt and completion have" in said and "the model's context has" in said


def test_what_the_tokenizer_cannot_write_is_told(tmp_path: Path) -> None:
    rows = [ROWS[0], {"prompt": "a", "completion": "\u2603"}]
    said = score(tmp_path, rows, "reward: {kind: self_certainty}\nmodel: {source: lab}\n")
    assert "cannot write 1 of the completions as they are (the first: " in said and "answers.jsonl:2" in said


def test_prompts_of_a_run_can_be_scored_by_the_config_of_the_run(tmp_path: Path) -> None:
    config = Path(__file__).parent.parent / "configs" / "smoke.yaml"
    source = write(tmp_path / "answers.jsonl", ROWS)
    assert run_cli(["score", str(source), "--reward", str(config)], tmp_path / "log") == 0
    assert "4 completions of 2 prompts" in (tmp_path / "log").read_text()


def test_references_that_contradict_each_other_trouble_only_those_who_read_them(tmp_path: Path) -> None:
    rows = [{"prompt": "1", "completion": "1", "reference": r} for r in ("1", "1.0", "2")]
    score(tmp_path, rows, MAJORITY)
    assert [row["reward"] for row in scored(tmp_path)] == [1, 1, 1]
    said = score(tmp_path, rows, "reward: {kind: verifier}\n", fails=True)
    assert "the reference is '1.0', and" in said and "has '1' for the same prompt" in said


def test_what_was_scored_before_an_error_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlsf.offline.batches.BATCH", 2)
    function = (
        "def f(completions, **rest):\n    assert '3' not in completions\n    return [float(c) for c in completions]\n"
    )
    config = ScoreConfig.model_validate(
        {"reward": {"kind": "function", "path": f"{write(tmp_path / 'mine.py', function)}:f"}, "chat": False}
    )
    rows = [{"prompt": f"{i}", "completions": [f"{2 * i + 1}", f"{2 * i + 2}"]} for i in range(3)]
    output = tmp_path / "out.jsonl"
    with pytest.raises(RewardError, match="raised AssertionError"):
        score_file(write(tmp_path / "answers.jsonl", rows), config, Console(), output=output)
    assert not output.exists()
    assert [row["reward"] for row in read_jsonl(tmp_path / "out.part.jsonl")] == [1, 2]
    with pytest.raises(RewardError, match="raised AssertionError"):
        score_file(tmp_path / "answers.jsonl", config, Console(), output=output)
    assert len(list(read_jsonl(tmp_path / "out.part2.jsonl"))) == 2  # and what was saved before stays


def test_a_function_is_given_tokens_only_where_it_names_them(tmp_path: Path) -> None:
    function = "def f(completions, **rest):\n    return [float('completion_ids' in rest)] * len(completions)\n"
    score(tmp_path, ROWS, f"reward: {{kind: function, path: {write(tmp_path / 'mine.py', function)}:f}}\n")
    assert [row["reward"] for row in scored(tmp_path)] == [0] * 4


def test_a_label_free_reward_gets_no_reference_to_see(tmp_path: Path) -> None:
    """Poisoned references change nothing."""
    score(tmp_path, ROWS, MAJORITY)
    clean = [row["reward"] for row in scored(tmp_path)]
    score(tmp_path, [{**row, "reference": "666"} for row in ROWS], MAJORITY)
    assert [row["reward"] for row in scored(tmp_path)] == clean


def test_scores_that_cannot_be_written_are_kept_beside_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"

    def write_but(path: Path, parts: Iterable[str]) -> None:
        if path == output:
            raise OSError(errno.EIO, "Input/output error")
        write_parts(path, parts)

    monkeypatch.setattr("rlsf.offline.score.write_parts", write_but)
    config = ScoreConfig.model_validate({"reward": {"kind": "majority"}})
    with pytest.raises(RunDirError, match=r"cannot write .*out.jsonl: Input/output error"):
        score_file(write(tmp_path / "answers.jsonl", ROWS), config, Console(), output=output)
    assert len(list(read_jsonl(tmp_path / "out.part.jsonl"))) == len(ROWS)


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples/sum.jsonl", "config.yaml"])
def test_what_a_run_keeps_for_itself_is_no_output(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "versions.json").write_text("{}")
    check_not_of_a_run(tmp_path / "run" / name)
    (tmp_path / "run" / "config.yaml").write_text("")
    check_not_of_a_run(tmp_path / "run" / "scored.jsonl")
    check_not_of_a_run(tmp_path / "run" / "evidence.html")
    with pytest.raises(RunDirError, match="is a file of the run itself"):
        check_not_of_a_run(tmp_path / "run" / name)
    config = ScoreConfig.model_validate({"reward": {"kind": "majority"}})
    with pytest.raises(RunDirError, match="is a file of the run itself"):
        score_file(write(tmp_path / "answers.jsonl", ROWS), config, Console(), output=tmp_path / "run" / name)


def test_an_endpoint_that_never_answers_is_an_error_that_says_why(tmp_path: Path) -> None:
    by = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": None, "timeout": 1}
    config = ScoreConfig.model_validate({"reward": {"kind": "judge", "by": by, "samples": 1, "retries": 0}})
    with pytest.raises(RewardError, match=r"not one of the 4 questions .* was answered: .*connection"):
        score_file(write(tmp_path / "answers.jsonl", ROWS), config, Console(), output=tmp_path / "out.jsonl")
    assert [row["reward"] for row in scored(tmp_path)] == [None] * 4
