"""Where answers stand, when two of them are the same, and how they are graded."""

import re
from typing import Literal

from pydantic import Field, model_validator

from rollouts.config import Section


class EquivalenceConfig(Section):
    """When two answers to one prompt count as the same, for votes, entropies and agreement."""

    kind: Literal["spelling", "math", "embedding"] = "spelling"
    """`spelling`: equal once numbers are written alike and case and space are folded; `math`: equal to math-verify, so
    that 1/2, 0.5 and \\frac{1}{2} agree, while what is left to be worked out (12/4, 7 + 5) equals no number;
    `embedding`: close in meaning to the untrained model, for free text."""
    max_distance: float = Field(0.4, gt=0, lt=2)
    """For `embedding` only: answers are merged (average linkage) while the mean cosine distance between two clusters is
    no larger. The default was measured on SmolLM2-135M, which errs often: 3 of 10 merged pairs differ in meaning."""


class AnswerConfig(Section):
    """Where the answer stands in a completion. A truncated completion has none."""

    kind: Literal["number", "text", "boxed", "tag", "regex", "choice"] = "number"
    """`number`: the completion is a number, or states one at its end (`12`, `7 + 5 = 12`, `The answer is 12 apples.`;
    `reward/numerals.py` has the rule); `text`: the whole completion, case and space folded; `boxed`: the last
    \\boxed{...}; `tag`: the last <answer>...</answer>; `regex`: group 1 of `pattern`'s last match; `choice`: a letter A
    to Z standing alone, stated at the end, or labelling the one option written out."""
    pattern: str | None = None
    """For `regex` only, in Python's syntax. One capturing group; `.` matches no line end unless it starts with (?s). A
    completion on which it takes more than half a second of processor time has no answer."""
    tag: str = "answer"
    """For `tag` only."""
    equivalence: EquivalenceConfig = EquivalenceConfig()

    @model_validator(mode="after")
    def _check_pattern(self) -> "AnswerConfig":
        if self.kind != "regex":
            if self.pattern is not None:
                raise ValueError(f"pattern is for kind: regex only; kind is {self.kind}")
            return self
        if self.pattern is None:
            raise ValueError("kind: regex needs a pattern with one capturing group")
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from error
        if groups != 1:
            raise ValueError(f"pattern {self.pattern!r} has {groups} capturing groups; it needs one")
        return self


class VerifierConfig(Section):
    """How an answer is graded against the reference."""

    kind: Literal["auto", "exact", "numeric", "math", "reasoning_gym"] = "auto"
    """`exact`: equal strings after folding case and space; `numeric`: equal numbers within `tolerance`; `math`:
    math-verify's equality of expressions; `reasoning_gym`: the data set's own scorer. `auto` takes reasoning_gym where
    the task comes from it, numeric where the answer is a number, else exact."""
    tolerance: float = Field(1e-6, ge=0)
    """For `numeric`: largest relative difference (absolute for references below it). Two integers must be equal."""
