"""A model that grades, compares, and judges judgements."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from reward.config.section import QuestionSection, RewardSection, check_template
from reward.config.writers import PolicyWriterConfig, WriterConfig
from rollouts.config import MAX_COMPLETIONS

if TYPE_CHECKING:
    from reward.config import RewardConfig


class AskingSection(QuestionSection):
    """What all rewards share that read short replies."""

    by: WriterConfig = PolicyWriterConfig()
    """Who is asked."""
    samples: int = Field(4, ge=1, le=MAX_COMPLETIONS)
    """Replies averaged per question."""
    temperature: float = Field(1.0, ge=0)
    """0 asks once, greedily."""
    max_tokens: int = Field(16, ge=1)
    """Longest reply."""
    reply: Literal["text", "json"] = "text"
    """`json` asks for an object and reads it strictly; the schema constrains the reply where the engine can (vLLM, most
    endpoints), and is only told elsewhere."""
    retries: int = Field(1, ge=0)
    """Further attempts for replies that cannot be read, with fresh samples."""
    unreadable: Literal["leave_out", "stop"] = "leave_out"
    """What becomes of replies that still cannot be read: left out of the average (no opinion where none is left) and
    counted, or the run stops. Never a zero."""


class GradingSection(AskingSection):
    """A model grades each answer against a rubric."""

    template: str = (
        "Question: {question}\nProposed answer: {answer}\n\n"
        "Is the proposed answer correct? Reply with a single number from 1 (certainly wrong) to 5 (certainly right)."
    )
    """Asked of the model; {question} and {answer} are filled in."""
    low: float = 1.0
    """Worst grade of the scale; becomes reward 0."""
    high: float = 5.0
    """Best grade; becomes reward 1."""

    @model_validator(mode="after")
    def _check_scale_and_template(self) -> "GradingSection":
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        check_template(self.template, "question", "answer")
        return self


class JudgeConfig(GradingSection):
    """A model grades each answer against a rubric (Self-Rewarding LMs, arXiv 2401.10020)."""

    kind: Literal["judge"] = "judge"


class PairwiseJudgeConfig(AskingSection):
    """A model says which of two answers is better; every pair is asked about in both orders (arXiv 2306.05685). The
    reward is the share of comparisons won, a verdict that turns with the order counting half."""

    kind: Literal["pairwise_judge"] = "pairwise_judge"
    template: str = (
        "Question: {question}\nAnswer A: {first}\nAnswer B: {second}\n\nWhich answer is better? Reply with A or B only."
    )
    """Asked of the model; {question}, {first} and {second} are filled in."""
    opponents: int | None = Field(None, ge=1)
    """Other answers of the group that each is compared with, in a ring; None compares all pairs."""
    samples: int = Field(1, ge=1, le=MAX_COMPLETIONS)
    temperature: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "PairwiseJudgeConfig":
        check_template(self.template, "question", "first", "second")
        return self


class MetaJudgeConfig(GradingSection):
    """A judge whose judgements are judged (Meta-Rewarding LMs, arXiv 2407.19594): they are compared in pairs, both
    orders asked, and each weighs in the average by the share of its comparisons that it won."""

    kind: Literal["meta_judge"] = "meta_judge"
    template: str = (
        "Question: {question}\nProposed answer: {answer}\n\n"
        "Is the proposed answer correct? Say why in one sentence, then give a grade from 1 (certainly wrong) to 5 "
        '(certainly right) as "Grade: N".'
    )
    max_tokens: int = Field(64, ge=1)
    meta_template: str = (
        "Question: {question}\nProposed answer: {answer}\n\nTwo judges graded this answer.\nJudge A: {first}\n"
        "Judge B: {second}\n\nWhich judge is right? Reply with A or B only."
    )
    """Asked about two judgements; {question}, {answer}, {first} and {second} are filled in."""
    meta_max_tokens: int = Field(16, ge=1)
    """Longest verdict on two judgements."""
    learn: bool = False
    """Also train the judge: its judgements on one answer become a group, rewarded by the comparisons they won."""

    @model_validator(mode="after")
    def _check_meta(self) -> "MetaJudgeConfig":
        check_template(self.meta_template, "question", "answer", "first", "second", key="meta_template")
        if self.samples < 2 or self.temperature == 0:
            raise ValueError("samples: comparing judgements takes at least 2 of them, at a temperature above 0")
        if self.learn and (self.by.kind != "policy" or self.reply == "json"):
            raise ValueError("learn: it takes judgements that the policy writes freely (by: policy, reply: text)")
        return self


class LengthControlledConfig(RewardSection):
    """Another reward without what length explains of it."""

    kind: Literal["length_controlled"] = "length_controlled"
    reward: "RewardConfig"
    method: Literal["residual", "tier"] = "residual"
    """`residual`: what is left of the reward after a linear fit on length over everything scored so far (as in
    length-controlled AlpacaEval, arXiv 2404.04475); `tier`: within the best `tier` of the group's range of rewards,
    the shorter the better (Meta-Rewarding, arXiv 2407.19594, section 2.1)."""
    tier: float = Field(0.1, ge=0, le=1)
    """For `tier`: share of the range between the group's worst and best reward that counts as equally good."""

    def parts(self) -> Mapping[str, RewardSection]:
        return {"reward": self.reward}
