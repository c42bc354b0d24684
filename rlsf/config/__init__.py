"""The config of a run: one pydantic model per YAML section. Imports neither torch nor vllm."""

from rlsf.config.schema import RunConfig

__all__ = ["RunConfig"]
