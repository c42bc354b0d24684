"""Regular expressions of users on texts of models: neither is to be trusted with unlimited time."""

TIME_LIMIT = 0.5
"""Seconds of processor time for one search. Some patterns take years on texts made for them, and a model makes many."""
