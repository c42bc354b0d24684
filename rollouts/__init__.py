"""Generates rollouts: engines, sampling, adapter sync.

Imports neither `reward` nor `rlsf`; torch and vllm are imported late.
"""

from rollouts.types import Engine, EngineError, Message, Prompt, Rollout, SamplingParams

__all__ = ["Engine", "EngineError", "Message", "Prompt", "Rollout", "SamplingParams"]
