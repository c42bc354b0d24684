"""Learning the next task without losing the last: strategies, adapters per task, and what they are measured by."""
