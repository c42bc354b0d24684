"""What all engines share: the state of the engine, and the assembly of rollouts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rollouts.prompts import group_ids
from rollouts.types import EngineError, FinishReason, Prompt, Rollout, SamplingParams


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine sampled for one row, before it becomes a rollout."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


class Lifeline:
    """Turns the failure of an engine into one clear error, and gives the same answer to every later call.

    An engine that failed in the middle of something may hold half-loaded weights or half-served requests, so it is not
    used again.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._end: str | None = None

    @contextmanager
    def __call__(self, action: str) -> Iterator[None]:
        """Runs engine code. `EngineError` passes through and leaves the engine alive; anything else ends it."""
        if self._end is not None:
            raise EngineError(f"the {self._name} engine {self._end}; create a new engine and sync the adapter again")
        try:
            yield
        except EngineError:
            raise
        except Exception as error:
            self._end = f"failed while {action} ({type(error).__name__}: {error})"
            raise EngineError(
                f"the {self._name} engine {self._end} and cannot go on; create a new engine, or resume the run"
            ) from error
        except BaseException:  # an interrupt leaves requests half served
            self._end = f"was interrupted while {action}"
            raise

    def close(self) -> bool:
        """Mark the engine closed; False if it was already."""
        if self._end == "is closed":
            return False
        self._end = "is closed"
        return True


def assemble(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    encoded: Sequence[tuple[int, ...]],
    completions: Sequence[Sequence[Completion]],
    *,
    sampling: SamplingParams,
    version: int,
    seed: int,
) -> list[list[Rollout]]:
    """Rollouts from sampled completions, in the order of `prompts`."""
    ids = group_ids(prompts, sampling, version, seed)
    return [
        [
            Rollout(
                id=f"{group_id}/{index}",
                prompt_id=prompt.id,
                group_id=group_id,
                prompt_ids=prompt_ids,
                completion_ids=completion.ids,
                text=tokenizer.decode(completion.ids, skip_special_tokens=True),
                logprobs=completion.logprobs,
                finish_reason=completion.finish_reason,
                policy_version=version,
                sampling=sampling,
            )
            for index, completion in enumerate(group)
        ]
        for group_id, prompt, prompt_ids, group in zip(ids, prompts, encoded, completions, strict=True)
    ]
