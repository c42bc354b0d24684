"""Everything that depends on the inside of TRL 1.16: what is overridden, what is read, and how trainers are made.

TRL's trainers are used for their losses. None of them trains, generates, or touches data here: batches are built from
exact tokens elsewhere, `compute_loss` turns them into a loss, and `AdapterOptimizer` takes the step.
tests/test_algorithms_trl.py has one test per dependency below; run it first when TRL is upgraded.
"""

import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # TRL asks for another vLLM release; its vLLM code is never used
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
    from trl.trainer.utils import FusedCausalLMOutput

from rlsf import forward
from rlsf.algorithms.samples import TokenTensors
from rlsf.forward import PaddedBatch, TokenPair
from rlsf.policy import Policy

Trainer = TypeVar("Trainer", GRPOTrainer, DPOTrainer, SFTTrainer)


class _NoTelemetry:
    def _send_telemetry(self) -> None:
        """_BaseTrainer.__init__ (base_trainer.py) reports every construction to the hub unless this does nothing."""


class _PolicyGradientTrainer(_NoTelemetry, GRPOTrainer):
    """GRPOTrainer whose log-probabilities come from our forward pass, each prompt computed once."""

    last: dict[str, Tensor]
    """(B, T) statistics of the last forward pass, for diagnostics."""

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        **_: Any,
    ) -> tuple[Tensor, Tensor, None]:
        """GRPOTrainer._compute_loss calls it for the last `logits_to_keep` tokens of each row, prompts padded on the
        left, and expects (B, T) log-probabilities, (B, T) entropies and the auxiliary loss of a mixture of experts.
        """
        batch = PaddedBatch(
            prompt_ids=input_ids[:, :-logits_to_keep],
            prompt_mask=attention_mask[:, :-logits_to_keep],
            completion_ids=input_ids[:, -logits_to_keep:],
            completion_mask=attention_mask[:, -logits_to_keep:],
        )
        self.last = forward.token_statistics(model, batch, temperature=self.temperature)
        return self.last["logprob"], self.last["entropy"], None


class _PreferenceTrainer(_NoTelemetry, DPOTrainer):
    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """DPOTrainer.__init__ tokenises text here; ours are token ids already, and never become text again."""
        return dataset


class _SupervisedTrainer(_NoTelemetry, SFTTrainer):
    pass


class PolicyGradientLoss:
    """The clipped surrogate of GRPO and PPO, as GRPOTrainer computes it.

    Args:
        kind: how token losses are averaged, TRL's `loss_type`.
        clip_low, clip_high: ratios are clipped to [1 − clip_low, 1 + clip_high].
        dual_clip: no ratio above it enters the loss (TRL's `delta`, arXiv 2505.07291 eq. 4): where the advantage is
            negative the clip alone leaves the ratio unbounded.
        kl_coef: weight of the k3 KL to the reference.
    """

    def __init__(
        self, policy: Policy, *, kind: str, clip_low: float, clip_high: float, dual_clip: float, kl_coef: float
    ) -> None:
        self._policy = policy
        self._kind = kind
        self._trainer = _construct(
            _PolicyGradientTrainer,
            policy,
            GRPOConfig,
            {
                "loss_type": kind,
                "epsilon": clip_low,
                "epsilon_high": clip_high,
                "delta": dual_clip,
                "num_generations": 2,  # unused, but checked against the batch size, also unused
                "per_device_train_batch_size": 2,
            },
            reward_funcs=_unused_reward,
            train_dataset=Dataset.from_dict({"prompt": [""]}),
        )
        # GRPOTrainer.__init__ copies the adapter to "ref" when beta is not zero; _compute_loss reads it only here.
        self._trainer.beta = kl_coef

    @property
    def backward(self) -> Callable[[Tensor], None]:
        return self._trainer.accelerator.backward

    @property
    def last(self) -> dict[str, Tensor]:
        """(B, T) "logprob" and "entropy" of the last micro-batch."""
        return self._trainer.last

    def __call__(
        self, tokens: TokenTensors, *, temperature: float, step_rows: int, step_tokens: int, max_tokens: int
    ) -> Tensor:
        """The micro-batch's share of the loss: the sum over a step's micro-batches is the loss of the whole minibatch.

        Args:
            tokens: the micro-batch.
            step_rows, step_tokens: rollouts and completion tokens in the whole minibatch.
            max_tokens: the constant that dr_grpo divides by.
        """
        self._trainer.temperature = temperature
        self._trainer.max_completion_length = max_tokens
        inputs = {
            "prompt_ids": tokens.batch.prompt_ids,
            "prompt_mask": tokens.batch.prompt_mask,
            "completion_ids": tokens.batch.completion_ids,
            "completion_mask": tokens.batch.completion_mask,
            "advantages": tokens.advantages,
            "old_per_token_logps": tokens.behaviour,
            "ref_per_token_logps": tokens.reference,
            "num_items_in_batch": torch.tensor(float(step_tokens), device=self._policy.device),
        }
        loss = self._trainer.compute_loss(self._policy.causal_lm, inputs)
        _forget_metrics(self._trainer)
        rows, count = tokens.batch.completion_ids.shape[0], int(tokens.batch.completion_mask.sum())
        share = {"grpo": rows / step_rows, "dr_grpo": rows / step_rows, "bnpo": count / step_tokens, "dapo": 1.0}
        return loss * share[self._kind]


class FusedModel:
    """Stands in for the model that DPOTrainer and SFTTrainer call: computes each prompt once, at the given temperature.

    They call `model(input_ids=, attention_mask=, labels=, use_cache=, fused_lm_head=True)` on rows padded on the right
    and read (B, L − 1) fields of FusedCausalLMOutput, zero where the next token's label is −100. TRL patches the
    model's forward to that effect (trl.trainer.utils.add_fused_lm_head).
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.temperature = 1.0

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, fused_lm_head: bool, use_cache: bool
    ) -> FusedCausalLMOutput:
        scored = labels != -100
        prompt_lengths = scored.int().argmax(dim=1)
        rows = zip(input_ids.tolist(), prompt_lengths.tolist(), attention_mask.sum(dim=1).tolist(), strict=True)
        sequences = [(ids[:start], ids[start:end]) for ids, start, end in rows]
        batch = forward.collate(sequences, self._policy.pad_id, self._policy.device)
        self.last = forward.token_statistics(
            self._policy.causal_lm,
            batch,
            temperature=self.temperature,
            statistics=("entropy", "mean_logit", "is_top1"),
        )
        mask = scored[:, 1:]
        blank = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        inside = batch.completion_mask.bool()
        spread = {name: blank.masked_scatter(mask, value[inside]) for name, value in self.last.items()}
        return FusedCausalLMOutput(
            log_probs=spread["logprob"],
            entropy=spread["entropy"],
            mean_logits=spread["mean_logit"],
            is_top1=spread["is_top1"].bool(),
            label_mask=mask,
        )


class PreferenceLoss:
    """DPO and its relatives, as DPOTrainer computes them."""

    def __init__(self, policy: Policy, *, kind: str, beta: float, label_smoothing: float = 0.0) -> None:
        self._policy = policy
        self._model = FusedModel(policy)
        row = {"prompt_ids": [[0]], "chosen_ids": [[0]], "rejected_ids": [[0]]}
        self._trainer = _construct(
            _PreferenceTrainer,
            policy,
            DPOConfig,
            {
                "loss_type": [kind],
                "beta": beta,
                "label_smoothing": label_smoothing,
                "max_length": None,
                "disable_dropout": False,
            },
            train_dataset=Dataset.from_dict(row),
        )
        # Set after DPOTrainer.__init__, which would run the reference over its data set; _compute_loss then reads the
        # columns ref_chosen_logps and ref_rejected_logps.
        self._trainer.precompute_ref_logps = True

    @property
    def backward(self) -> Callable[[Tensor], None]:
        return self._trainer.accelerator.backward

    @property
    def last(self) -> dict[str, Tensor]:
        """(2B, T) statistics of the last micro-batch, chosen rows first."""
        return self._model.last

    def __call__(
        self,
        chosen: Sequence[TokenPair],
        rejected: Sequence[TokenPair],
        chosen_reference: Sequence[float],
        rejected_reference: Sequence[float],
        *,
        temperature: float,
    ) -> Tensor:
        """The mean loss over B pairs of (prompt ids, completion ids).

        Args:
            chosen_reference, rejected_reference: log-probability (nats) of each whole completion under the reference.
        """
        self._model.temperature = temperature
        examples = [
            {
                "prompt_ids": list(prompt),
                "chosen_ids": list(better),
                "rejected_ids": list(worse),
                "ref_chosen_logps": better_reference,
                "ref_rejected_logps": worse_reference,
            }
            for (prompt, better), (_, worse), better_reference, worse_reference in zip(
                chosen, rejected, chosen_reference, rejected_reference, strict=True
            )
        ]
        inputs = {name: value.to(self._policy.device) for name, value in self._trainer.data_collator(examples).items()}
        loss = self._trainer.compute_loss(self._model, inputs)
        _forget_metrics(self._trainer)
        return loss


class SupervisedLoss:
    """Cross-entropy of completions, as SFTTrainer computes it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._model = FusedModel(policy)
        self._trainer = _construct(
            _SupervisedTrainer,
            policy,
            SFTConfig,
            {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None},
            train_dataset=Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),
        )

    @property
    def backward(self) -> Callable[[Tensor], None]:
        return self._trainer.accelerator.backward

    def __call__(self, sequences: Sequence[TokenPair], *, step_tokens: int) -> Tensor:
        """Minus the log-probabilities (nats) of all completion tokens, over the `step_tokens` of the whole step."""
        examples = [
            {"input_ids": [*prompt, *completion], "labels": [-100] * len(prompt) + list(completion)}
            for prompt, completion in sequences
        ]
        inputs = {name: value.to(self._policy.device) for name, value in self._trainer.data_collator(examples).items()}
        loss = self._trainer.compute_loss(self._model, inputs, num_items_in_batch=step_tokens)
        _forget_metrics(self._trainer)
        return loss


def _construct(
    trainer_class: type[Trainer], policy: Policy, config_class: Any, settings: dict[str, Any], **arguments: Any
) -> Trainer:
    """A trainer on the policy that leaves the policy, the global generators, the disk and the hub as they were.

    Undone here, since TRL's constructors do it: set_seed; an adapter "ref"; a patched `forward` on the base model (two
    trainers would overwrite each other's); an output folder; gradient checkpointing and bf16 by default.
    """
    base = policy.causal_lm
    was_training = policy.model.training
    with tempfile.TemporaryDirectory() as folder, _preserved_generators():
        args = config_class(
            output_dir=folder,
            use_cpu=policy.device.type == "cpu",
            bf16=False,
            fp16=False,
            gradient_checkpointing=False,  # rlsf switches it on at the model
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            gradient_accumulation_steps=1,
            router_aux_loss_coef=0.0,  # a mixture of experts would need its router's logits from our forward pass
            **settings,
        )
        args._n_gpu = min(1, args.n_gpu)  # Trainer would wrap the model in nn.DataParallel, which TRL refuses
        trainer = trainer_class(model=policy.model, args=args, processing_class=policy.tokenizer, **arguments)
    base.__dict__.pop("forward", None)
    if "ref" in policy.model.peft_config:
        policy.model.delete_adapter("ref")
    policy.model.train(was_training)
    trainer.current_gradient_accumulation_steps = 1  # Trainer sets it inside train(), and the losses divide by it
    return trainer


def _forget_metrics(trainer: Any) -> None:
    """compute_loss appends to `_metrics`, and only Trainer.log, never called here, would empty it."""
    for values in trainer._metrics.values():
        values.clear()


@contextmanager
def _preserved_generators() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _unused_reward(**_: Any) -> list[float]:
    raise AssertionError("rewards are computed before the update; TRL must not ask for any")
