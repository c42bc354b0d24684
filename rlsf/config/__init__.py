"""The config of a run: one pydantic model per YAML section. Imports neither torch nor vllm."""

from rlsf.config.check import check_config
from rlsf.config.load import load_config, resolved_yaml
from rlsf.config.schema import RunConfig

__all__ = ["RunConfig", "check_config", "load_config", "resolved_yaml"]
