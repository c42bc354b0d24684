"""One test for each thing inside TRL that rlsf/algorithms/trl_overrides.py depends on: they fail when it changes."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import trl.trainer.base_trainer
import trl.trainer.utils
from datasets import Dataset
from trl import DPOTrainer, GRPOConfig, GRPOTrainer

from rlsf.algorithms.grpo import group_advantages
from rlsf.algorithms.samples import Sample, tensors, with_reference
from rlsf.algorithms.trl_overrides import FusedModel, PolicyGradientLoss, PreferenceLoss, SupervisedLoss
from tests.tiny_policy import make_groups, make_policy, perturb, share_of

PLAIN = {"kind": "dapo", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": 2.0, "kl_coef": 0.0}


def stock_trainer(policy, trainer_class=GRPOTrainer, **settings):
    """TRL's own GRPOTrainer, with nothing of ours in it."""
    args = GRPOConfig(
        output_dir=settings.pop("output_dir"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=settings.pop("batch", 2),
        **{"num_generations": 2, **settings},
    )
    trainer = trainer_class(
        model=policy.model,
        reward_funcs=lambda prompts, completions, reward, **_: reward,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [""]}),
        processing_class=policy.tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def some_tokens(policy, advantages):
    """A batch of rollouts from an older policy, with random advantages."""
    groups = make_groups(policy, share_of(7), prompts=3, n=4)
    policy.freeze_reference()
    perturb(policy, seed=5)
    groups = with_reference(policy, groups)
    rng = np.random.default_rng(0)
    samples = []
    for experience in (e for group in groups for e in group.experiences):
        length = len(experience.rollout.completion_ids)
        values = np.full(length, rng.normal()) if advantages == "sequence" else rng.normal(size=length)
        samples.append(Sample(experience, True, values))
    return tensors(samples, policy)


@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("advantages", ["sequence", "token"])
def test_policy_gradient_loss_and_gradient_are_those_of_the_stock_trainer(tmp_path: Path, kind, advantages):
    """_get_per_token_logps_and_entropies; beta, temperature and max_completion_length set after construction."""
    policy, stock_policy = make_policy(), make_policy()
    tokens = some_tokens(policy, advantages)
    stock_policy.model.load_state_dict(policy.model.state_dict(), strict=False)
    rows, count = tokens.batch.completion_ids.shape[0], int(tokens.batch.completion_mask.sum())
    loss = PolicyGradientLoss(policy, kind=kind, clip_low=0.1, clip_high=0.3, dual_clip=1.5, kl_coef=0.3)
    ours = loss(tokens, temperature=0.8, step_rows=rows, step_tokens=count, max_tokens=9)
    ours.backward()

    stock = stock_trainer(
        stock_policy,
        output_dir=str(tmp_path),
        loss_type=kind,
        epsilon=0.1,
        epsilon_high=0.3,
        delta=1.5,
        beta=0.3,
        temperature=0.8,
        max_completion_length=9,
    )
    inputs = {
        "prompt_ids": tokens.batch.prompt_ids,
        "prompt_mask": tokens.batch.prompt_mask,
        "completion_ids": tokens.batch.completion_ids,
        "completion_mask": tokens.batch.completion_mask,
        "advantages": tokens.advantages[:, 0] if advantages == "sequence" else tokens.advantages,
        "old_per_token_logps": tokens.behaviour,
        "ref_per_token_logps": tokens.reference,
        "num_items_in_batch": torch.tensor(float(count)),
    }
    stock.model.train()
    theirs = stock.compute_loss(stock.model, inputs)
    theirs.backward()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    for mine, other in zip(policy.parameters(), stock_policy.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-4)
    assert not loss._trainer._metrics["train"], "_metrics would grow for the whole run"


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages_are_those_of_the_stock_trainer(tmp_path: Path, scale):
    """Inline in GRPOTrainer._generate_and_score_completions; a reward of None has no part in it."""

    class Canned(GRPOTrainer):
        def _generate(self, prompts):
            return [[3, 4]] * len(prompts), [[5, 1]] * len(prompts), None, [2] * len(prompts), None, {}, None, None

    rewards = [[1.0, 0.0, 0.5, 0.25], [2.0, 2.0, 2.5, 1.5], [0.0, None, 1.0, None], [1.0, 1.0, 1.0, 1.0]]
    trainer = stock_trainer(
        make_policy(),
        Canned,
        output_dir=str(tmp_path),
        scale_rewards=scale,
        num_generations=4,
        batch=16,
        generation_batch_size=16,
    )
    trainer.model.train()
    flat = [reward for group in rewards for reward in group]
    seen = trainer._generate_and_score_completions([{"prompt": "t3", "reward": reward} for reward in flat])
    theirs = seen["advantages"].view(4, 4).tolist()

    kept = [np.array([reward for reward in group if reward is not None]) for group in rewards]
    for ours, group, expected in zip(group_advantages(kept, scale), rewards, theirs, strict=True):
        known = [value for value, reward in zip(expected, group, strict=True) if reward is not None]
        np.testing.assert_allclose(ours, known, atol=1e-5)


def test_fused_model_returns_what_trl_s_patched_forward_returns():
    """The call that DPOTrainer and SFTTrainer make, and the fields they read."""
    policy = make_policy()
    perturb(policy)
    ids = torch.tensor([[3, 4, 5, 6, 7], [3, 4, 8, 9, 0], [10, 11, 12, 13, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    labels = ids.masked_fill(mask == 0, -100)
    labels[:2, :2], labels[2, :3] = -100, -100
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels, "use_cache": False, "fused_lm_head": True}
    ours = FusedModel(policy)(**inputs)
    trl.trainer.utils.add_fused_lm_head(policy.causal_lm, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    theirs = policy.model(**inputs)
    assert torch.equal(ours.label_mask, theirs.label_mask) and torch.equal(ours.is_top1, theirs.is_top1.bool())
    for field in ("log_probs", "entropy", "mean_logits"):
        torch.testing.assert_close(getattr(ours, field), getattr(theirs, field), atol=1e-5, rtol=0, msg=field)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge", "robust"])
def test_preference_loss_is_the_formula_on_the_given_reference(kind):
    """_prepare_dataset (token ids stay), precompute_ref_logps (the columns are read), loss_type, beta, smoothing."""
    policy = make_policy()
    perturb(policy)
    beta, temperature, flipped = 0.3, 0.7, 0.1
    chosen = [((3, 4, 5), (6, 7, 1)), ((8, 9), (2, 1))]
    rejected = [((3, 4, 5), (2,)), ((8, 9), (30, 29, 28, 1))]
    references = [-5.0, -4.0], [-2.0, -9.0]
    loss_of = PreferenceLoss(policy, kind=kind, beta=beta, label_smoothing=flipped)
    loss = loss_of(chosen, rejected, *references, temperature=temperature)

    def total(sequences):
        return torch.tensor([sum(row) for row in policy.score_tokens(sequences, temperature=temperature)])

    gain = total(chosen) - torch.tensor(references[0]), total(rejected) - torch.tensor(references[1])
    margin = gain[0] - gain[1]
    right, wrong = -torch.log(torch.sigmoid(beta * margin)), -torch.log(torch.sigmoid(-beta * margin))
    expected = {
        "sigmoid": right,  # arXiv 2305.18290, eq. 7
        "robust": ((1 - flipped) * right - flipped * wrong) / (1 - 2 * flipped),  # arXiv 2403.00409, eq. 11
        "hinge": torch.clamp(1 - beta * margin, min=0),  # SLiC
        # arXiv 2310.12036, eq. 17, per token
        "ipo": (gain[0] / torch.tensor([3.0, 2.0]) - gain[1] / torch.tensor([1.0, 4.0]) - 1 / (2 * beta)) ** 2,
    }[kind]
    torch.testing.assert_close(loss.detach(), expected.mean(), atol=1e-4, rtol=1e-4)


def test_supervised_loss_is_the_cross_entropy_of_completions():
    """dataset_kwargs skip_prepare_dataset, num_items_in_batch, the collator's labels."""
    policy = make_policy()
    perturb(policy)
    sequences = [((3, 4, 5), (6, 7, 1)), ((8, 9), (2, 1))]
    loss = SupervisedLoss(policy)(sequences, step_tokens=10)
    expected = 0.0
    for prompt, completion in sequences:
        logits = policy.causal_lm(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        expected += torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="sum") / 10
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda policy: PolicyGradientLoss(policy, **{**PLAIN, "kl_coef": 0.1}),
        lambda policy: PreferenceLoss(policy, kind="sigmoid", beta=0.1),
        SupervisedLoss,
    ],
    ids=["grpo", "dpo", "sft"],
)
def test_making_a_trainer_leaves_no_trace(make, monkeypatch, tmp_path: Path, capfd):
    """_send_telemetry, set_seed, the adapter "ref", the patched forward, the output folder."""
    policy = make_policy()
    policy.freeze_reference()
    perturb(policy)
    capfd.readouterr()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)

    def refuse(*args, **kwargs):
        raise AssertionError("the hub was contacted")

    monkeypatch.setattr(trl.trainer.base_trainer, "send_telemetry", refuse)
    monkeypatch.setattr(DPOTrainer, "_prepare_dataset", refuse)

    def snapshot():
        parameters = {name: (p.requires_grad, p.detach().clone()) for name, p in policy.model.named_parameters()}
        generators = random.getstate(), tuple(np.random.get_state()[1]), torch.random.get_rng_state().tolist()
        state = list(policy.model.peft_config), policy.model.active_adapter, policy.model.training
        return parameters, (generators, state, "forward" in policy.causal_lm.__dict__)

    before, others = snapshot()
    loss = make(policy)
    after, others_now = snapshot()
    assert others_now == others
    assert before.keys() == after.keys()
    for name in before:
        assert before[name][0] == after[name][0] and torch.equal(before[name][1], after[name][1]), name
    assert not list(tmp_path.iterdir())
    assert not Path(loss._trainer.args.output_dir).exists()
    captured = capfd.readouterr()
    assert not captured.out and not captured.err


def test_the_stock_trainer_would_report_to_the_hub(monkeypatch, tmp_path: Path):
    """Else the override of _send_telemetry hangs in the air."""
    calls = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(trl.trainer.base_trainer, "send_telemetry", lambda *a, **k: calls.append(a))
    stock_trainer(make_policy(), output_dir=str(tmp_path))
    assert calls


def test_two_trainers_on_one_policy_do_not_disturb_each_other():
    policy = make_policy()
    tokens = some_tokens(policy, "token")
    share = {"step_rows": 12, "step_tokens": int(tokens.batch.completion_mask.sum()), "max_tokens": 6}
    cold = PolicyGradientLoss(policy, **PLAIN)
    alone = cold(tokens, temperature=0.5, **share)
    warm = PolicyGradientLoss(policy, **PLAIN)
    PreferenceLoss(policy, kind="sigmoid", beta=0.1)
    warm(tokens, temperature=1.5, **share)
    assert torch.equal(cold(tokens, temperature=0.5, **share), alone)
