import pytest
from transformers import AutoTokenizer

from rollouts.prompts import check_lengths, encode_prompt, end_token_ids, group_ids
from rollouts.types import EngineError, Prompt, SamplingParams
from tests.rollouts_tiny import save_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(save_model(tmp_path_factory.mktemp("tiny")))


def _chat(*contents: str, id: str = "p") -> Prompt:
    return Prompt(id=id, task="t", content=tuple({"role": "user", "content": text} for text in contents))


def test_chat_goes_through_the_template_with_the_generation_prompt(tokenizer):
    assert encode_prompt(tokenizer, _chat("t7 t8", "t9")) == (2, 7, 8, 3, 2, 9, 3, 4)


def test_plain_text_is_tokenised_as_it_stands(tokenizer):
    assert encode_prompt(tokenizer, Prompt(id="p", task="t", content="t7 t8")) == (7, 8)


def test_empty_prompt_is_refused_with_its_id(tokenizer):
    with pytest.raises(EngineError, match=r"'row-9'.*no tokens"):
        encode_prompt(tokenizer, Prompt(id="row-9", task="t", content=""))


def test_chat_without_template_is_refused_with_its_id(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(EngineError, match=r"'row-3'.*no chat template"):
        encode_prompt(tokenizer, _chat("t7", id="row-3"))


def test_template_that_refuses_a_conversation_names_the_prompt(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('only one turn') }}")
    with pytest.raises(EngineError, match=r"'row-4'.*only one turn"):
        encode_prompt(tokenizer, _chat("t7", id="row-4"))


def test_length_limit_is_exact_and_names_the_prompt():
    prompts = [_chat("t7", id="short"), _chat("t7", id="long"), _chat("t7", id="longer")]
    check_lengths(prompts, [(1,) * 10, (1,) * 60, (1,) * 60], 4, 64)
    with pytest.raises(EngineError, match=r"'long' is too long \(and 1 more prompts\): 61 .* 4 = 65 .* 64 tokens"):
        check_lengths(prompts, [(1,) * 10, (1,) * 61, (1,) * 62], 4, 64)


def test_end_tokens_are_the_tokenizers_and_the_models(tokenizer):
    class OfModel:
        eos_token_id = (0, 5)

    assert end_token_ids(tokenizer, OfModel()) == (0, 1, 5)
    assert end_token_ids(tokenizer, None) == (1,)


def test_group_ids_are_stable_and_differ_by_everything_that_differs():
    prompts = [_chat("t7", id="a"), _chat("t7", id="b"), _chat("t7", id="a")]
    sampling = SamplingParams(n=2)
    ids = group_ids(prompts, sampling, 3, 7)
    assert ids == group_ids(prompts, sampling, 3, 7)
    others = [
        group_ids(prompts, sampling, 4, 7),
        group_ids(prompts, sampling, 3, 8),
        group_ids(prompts, SamplingParams(n=2, temperature=0.0), 3, 7),
    ]
    every = [*ids, *(id for group in others for id in group)]
    assert len(set(every)) == len(every) == 12
