"""What the model's own distributions over tokens say."""

from typing import Literal

from pydantic import Field, model_validator

from reward.config.section import QuestionSection, RewardSection, check_template

Span = Literal["completion", "ending", "answer"]


class TokenSignalSection(RewardSection):
    """A figure per token, averaged."""

    span: Span = "completion"
    """Tokens that count: all, the last third (RENT's best), or those of the answer. A completion without an answer has
    no answer span, and then no opinion."""
    model: Literal["policy", "reference"] = "policy"
    """Whose distributions: those of the policy that wrote the rollouts, or of the frozen reference, which training
    cannot make surer of itself."""
    lowest: float = Field(1.0, gt=0, le=1)
    """Average over this share of the span's tokens, those with the lowest figures (at least one). DeepConf (arXiv
    2508.15260) looks at the lowest tenth, too, of windows of tokens instead of single ones."""


class SelfCertaintyConfig(TokenSignalSection):
    """KL(uniform ‖ p) (Intuitor, arXiv 2505.19590, eq. 2)."""

    may_be_probability = False
    kind: Literal["self_certainty"] = "self_certainty"


class ConfidenceConfig(TokenSignalSection):
    """Largest minus second largest probability, over the answer (RLSF, arXiv 2507.21931; CoT-decoding, 2402.10200)."""

    kind: Literal["confidence"] = "confidence"
    span: Span = "answer"


class TokenEntropyConfig(TokenSignalSection):
    """Minus the entropy of p (RENT, arXiv 2505.22660)."""

    may_be_probability = False
    kind: Literal["token_entropy"] = "token_entropy"


class SequenceProbabilityConfig(TokenSignalSection):
    """How likely the tokens that were sampled were to begin with (RLSC, arXiv 2506.06395)."""

    kind: Literal["sequence_probability"] = "sequence_probability"
    pay: Literal["mean_log", "log", "probability"] = "mean_log"
    """Mean of log p over the tokens; their sum; or the probability of the whole span (RLSC's)."""

    @model_validator(mode="after")
    def _check_lowest(self) -> "SequenceProbabilityConfig":
        if self.lowest < 1 and self.pay != "mean_log":
            raise ValueError(f"lowest: the mean over some tokens is for pay: mean_log; pay is {self.pay}")
        return self


class PTrueConfig(QuestionSection):
    """Probability of "yes" when asked whether the answer is right (P(True), arXiv 2207.05221, section 3)."""

    kind: Literal["p_true"] = "p_true"
    template: str = (
        "Question: {question}\nProposed answer: {answer}\n\nIs the proposed answer correct? Reply with Yes or No."
    )
    """Asked of the model; {question} and {answer} are filled in."""
    yes: str = Field("Yes", min_length=1)
    no: str = Field("No", min_length=1)
    """The two replies that are compared: p(yes) / (p(yes) + p(no))."""
    model: Literal["policy", "reference"] = "policy"
    """Who is asked: the policy that wrote the rollouts, or the frozen reference."""

    @model_validator(mode="after")
    def _check(self) -> "PTrueConfig":
        check_template(self.template, "question", "answer")
        if self.yes == self.no:
            raise ValueError(f"yes and no are both {self.yes!r}; they must differ")
        return self
