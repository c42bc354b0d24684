"""Where a model comes from, and how it is loaded."""

from rlsf.models.loading import load_base_model, load_tokenizer
from rlsf.models.sources import resolve_model

__all__ = ["load_base_model", "load_tokenizer", "resolve_model"]
