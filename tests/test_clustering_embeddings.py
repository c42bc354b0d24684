"""Vectors of prompts and answers: whose they are, how they are averaged, and that they tell tasks apart."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

from rlsf.clustering import embeddings
from rlsf.clustering.embeddings import LAYER, ModelEmbeddings, SentenceEmbeddings, make_embeddings, policy_embeddings
from rlsf.clustering.projection import fit_projection
from rlsf.config.clustering import EmbeddingConfig
from rlsf.config.schema import ModelConfig, TaskConfig
from rlsf.errors import ConfigError, ModelError
from rlsf.models import load_base_model, load_tokenizer, resolve_model
from rlsf.models.lab_tasks import LAB_TASKS
from rlsf.policy import Policy
from rlsf.tasks.stream import build_task
from rollouts.prompts import encode_prompt
from rollouts.types import Prompt, Rollout, SamplingParams
from tests.tiny_policy import make_policy, perturb

PROMPTS = [
    Prompt(str(i), "t", text) for i, text in enumerate(["1 + 2 = ", "spell abc backward", "7", "gcd of 4, 6 and 8"])
]
HAS_SENTENCES = importlib.util.find_spec("sentence_transformers") is not None


def lab() -> ModelEmbeddings:
    folder = resolve_model("lab")
    return ModelEmbeddings(load_base_model(folder, "float32", "cpu"), load_tokenizer(folder))


def rollout(ids: tuple[int, ...], text: str = "") -> Rollout:
    return Rollout("r", "p", "g", (1, 2), ids, text, (0.0,) * len(ids), "stop", 0, SamplingParams())


def lab_prompts(names: list[str], each: int) -> tuple[list[Prompt], np.ndarray]:
    prompts = []
    for name in names:
        task = {**LAB_TASKS[name], "source": {**LAB_TASKS[name]["source"], "size": each + 40}}
        prompts += build_task(TaskConfig.model_validate({**task, "split": {"validation": 1, "test": 1}}), 0).train[
            :each
        ]
    return prompts, np.repeat(np.arange(len(names)), each)


@pytest.mark.parametrize("layer", [0.1, 0.5])
def test_vectors_are_mean_states_of_the_layer(layer: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed again one text at a time, without padding, by transformers' own record of hidden states."""
    monkeypatch.setattr(embeddings, "LAYER", layer)
    folder = resolve_model("lab")
    model, tokenizer = load_base_model(folder, "float32", "cpu"), load_tokenizer(folder)
    number = round(layer * model.config.num_hidden_layers)

    def mean(ids: tuple[int, ...]) -> np.ndarray:
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        return states[number][0].mean(dim=0).numpy()

    embed = ModelEmbeddings(model, tokenizer)
    expected = np.stack([mean(encode_prompt(tokenizer, prompt)) for prompt in PROMPTS])
    np.testing.assert_allclose(embed.prompts(PROMPTS), expected, atol=1e-5)
    answers = [rollout((5, 6, 7)), rollout((9,)), rollout(())]
    expected = np.stack([mean((5, 6, 7)), mean((9,)), np.zeros(model.config.hidden_size)])
    np.testing.assert_allclose(embed.answers(answers), expected, atol=1e-5)


def test_the_later_layers_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy()
    ran = []
    for number, layer in enumerate(policy.causal_lm.model.layers):
        layer.self_attn.register_forward_hook(lambda *_, number=number: ran.append(number))
    policy_embeddings(policy).prompts(PROMPTS)
    assert ran == []
    monkeypatch.setattr(embeddings, "LAYER", 0.5)
    policy_embeddings(policy).prompts(PROMPTS)
    assert set(ran) == {0}


def test_the_space_does_not_move_with_the_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "LAYER", 0.5)
    policy = make_policy()
    embed = policy_embeddings(policy)
    before = embed.prompts(PROMPTS)
    perturb(policy, scale=0.5)
    np.testing.assert_array_equal(embed.prompts(PROMPTS), before)
    moved = ModelEmbeddings(policy.causal_lm, policy.tokenizer).prompts(PROMPTS)
    assert np.abs(moved - before).max() > 1e-3
    assert policy.model.active_adapter == "default"


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    embed = lab()
    together = embed.prompts(PROMPTS)
    assert together.dtype == np.float32
    monkeypatch.setattr(embeddings, "BATCH_TOKENS", 1)
    np.testing.assert_allclose(embed.prompts(PROMPTS), together, atol=1e-5)
    np.testing.assert_allclose(embed.prompts(PROMPTS[::-1])[::-1], together, atol=1e-5)
    assert embed.prompts([]).shape == (0, together.shape[1])


def test_what_does_not_fit_the_context_is_left_out() -> None:
    embed = lab()
    long = Prompt("x", "t", "7" * 5000)
    assert np.isfinite(embed.prompts([long])).all()


def test_tasks_lie_apart_in_the_lab_model() -> None:
    """A part of what the module's docstring has figures of."""
    prompts, truth = lab_prompts(list(LAB_TASKS), 60)
    policy = Policy.create(resolve_model("lab"), ModelConfig(dtype="float32", device="cpu"), seed=0)
    points = policy_embeddings(policy).prompts(prompts)
    projected = fit_projection(points, 16)(points)
    found = KMeans(len(LAB_TASKS), n_init=10, random_state=0).fit_predict(projected)
    assert adjusted_rand_score(truth, found) > 0.65
    neighbours = NearestNeighbors(n_neighbors=6).fit(projected).kneighbors(return_distance=False)[:, :5]
    assert np.mean(truth[neighbours] == truth[:, None]) > 0.95


def test_a_model_without_a_list_of_layers_is_an_error() -> None:
    policy = make_policy()
    policy.causal_lm.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="no list of 7 layers"):
        policy_embeddings(policy).prompts(PROMPTS)


def test_the_config_says_what_is_missing() -> None:
    with pytest.raises(ValidationError, match="model: by sentence_transformer needs one"):
        EmbeddingConfig(by="sentence_transformer")
    with pytest.raises(ValidationError, match="leave it out"):
        EmbeddingConfig(model="x")
    assert make_embeddings(EmbeddingConfig(), lab).prompts([]).shape[0] == 0
    assert 0 <= LAYER < 1


@pytest.mark.skipif(HAS_SENTENCES, reason="sentence-transformers is installed")
def test_without_sentence_transformers_the_error_says_how_to_get_it() -> None:
    with pytest.raises(ConfigError, match=r'pip install "rlsf\[embeddings\]"'):
        make_embeddings(EmbeddingConfig(by="sentence_transformer", model="x"), lab)


@pytest.mark.skipif(not HAS_SENTENCES, reason="sentence-transformers is not installed")
def test_sentence_transformers_embeds_the_words(tmp_path: Path) -> None:
    """A sentence model made of the lab model, without its chat template: mean states of the last layer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    folder = resolve_model("lab")
    model, tokenizer = load_base_model(folder, "float32", "cpu"), load_tokenizer(folder)
    with torch.no_grad():
        ids = [torch.tensor([tokenizer(prompt.text)["input_ids"]]) for prompt in PROMPTS]
        expected = torch.cat([model.base_model(input_ids=row).last_hidden_state.mean(dim=1) for row in ids])
    tokenizer.chat_template = None
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "words")
    modules = [Transformer(str(tmp_path / "words")), Pooling(model.config.hidden_size)]
    SentenceTransformer(modules=modules).save(str(tmp_path / "model"))
    embed = make_embeddings(EmbeddingConfig(by="sentence_transformer", model=str(tmp_path / "model")), lab)
    found = embed.prompts(PROMPTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    chat = replace(PROMPTS[0], content=({"role": "system", "content": "?"}, {"role": "user", "content": "1 + 2 = "}))
    np.testing.assert_allclose(embed.prompts([chat])[0], found[0], atol=1e-5)
    answers = embed.answers([rollout((3,), "7"), rollout((), "")])
    np.testing.assert_allclose(answers, [found[2], np.zeros_like(found[2])], atol=1e-5)
    assert embed.prompts([]).shape == (0, found.shape[1])
    with pytest.raises(ModelError, match="cannot load"):
        SentenceEmbeddings(str(tmp_path / "nowhere"))
