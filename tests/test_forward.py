"""The shared-prompt pass against the plain padded one, and against the model run row by row."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from rlsf import forward
from tests.tiny_policy import make_policy, perturb

PROMPTS = [(3, 4, 5, 6), (7, 8), (9, 10, 11, 12, 13, 14)]
SEQUENCES = [
    (PROMPTS[0], (5, 6, 7)),
    (PROMPTS[1], (2,)),
    (PROMPTS[0], (9, 1)),
    (PROMPTS[2], (4, 4, 4, 4, 1)),
    (PROMPTS[1], (20, 21, 22, 1)),
]
SMALL = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
ALL = ("entropy", "self_certainty", "top_gap", "mean_logit", "is_top1")


@pytest.fixture(scope="module")
def policy():
    policy = make_policy()
    perturb(policy)
    return policy


def row_by_row(model, temperature):
    """(p of every next token) for each sequence alone, from the model's own forward."""
    rows = []
    for prompt, completion in SEQUENCES:
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        rows.append(torch.log_softmax(logits.double() / temperature, dim=-1))
    return rows


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_statistics_equal_the_model_run_on_each_sequence_alone(policy, temperature):
    batch = forward.collate(SEQUENCES, policy.pad_id, "cpu")
    with torch.no_grad():
        got = forward.token_statistics(policy.causal_lm, batch, temperature=temperature, statistics=ALL)
        expected = row_by_row(policy.causal_lm, temperature)
    for row, ((_, completion), logp) in enumerate(zip(SEQUENCES, expected, strict=True)):
        p, length = logp.exp(), len(completion)
        chosen = logp[torch.arange(length), torch.tensor(completion)]
        top = p.sort(dim=-1, descending=True).values
        checks = {
            "logprob": chosen,
            "entropy": -(p * logp).sum(-1),
            "self_certainty": (np.log(1 / 32) - logp).mean(-1),  # KL(uniform ‖ p)
            "top_gap": top[:, 0] - top[:, 1],
            "is_top1": (chosen == logp.amax(-1)).double(),
        }
        for name, value in checks.items():
            torch.testing.assert_close(got[name][row, :length].double(), value, atol=1e-4, rtol=0, msg=name)
            assert not got[name][row, length:].any(), f"{name} is not zero at padding"


BEGINNING = tuple(range(3, 15))
BATCHES = {
    "nothing in common": SEQUENCES,
    "a common beginning": [((*BEGINNING, *prompt), completion) for prompt, completion in SEQUENCES],
    "one prompt is the beginning of another": [(BEGINNING, (5, 6)), ((*BEGINNING, 4, 5), (7,)), (BEGINNING, (8, 9))],
    "each prompt once": [((*BEGINNING, *prompt), (5, 6)) for prompt in PROMPTS],
}


@pytest.mark.parametrize("name", BATCHES)
def test_shared_and_padded_pass_agree_in_values_and_gradients(name, policy, monkeypatch):
    batch = forward.collate(BATCHES[name], policy.pad_id, "cpu")
    weights = torch.randn(batch.completion_ids.shape, generator=torch.Generator().manual_seed(0))

    def run():
        policy.model.zero_grad()
        values = forward.token_statistics(policy.causal_lm, batch)["logprob"]
        (values * weights).sum().backward()
        return values.detach(), [parameter.grad.clone() for parameter in policy.parameters()]

    passes = []
    monkeypatch.setattr(forward, "_padded_pass", lambda *a, real=forward._padded_pass: passes.append(1) or real(*a))
    shared, shared_gradients = run()
    assert not passes, "the prompts were not shared"
    monkeypatch.setattr(forward, "can_share_prompts", lambda model: False)
    padded, padded_gradients = run()
    assert passes
    torch.testing.assert_close(shared, padded, atol=1e-4, rtol=0)
    largest = max(gradient.abs().max() for gradient in padded_gradients)
    for ours, theirs in zip(shared_gradients, padded_gradients, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * largest


def test_a_common_beginning_runs_once(policy, monkeypatch):
    batch = forward.collate(BATCHES["a common beginning"], policy.pad_id, "cpu")
    backbone, widths = policy.causal_lm.base_model, []

    def count(_module, _args, kwargs):
        widths.append(tuple(kwargs["input_ids"].shape))

    handle = backbone.register_forward_pre_hook(count, with_kwargs=True)
    try:
        with torch.no_grad():
            forward.completion_hidden_states(policy.causal_lm, batch)
    finally:
        handle.remove()
    longest = max(len(prompt) for prompt in PROMPTS)
    assert widths == [(1, len(BEGINNING)), (len(PROMPTS), longest), (len(SEQUENCES), 4)]


def test_gradient_of_chunked_head_equals_unchunked(policy, monkeypatch):
    batch = forward.collate(SEQUENCES, policy.pad_id, "cpu")

    def run():
        policy.model.zero_grad()
        values = forward.token_statistics(policy.causal_lm, batch)["logprob"]
        values.sum().backward()
        return values.detach(), [parameter.grad.clone() for parameter in policy.parameters()]

    whole, whole_gradients = run()
    monkeypatch.setattr(forward, "HEAD_CHUNK", 4)
    chunked, chunked_gradients = run()
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=0)
    for ours, theirs in zip(chunked_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_single_token_completions_and_a_lone_prompt(policy):
    for sequences in ([((3, 4), (5,)), ((3, 4), (6,))], [((3,), (5, 6))]):
        batch = forward.collate(sequences, policy.pad_id, "cpu")
        with torch.no_grad():
            got = forward.token_statistics(policy.causal_lm, batch)["logprob"]
            for row, (prompt, completion) in enumerate(sequences):
                logits = policy.causal_lm(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
                logp = logits.log_softmax(-1)[len(prompt) - 1 : -1]
                expected = logp[torch.arange(len(completion)), torch.tensor(completion)]
                torch.testing.assert_close(got[row], expected, atol=1e-5, rtol=0)


def test_sharing_is_refused_where_the_cache_cannot_expand():
    sliding = MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=3)).eval()
    assert not forward.can_share_prompts(sliding)
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    assert forward.can_share_prompts(model)
    model.gradient_checkpointing_enable()
    assert not forward.can_share_prompts(model.train())
    assert forward.can_share_prompts(model.eval())
    sequences = [((3, 4, 5, 6), (7, 8)), ((3, 4, 5, 6), (9, 2))]
    with torch.no_grad():
        got = forward.token_statistics(sliding, forward.collate(sequences, 0, "cpu"))["logprob"]
        logits = sliding(input_ids=torch.tensor([[3, 4, 5, 6, 7, 8]])).logits[0].log_softmax(-1)
    torch.testing.assert_close(got[0], logits[[3, 4], [7, 8]], atol=1e-5, rtol=0)


def test_head_check_notices_a_scaling_it_does_not_know():

    class Doubled(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = 2 * output.logits
            return output

    config = LlamaConfig(**SMALL, initializer_range=0.2)
    assert forward.check_head(LlamaForCausalLM(config).eval())
    assert not forward.check_head(Doubled(config).eval())


def test_micro_batches_keep_order_and_budget():
    rng = np.random.default_rng(0)
    sequences = [
        (tuple([group] * int(rng.integers(1, 9))), tuple(range(int(rng.integers(1, 12))))) for group in range(20)
    ]
    sequences = [(prompt, completion[: 1 + extra]) for prompt, completion in sequences for extra in range(4)]
    parts = list(forward.micro_batches(sequences, 64))
    assert [index for part in parts for index in part] == list(range(len(sequences)))
    assert len(parts) > 5
    for part in parts:
        prompts = {sequences[index][0] for index in part}
        cost = len(prompts) * max(map(len, prompts)) + len(part) * max(len(sequences[i][1]) for i in part)
        assert cost <= 64
    assert list(forward.micro_batches([((1,) * 100, (2,))] * 2, 64)) == [[0], [1]]
