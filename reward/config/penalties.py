"""Prices on the ways in which other rewards are usually won without being right."""

import difflib
from typing import Literal

from pydantic import Field, model_validator

from reward.config.section import RewardSection
from reward.scripts import known_scripts, unknown_scripts


class LengthPenaltyConfig(RewardSection):
    """Minus the share by which a completion exceeds a length; closes the way of winning by writing more."""

    may_be_probability = False
    is_penalty = True
    kind: Literal["length_penalty"] = "length_penalty"
    free_tokens: int = Field(0, ge=0)
    """Tokens that cost nothing."""
    max_tokens: int = Field(256, ge=1)
    """At this length and beyond the penalty is −1."""

    @model_validator(mode="after")
    def _check_order(self) -> "LengthPenaltyConfig":
        if self.free_tokens >= self.max_tokens:
            raise ValueError(f"free_tokens ({self.free_tokens}) must be below max_tokens ({self.max_tokens})")
        return self


class RepetitionPenaltyConfig(RewardSection):
    """Minus the share of n-grams that a completion has said before (arXiv 2502.03373, section 4.5 and appendix C.2)."""

    may_be_probability = False
    is_penalty = True
    kind: Literal["repetition_penalty"] = "repetition_penalty"
    ngram: int = Field(3, ge=1)
    """Length of the n-grams."""
    unit: Literal["tokens", "words"] = "tokens"
    free_share: float = Field(0.0, ge=0, lt=1)
    """Share that costs nothing: some repetition is grammar."""


class LanguagePenaltyConfig(RewardSection):
    """Minus the share of letters from other scripts than wanted: closes the way of drifting into another language
    (DeepSeek-R1's language consistency, arXiv 2501.12948, section 2.3.2)."""

    may_be_probability = False
    is_penalty = True
    kind: Literal["language_penalty"] = "language_penalty"
    scripts: tuple[str, ...] = Field(("LATIN",), min_length=1)
    """Scripts as Unicode names its letters (LATIN, CYRILLIC, CJK, HIRAGANA, ARABIC, DEVANAGARI, ...), in any case."""
    same_as_prompt: bool = False
    """Allow the scripts of the prompt too."""

    @model_validator(mode="after")
    def _check(self) -> "LanguagePenaltyConfig":
        unknown = unknown_scripts(script.upper() for script in self.scripts)
        if unknown:
            name = min(unknown)
            near = difflib.get_close_matches(name, known_scripts(), 1)
            raise ValueError(f"scripts: no letter is {name}" + (f"; did you mean {near[0]}?" if near else ""))
        return self
