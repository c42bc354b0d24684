"""The lab model that ships with the package: its files, its tokenizer, and how much it knows."""

import hashlib
import json
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from rlsf.config.schema import TaskConfig
from rlsf.models import load_base_model, load_tokenizer, resolve_model
from rlsf.models.lab_tasks import LAB_DIR, LAB_TASKS, MIXTURE, is_reserved

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(resolve_model("lab"))


@pytest.fixture(scope="module")
def model():
    return load_base_model(resolve_model("lab"), device="cpu")


def test_committed_weights_are_those_of_the_manifest_and_the_readme() -> None:
    digest = hashlib.sha256((LAB_DIR / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads((LAB_DIR / "manifest.json").read_text())["sha256"] == digest
    assert digest in (LAB_DIR / "README.md").read_text()


def test_every_file_is_packaged() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["rlsf"]
    files = [file for file in LAB_DIR.iterdir() if file.name != "README.md"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {f.name for f in files}
    for file in files:
        assert any(fnmatch(f"models/lab/{file.name}", pattern) for pattern in patterns), file
    assert sum(file.stat().st_size for file in files) < 3_000_000


def test_loads_as_float32_in_evaluation_mode(model) -> None:
    import torch

    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    assert model.config.max_position_embeddings >= 256


def test_tokenizer_round_trip_over_its_alphabet(tokenizer) -> None:
    alphabet = "".join(map(chr, range(32, 127))) + "\n"
    ids = tokenizer.encode(alphabet)
    assert len(ids) == len(alphabet) == 96
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == alphabet
    spaced = "  two  spaces , and\n\na .  "
    assert tokenizer.decode(tokenizer.encode(spaced)) == spaced


def test_unknown_characters_are_one_unk_each(tokenizer) -> None:
    assert tokenizer.encode("aéb\t猫") == [
        *tokenizer.encode("a"),
        tokenizer.unk_token_id,
        *tokenizer.encode("b"),
        tokenizer.unk_token_id,
        tokenizer.unk_token_id,
    ]
    assert tokenizer.decode(tokenizer.encode("aéb"), skip_special_tokens=True) == "ab"


def test_chat_template(tokenizer) -> None:
    talk = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2"},
    ]
    text = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    assert text == "<bos>S\n1+1\n2<eos>2+2\n"
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert (ids.count(tokenizer.bos_token_id), ids.count(tokenizer.eos_token_id)) == (1, 1)
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


@pytest.mark.parametrize("name", LAB_TASKS)
def test_tasks_are_configs_with_short_prompts_and_room_for_the_answer(name: str, tokenizer) -> None:
    from rlsf.models.lab import evaluation_problems, prompt_ids

    task = TaskConfig.model_validate(LAB_TASKS[name])
    assert task.name == name
    for question, answer in evaluation_problems(name, 50):
        assert len(prompt_ids(tokenizer, question)) <= 24, "reasoning-gym's wording is no longer one token"
        assert tokenizer.unk_token_id not in prompt_ids(tokenizer, question)
        assert task.max_tokens is not None
        assert len(tokenizer.encode(answer)) + 1 <= task.max_tokens


def test_training_leaves_the_reserved_problems_out(tokenizer) -> None:
    from rlsf.models.lab import batches

    inputs, labels = next(batches(tokenizer))
    seen = set()
    for row, target in zip(inputs.tolist(), labels.tolist(), strict=True):
        question = tokenizer.decode(row[1 : target.index(next(t for t in target if t != -100)) - 1])
        assert not is_reserved(question)
        seen.add(question)
        answer = [token for token in target if token != -100]
        assert answer[-1] == tokenizer.eos_token_id
        assert row[target.index(answer[0]) :][: len(answer)] == answer
    assert len(seen) > 100


def test_competence_is_partial(model, tokenizer) -> None:
    from rlsf.models.lab import evaluation_problems, measure

    known = {name: measure(model, tokenizer, name, evaluation_problems(name, 32)) for name in ("reverse", "gcd", "lcm")}
    assert set(MIXTURE) >= {"reverse", "gcd"}
    assert "lcm" not in MIXTURE
    assert known["reverse"].pass_at_1 > 0.9
    assert 0.3 < known["gcd"].pass_at_1 < 0.8
    assert known["gcd"].pass_at_n > 0.85
    assert known["gcd"].majority > known["gcd"].pass_at_1 + 0.05  # so there is something to learn from votes
    assert known["lcm"].pass_at_n < 0.2
