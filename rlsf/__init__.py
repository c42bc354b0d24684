"""The trainer: config, loop, tasks, replay, algorithms, evaluation, tracking, command line."""

__version__ = "0.1.0"
