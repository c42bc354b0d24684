"""Accuracy on held-out prompts, with intervals."""
