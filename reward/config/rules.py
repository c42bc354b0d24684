"""Rules that a completion must keep, and content that it must not have."""

from typing import Annotated, Literal, get_args

import regex
from pydantic import Field, model_validator

from reward.config.section import RewardSection
from reward.rules.expressions import Expression
from rollouts.config import Section

Detector = Literal["email", "phone", "credit_card", "ip_address", "iban", "private_key", "api_key", "password"]
DETECTORS: tuple[Detector, ...] = get_args(Detector)
VARIABLES = ("answer", "text", "question", "numbers", "tokens")
"""Of expressions."""


class _Rule(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=100)
    """Appears in the evidence and in the metrics."""
    penalty: float = Field(1.0, gt=0, le=1e6)
    """What breaking it costs."""


class PatternRule(_Rule):
    """A regular expression that must, or must not, occur in the completion."""

    kind: Literal["pattern"] = "pattern"
    require: str | None = Field(None, min_length=1)
    forbid: str | None = Field(None, min_length=1)
    """Exactly one of the two, in the syntax of the package `regex`: Python's and more. A pattern that takes more than
    half a second on a completion counts as broken: nested repetitions such as (a+)+ can take years."""

    @model_validator(mode="after")
    def _check(self) -> "PatternRule":
        if (self.require is None) == (self.forbid is None):
            raise ValueError("pattern rule: give exactly one of require and forbid")
        key, pattern = ("require", self.require) if self.require is not None else ("forbid", self.forbid)
        try:
            regex.compile(pattern)
        except (regex.error, RecursionError) as error:
            raise ValueError(f"{key}: {pattern!r} is no regular expression: {error}") from error
        return self


class WordsRule(_Rule):
    """Words or phrases that must not occur as whole words, whatever their case and Unicode form."""

    kind: Literal["words"] = "words"
    words: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    file: str | None = None
    """Text file (UTF-8) with one word or phrase per line; empty lines and those that begin with # are skipped."""

    @model_validator(mode="after")
    def _check(self) -> "WordsRule":
        if not self.words and self.file is None:
            raise ValueError("words rule: give words, or a file of them")
        return self


class ExpressionRule(_Rule):
    """A condition on the answer that must hold, such as `answer <= max(numbers)` or `len(text) < 200`."""

    kind: Literal["expression"] = "expression"
    holds: str = Field(min_length=1, max_length=2000)
    """Arithmetic (exact), comparisons, logic, lists and items such as `numbers[0]`, over `answer` (a number where it is
    one, else text as answers are compared, mostly in lower case; None without one), `text`, `question`, `numbers`
    (those in the question, in order), `tokens` (length), and the functions abs, min, max, len, sum, round, int, float,
    str, lower. No attribute, no power, no loop. What cannot be decided (`answer > 3` without an answer) counts as
    broken."""

    @model_validator(mode="after")
    def _check(self) -> "ExpressionRule":
        try:
            Expression(self.holds, VARIABLES)
        except ValueError as error:
            raise ValueError(f"holds: {error}") from error
        return self


class FormatRule(_Rule):
    """The shape of the whole completion."""

    kind: Literal["format"] = "format"
    shape: Literal["json", "answer", "complete", "nonempty"] = "answer"
    """`json`: it parses as JSON; `answer`: it states an answer where the task says answers stand; `complete`: it was
    not cut off; `nonempty`: it says anything at all."""


class DetectorRule(_Rule):
    """Built-in detectors of personal data and secrets."""

    kind: Literal["detector"] = "detector"
    forbid: tuple[Detector, ...] = Field(DETECTORS, min_length=1)
    """What must not occur. What the prompt itself contains may be repeated."""


RuleConfig = Annotated[
    PatternRule | WordsRule | ExpressionRule | FormatRule | DetectorRule, Field(discriminator="kind")
]


class RulesConfig(RewardSection):
    """Minus the penalties of the rules that a completion breaks. For a hard gate, make it a `gate`'s condition."""

    may_be_probability = False
    is_penalty = True
    kind: Literal["rules"] = "rules"
    rules: tuple[RuleConfig, ...] = Field(min_length=1, max_length=1000)
    """Each has a name of its own."""

    @model_validator(mode="after")
    def _check(self) -> "RulesConfig":
        names = [rule.name for rule in self.rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"rules: the name {twice[0]!r} is used twice")
        return self
