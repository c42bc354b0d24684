"""Rollouts of completions that came as text."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rlsf.display import Display
from rlsf.errors import DataError
from rlsf.offline.completions import Completion, CompletionGroup
from rlsf.offline.config import ScoreConfig
from rlsf.offline.demands import Demands
from rlsf.offline.models import Models
from rollouts.prompts import encode_prompt
from rollouts.types import Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlsf.policy import Policy


def make_rollouts(
    groups: Sequence[CompletionGroup], config: ScoreConfig, demands: Demands, models: Models, display: Display
) -> list[list[Rollout]]:
    """The rollouts of a file, with what `demands` ask of them.

    Raises:
        DataError, EngineError: a row does not fit the model.
    """
    rollouts = as_rollouts(groups, config.sampling.params(), models.tokenizer)
    if models.tokenizer is not None:
        broken = garbled(groups, rollouts, models.tokenizer)
        if broken:
            display.warn(
                f"the model's tokenizer cannot write {len(broken)} of the completions as they are (the first: "
                f"{broken[0].where}): its probabilities are of other words there"
            )
    if models.policy is not None:
        check_lengths(groups, rollouts, models.policy)
        if demands.logprobs:
            with display.phase("log-probabilities"):
                rollouts = with_logprobs(rollouts, models.policy)
    return rollouts


def as_rollouts(
    groups: Sequence[CompletionGroup], sampling: SamplingParams, tokenizer: "PreTrainedTokenizerBase | None"
) -> list[list[Rollout]]:
    """One rollout per completion, of policy version 0.

    Without a tokenizer they have no tokens; with one they have those that it makes of the text, and at the end of a
    completion that was not cut off the end-of-sequence token. Behaviour log-probabilities are not known: see
    `with_logprobs`.

    Args:
        sampling: how they were drawn, apart from temperature and number.

    Raises:
        EngineError: a prompt cannot be rendered with the tokenizer's chat template.
    """
    rollouts = []
    for group in groups:
        prompt_ids = () if tokenizer is None else encode_prompt(tokenizer, group.prompt)
        drawn = replace(sampling, temperature=group.temperature, n=len(group.completions))
        rollouts.append(
            [
                Rollout(
                    id=f"{group.id}/{index}",
                    prompt_id=group.prompt.id,
                    group_id=group.id,
                    prompt_ids=prompt_ids,
                    completion_ids=() if tokenizer is None else completion_ids(tokenizer, completion),
                    text=completion.text,
                    logprobs=(),
                    finish_reason=completion.finish_reason,
                    policy_version=0,
                    sampling=drawn,
                )
                for index, completion in enumerate(group.completions)
            ]
        )
    return rollouts


def completion_ids(tokenizer: "PreTrainedTokenizerBase", completion: Completion) -> tuple[int, ...]:
    """Token ids of the text, and the end-of-sequence token where the completion ended by itself."""
    ids = tuple(tokenizer(completion.text, add_special_tokens=False)["input_ids"])
    end = tokenizer.eos_token_id
    return ids if completion.finish_reason == "length" or ids[-1:] == (end,) else (*ids, end)


def garbled(
    groups: Sequence[CompletionGroup], rollouts: Sequence[Sequence[Rollout]], tokenizer: "PreTrainedTokenizerBase"
) -> list[Completion]:
    """Completions that the tokenizer cannot write as they are: the model's probabilities are of other words then."""
    return [
        completion
        for group, own in zip(groups, rollouts, strict=True)
        for completion, rollout in zip(group.completions, own, strict=True)
        if tokenizer.decode(list(rollout.completion_ids), skip_special_tokens=True) != completion.text
    ]


def check_lengths(groups: Sequence[CompletionGroup], rollouts: Sequence[Sequence[Rollout]], policy: "Policy") -> None:
    """Raises DataError where prompt and completion exceed the model's context."""
    limit = getattr(policy.causal_lm.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    for group, own in zip(groups, rollouts, strict=True):
        for completion, rollout in zip(group.completions, own, strict=True):
            length = len(rollout.prompt_ids) + len(rollout.completion_ids)
            if length > limit:
                raise DataError(
                    f"{completion.where}: prompt and completion have {length} tokens, and the model's context has "
                    f"{limit}; leave the row out, or name a model with a longer one"
                )


def with_logprobs(rollouts: Sequence[Sequence[Rollout]], policy: "Policy") -> list[list[Rollout]]:
    """The same, with the policy's log-probabilities for those of the unknown model that wrote them."""
    known: dict[str, tuple[float, ...]] = {}
    flat = [rollout for group in rollouts for rollout in group]
    for temperature in sorted({rollout.sampling.temperature for rollout in flat}):
        alike = [rollout for rollout in flat if rollout.sampling.temperature == temperature]
        rows = policy.logprobs(alike, temperature=temperature)
        known |= {rollout.id: tuple(row) for rollout, row in zip(alike, rows, strict=True)}
    return [[replace(rollout, logprobs=known[rollout.id]) for rollout in group] for group in rollouts]
