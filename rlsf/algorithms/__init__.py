"""How the policy learns from scored groups: GRPO, PPO, DPO, and a supervised warm start. Nothing else uses TRL."""

from rlsf.algorithms.base import Algorithm, UpdateResult, create_algorithm
from rlsf.algorithms.sft import WarmStart

__all__ = ["Algorithm", "UpdateResult", "WarmStart", "create_algorithm"]
