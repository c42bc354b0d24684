"""Config sections of this package, one per reward, discriminated by `kind`. Imports nothing heavy."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rollouts.config import MAX_COMPLETIONS, Section


class AnswerConfig(Section):
    """Where the answer stands in a completion. A truncated completion has none."""

    kind: Literal["number", "text", "boxed", "tag", "regex", "choice"] = "number"
    """`number`: the completion is a number, or states one at its end (`12`, `7 + 5 = 12`, `The answer is 12 apples.`;
    `reward/numerals.py` has the rule); `text`: the whole completion, case and space folded; `boxed`: the last
    \\boxed{...}; `tag`: the last <answer>...</answer>; `regex`: group 1 of `pattern`'s last match; `choice`: a letter A
    to Z standing alone, stated at the end, or labelling the one option written out."""
    pattern: str | None = None
    """For `regex` only, in Python's syntax. One capturing group; `.` matches no line end unless it starts with (?s)."""
    tag: str = "answer"
    """For `tag` only."""

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


class MajorityConfig(Section):
    """Agreement with the group's own answers; needs no label (TTRL, arXiv 2504.16084)."""

    kind: Literal["majority"] = "majority"
    soft: bool = False
    """Reward the share of the group that gave the same answer, instead of 1 for the most frequent one (1/k each where
    k are tied)."""
    min_share: float = Field(0.0, ge=0, le=1)
    """No opinion on groups in which the winner has a smaller share of all rollouts than this."""


class VerifierRewardConfig(Section):
    """The grade against the reference: uses labels."""

    kind: Literal["verifier"] = "verifier"
    verifier: VerifierConfig | None = None
    """None grades as the task is evaluated."""
    partial_credit: bool = False
    """Pass on grades between 0 and 1 where the verifier gives them (reasoning-gym does); else 1 only for a full
    grade."""


class SelfCertaintyConfig(Section):
    """Mean KL(uniform ‖ p) over the completion (Intuitor, arXiv 2505.19590)."""

    kind: Literal["self_certainty"] = "self_certainty"


class JudgeConfig(Section):
    """The policy grades its own answer against a rubric (Self-Rewarding LMs, arXiv 2401.10020)."""

    kind: Literal["judge"] = "judge"
    template: str = (
        "Question: {question}\nProposed answer: {answer}\n\n"
        "Is the proposed answer correct? Reply with a single number from 1 (certainly wrong) to 5 (certainly right)."
    )
    """Asked of the model; {question} and {answer} are filled in."""
    samples: int = Field(4, ge=1, le=MAX_COMPLETIONS)
    """Judgements averaged per answer."""
    temperature: float = Field(1.0, ge=0)
    """0 asks once, greedily."""
    max_tokens: int = Field(16, ge=1)
    """Longest judgement."""
    low: float = 1.0
    """Worst grade of the scale; becomes reward 0."""
    high: float = 5.0
    """Best grade; becomes reward 1."""

    @model_validator(mode="after")
    def _check_scale_and_template(self) -> "JudgeConfig":
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        missing = [name for name in ("{question}", "{answer}") if name not in self.template]
        if missing:
            raise ValueError(f"template lacks {' and '.join(missing)}")
        return self


class LengthPenaltyConfig(Section):
    """Minus the share by which a completion exceeds a length; closes the way of winning by writing more."""

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


class FunctionConfig(Section):
    """Any function with TRL's signature `f(prompts, completions, completion_ids, **columns) -> list[float | None]`."""

    kind: Literal["function"] = "function"
    path: str = Field(pattern=r"^.+:[A-Za-z_]\w*$")
    """`module:function` or `path/to/file.py:function`."""
    needs_reference: bool = False
    """Pass the column `reference` too. A function that sees labels is not self-feedback."""


class WeightedSumConfig(Section):
    """Σ weight · component. A component without an opinion on a rollout is left out of that rollout's sum."""

    kind: Literal["weighted_sum"] = "weighted_sum"
    components: dict[str, "WeightedComponent"] = Field(min_length=1)
    """By name; the name appears in every score and in the metrics."""


class WeightedComponent(Section):
    weight: float = 1.0
    """Factor of the (normalised) component."""
    normalize: Literal["none", "group", "running"] = "none"
    """`group`: minus the mean, over the sample deviation, of the group; `running`: the same over the run so far."""
    reward: "RewardConfig"


RewardConfig = Annotated[
    MajorityConfig
    | VerifierRewardConfig
    | SelfCertaintyConfig
    | JudgeConfig
    | LengthPenaltyConfig
    | FunctionConfig
    | WeightedSumConfig,
    Field(discriminator="kind"),
]

WeightedSumConfig.model_rebuild()
WeightedComponent.model_rebuild()


def single_rewards(reward: RewardConfig, key: str = "reward") -> Iterator[tuple[str, RewardConfig]]:
    """Every reward that is no sum of others, with the dotted key at which it stands in a config."""
    if isinstance(reward, WeightedSumConfig):
        for name, component in reward.components.items():
            yield from single_rewards(component.reward, f"{key}.components.{name}.reward")
    else:
        yield key, reward
