"""Where the figures go besides the run directory: wandb and TensorBoard. No other module knows of either."""

from rlsf.tracking.base import Tracker, create_tracker

__all__ = ["Tracker", "create_tracker"]
