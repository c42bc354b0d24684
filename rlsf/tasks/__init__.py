"""The stream of tasks: sources, splits without leakage, and the prompts of each iteration."""

from rlsf.tasks.splits import DataReport
from rlsf.tasks.stream import Stream, Task, build_stream, build_task

__all__ = ["DataReport", "Stream", "Task", "build_stream", "build_task"]
