"""One reward per module."""
