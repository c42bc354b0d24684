"""Rewards without a run: scoring completions from a file, and measuring signals against the truth."""
