"""Supervised warm start: a few labelled answers settle the format before the loop begins."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlsf import forward
from rlsf.algorithms.additions import NOTHING, Additions
from rlsf.algorithms.update import AdapterOptimizer, Step, fail_with_batch, seeded
from rlsf.config.schema import WarmStartConfig
from rlsf.errors import DataError
from rlsf.forward import TokenPair
from rlsf.policy import Policy

if TYPE_CHECKING:
    from rlsf.algorithms.trl_overrides import SupervisedLoss


class WarmStart:
    """Cross-entropy on answers alone, AdamW at a constant rate. Short, so not resumable inside."""

    def __init__(
        self, config: WarmStartConfig, policy: Policy, *, dump_dir: Path, additions: Additions = NOTHING
    ) -> None:
        self._config = config
        self._additions = additions
        self._policy = policy
        self._dump_dir = dump_dir

    def run(
        self, examples: Sequence[tuple[Sequence[int], str]], *, seed: int, rehearsed: Sequence[TokenPair] = ()
    ) -> dict[str, float]:
        """Train the policy's adapter on (token ids of the rendered prompt, answer) pairs. Returns metrics.

        The end-of-sequence token follows each answer. Examples come in an order drawn from `seed`, each as often as the
        others before any comes again.

        Args:
            rehearsed: completions of earlier tasks that take part besides: in every batch as many for one example as
                there are for one altogether.

        Raises:
            DataError: there are no examples, or an answer is empty.
            TrainingError: a loss or gradient is not finite.
        """
        from rlsf.algorithms.trl_overrides import SupervisedLoss  # TRL takes seconds to import

        sequences = [(tuple(prompt), answer_ids(self._policy.tokenizer, answer)) for prompt, answer in examples]
        if not sequences:
            raise DataError("the warm start has no labelled examples: the first task's train split holds no references")
        loss = SupervisedLoss(self._policy)
        optimizer = AdapterOptimizer(
            self._policy.parameters(),
            learning_rate=self._config.learning_rate,
            total_steps=self._config.steps,
            additions=self._additions,
        )
        with seeded(seed), self._policy.training():
            steps = [self._step(batch, loss, optimizer) for batch in self._batches(sequences, rehearsed, seed)]
        return {
            "warm_start/first_loss": steps[0].loss,
            "warm_start/loss": steps[-1].loss,
            "warm_start/steps": float(len(steps)),
        }

    def _batches(
        self, sequences: Sequence[TokenPair], rehearsed: Sequence[TokenPair], seed: int
    ) -> Iterator[list[TokenPair]]:
        size = min(self._config.batch_size, len(sequences))
        if not rehearsed:
            yield from _batches(sequences, size, self._config.steps, seed)
            return
        beside = max(1, round(size * len(rehearsed) / len(sequences)))
        parts = (
            _batches(sequences, size, self._config.steps, seed),
            _batches(rehearsed, min(beside, len(rehearsed)), self._config.steps, seed + 1),
        )
        for own, earlier in zip(*parts, strict=True):
            yield [*own, *earlier]

    def _step(self, batch: Sequence[TokenPair], loss: "SupervisedLoss", optimizer: AdapterOptimizer) -> Step:
        step_tokens = sum(len(completion) for _, completion in batch)
        return optimizer.step(
            forward.micro_batches(batch, self._policy.micro_batch_tokens),
            lambda part: loss([batch[index] for index in part], step_tokens=step_tokens),
            backward=loss.backward,
            fail=fail_with_batch(self._dump_dir, "warm start", batch),
        )


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> tuple[int, ...]:
    """Token ids of an answer and the end of the sequence. Raises DataError where the answer is empty."""
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if not ids:
        raise DataError("the warm start has an empty answer: check warm_start.answer_template and the references")
    return (*ids, tokenizer.eos_token_id)


def _batches(sequences: Sequence[TokenPair], size: int, steps: int, seed: int) -> Iterator[list[TokenPair]]:
    """`steps` batches from one permutation after another."""
    rng = np.random.default_rng(seed)
    queue: list[int] = []
    for _ in range(steps):
        if len(queue) < size:
            queue += rng.permutation(len(sequences)).tolist()
        batch, queue = queue[:size], queue[size:]
        yield [sequences[index] for index in batch]
