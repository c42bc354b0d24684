"""Critique and revision: what is asked, what comes of it, and what can be learned from it."""
