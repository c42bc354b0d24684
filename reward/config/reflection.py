"""Reflection in words: critique, then revision."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from reward.config.judges import LengthControlledConfig
from reward.config.penalties import LengthPenaltyConfig, RepetitionPenaltyConfig
from reward.config.section import QuestionSection, RewardSection, all_rewards, check_template
from reward.config.tokens import SequenceProbabilityConfig, TokenSignalSection
from reward.config.writers import PolicyWriterConfig, WriterConfig
from rollouts.config import MAX_COMPLETIONS

if TYPE_CHECKING:
    from reward.config import RewardConfig

READS_TOKENS: tuple[type, ...] = (
    TokenSignalSection,
    LengthControlledConfig,
    LengthPenaltyConfig,
    RepetitionPenaltyConfig,
)
"""Rewards that go by the tokens of a completion."""


class ReflectionConfig(QuestionSection):
    """The model criticises an answer in words and answers again (Self-Refine, arXiv 2303.17651; Constitutional AI,
    2212.08073; Reflect, Retry, Reward, 2505.24726)."""

    kind: Literal["reflection"] = "reflection"
    by: WriterConfig = PolicyWriterConfig()
    """Who criticises and revises."""
    critique_template: str = (
        "Question: {question}\nProposed answer: {answer}\n\nCheck the proposed answer step by step. Say in one or two "
        "sentences what is wrong with it, or that it is right."
    )
    """Asked first; {question} and {answer} are filled in. In later rounds {answer} is the last revision."""
    revision_template: str = (
        "Question: {question}\nProposed answer: {answer}\nFeedback: {critique}\n\n"
        "Give the final answer to the question, in the same form as the proposed answer and nothing else."
    )
    """Asked next; {question}, {answer} and {critique} are filled in."""
    critiques: int = Field(1, ge=1, le=MAX_COMPLETIONS)
    """Critiques per answer, each with a revision of its own. Training the critique compares them: it takes at
    least 2."""
    rounds: int = Field(1, ge=1, le=16)
    """Critique and revision, then critique and revision of that, and so on; the last revision counts."""
    temperature: float = Field(1.0, ge=0)
    critique_tokens: int = Field(64, ge=1)
    """Longest critique."""
    revision_tokens: int | None = Field(None, ge=1)
    """Longest revision; None allows as much as the answers had."""
    feedback: str | None = None
    """JSONL file of comments from outside, one {"prompt_id" or "prompt", "feedback"} per line, on a question or, with
    "answer" too, on one answer to it. Where there are comments they take the place of the model's critique."""
    feedback_only: bool = False
    """Leave answers without a comment alone (no opinion) instead of letting the model criticise them."""
    measure: "RewardConfig | None" = None
    """The reward that originals and revisions are compared by, as one group. None asks whether the answer survives."""
    pay: Literal["survival", "gain", "revised"] | None = None
    """What an original earns. `survival`: the share of its revisions that still give the same answer (needs no
    `measure`); `gain`: minus what revising it gained, so that an answer that could still be improved earns less;
    `revised`: what its revisions score. None is survival without a measure, gain with one."""
    learn: tuple[Literal["critique", "revision"], ...] = ()
    """What is trained on besides the answers. `critique`: the critiques of an answer become a group, each rewarded by
    what its revision gained (by: policy, one round); `revision`: pairs of revised over original answer where the gain
    is at least `min_gain` (algorithm dpo), and SFT targets."""
    min_gain: float = Field(1e-6, gt=0)
    """Smallest gain that makes a preference pair and an SFT target."""

    @model_validator(mode="after")
    def _check(self) -> "ReflectionConfig":
        check_template(self.critique_template, "question", "answer", key="critique_template")
        check_template(self.revision_template, "question", "answer", "critique", key="revision_template")
        if self.pay in ("gain", "revised") and self.measure is None:
            raise ValueError(f"pay: {self.pay} needs `measure`, the reward that tells whether a revision is better")
        if self.learn and self.measure is None:
            raise ValueError("learn: it needs `measure`, the reward that tells whether a revision is better")
        if "critique" in self.learn and (self.by.kind != "policy" or self.critiques < 2 or self.rounds > 1):
            raise ValueError("learn: training the critique takes by: policy, rounds: 1 and critiques of at least 2")
        if self.feedback_only and "critique" in self.learn:
            raise ValueError("learn: with feedback_only the policy writes no critique that could be trained")
        self._check_tokens()
        self._check_probabilities()
        if self.feedback_only and self.feedback is None:
            raise ValueError("feedback_only: there is no feedback file")
        if self.critiques > 1 and self.temperature == 0:
            raise ValueError("critiques: several of them take a temperature above 0")
        return self

    def _check_tokens(self) -> None:
        """What others than the policy write has none of its tokens, which some measures go by."""
        if self.measure is None or self.by.kind in ("policy", "frozen"):
            return
        parts = all_rewards(self.measure, "measure")
        reading = [f"{key}: {part.kind}" for key, part in parts if issubclass(type(part), READS_TOKENS)]
        if reading:
            raise ValueError(
                f"{reading[0]} goes by the policy's own tokens, which revisions of by: {self.by.kind} lack; take "
                "another measure, by: policy, or by: frozen"
            )

    def _check_probabilities(self) -> None:
        """What an engine says of a revision is how likely it was with the critique in sight."""
        parts = all_rewards(self.measure, "measure") if self.measure is not None else []
        for key, part in parts:
            if isinstance(part, SequenceProbabilityConfig) and part.model == "policy":
                raise ValueError(
                    f"{key}: {part.kind} of model: policy is how likely a revision was with the answer and the "
                    "critique in sight; take model: reference, which reads both as answers to the question alone"
                )

    @property
    def pays(self) -> str:
        """`pay`, the default filled in."""
        return self.pay or ("survival" if self.measure is None else "gain")

    def parts(self) -> Mapping[str, RewardSection]:
        return {} if self.measure is None else {"measure": self.measure}
