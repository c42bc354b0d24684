"""The stream of tasks: sources, splits without leakage, and the prompts of each iteration."""

from rlsf.tasks.schedule import Schedule, Segment
from rlsf.tasks.splits import DataReport
from rlsf.tasks.stream import Part, Stream, Task, build_stream, build_task

__all__ = ["DataReport", "Part", "Schedule", "Segment", "Stream", "Task", "build_stream", "build_task"]
