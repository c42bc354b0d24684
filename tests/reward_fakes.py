"""What the reward tests share: rollouts made by hand, and an engine that says what it is told."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reward.answers import make_extractor
from reward.config import AnswerConfig
from reward.types import Reply, RewardContext, Score, TokenStats
from rollouts.types import Prompt, PromptTooLongError, Rollout, SamplingParams

NUMBER = AnswerConfig(kind="number")


def rollout(
    text: str, *, prompt_id: str = "p", index: int = 0, cut: bool = False, ids: Sequence[int] | None = None
) -> Rollout:
    """A completion of one token per character, unless `ids` says otherwise."""
    tokens = tuple(range(len(text))) if ids is None else tuple(ids)
    return Rollout(
        id=f"{prompt_id}-{index}",
        prompt_id=prompt_id,
        group_id=prompt_id,
        prompt_ids=(1, 2),
        completion_ids=tokens,
        text=text,
        logprobs=(-0.5,) * len(tokens),
        finish_reason="length" if cut else "stop",
        policy_version=0,
        sampling=SamplingParams(),
    )


def group(*texts: str, prompt_id: str = "p") -> list[Rollout]:
    return [rollout(text, prompt_id=prompt_id, index=index) for index, text in enumerate(texts)]


def prompt(
    reference: str | None = None,
    *,
    id: str = "p",
    task: str = "sums",
    grading: Mapping[str, Any] | None = None,
    **more: Any,
) -> Prompt:
    return Prompt(id, task, "What is 7 + 5?", reference=reference, grading=grading or {}, **more)


def context(*prompts: Prompt, answer: AnswerConfig = NUMBER, **more: Any) -> RewardContext:
    return RewardContext(prompts={p.id: p for p in prompts}, extract=make_extractor(answer), **more)


@dataclass
class ScriptedEngine:
    """Replies with what `reply(prompt, sample index)` says, and keeps what it was asked."""

    reply: Callable[[Prompt, int], str]
    cut: bool = False
    asked: list[Prompt] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    sampling: SamplingParams | None = None
    version: int = 0
    description: str = "scripted"
    constrains_output: bool = False

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams, *, seed: int) -> list[list[Rollout]]:
        self.asked.extend(prompts)
        self.seeds.append(seed)
        self.sampling = sampling
        return [
            [rollout(self.reply(p, i), prompt_id=p.id, index=i, cut=self.cut) for i in range(sampling.n)]
            for p in prompts
        ]

    def score_tokens(self, sequences: Any, *, temperature: float = 1.0) -> list[list[float]]:
        raise NotImplementedError

    def sync(self, adapter_dir: Path, version: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


@dataclass
class CrampedEngine(ScriptedEngine):
    """Has no room for questions that hold some words."""

    too_long: str = "99999"

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams, *, seed: int) -> list[list[Rollout]]:
        long = [prompt.id for prompt in prompts if self.too_long in prompt.content]
        if long:
            raise PromptTooLongError("too long", long)
        return super().generate(prompts, sampling, seed=seed)


@dataclass(frozen=True)
class Call:
    ids: tuple[str, ...]
    n: int
    seed: int
    schema: Any


@dataclass
class ScriptedWriter:
    """Answers with `script(question id, how many replies to it came before)`: a text, a reply, or None for a question
    that does not fit."""

    script: Callable[[str, int], str | Reply | None]
    calls: list[Call] = field(default_factory=list)
    questions: list[Prompt] = field(default_factory=list)
    given: dict[str, int] = field(default_factory=dict)

    def ask(
        self, questions: Sequence[Prompt], sampling: SamplingParams, *, seed: int, json_schema: Mapping[str, Any] | None
    ) -> list[list[Reply] | None]:
        self.calls.append(Call(tuple(question.id for question in questions), sampling.n, seed, json_schema))
        self.questions += questions
        return [self._answer(question.id, sampling.n) for question in questions]

    def _answer(self, id: str, n: int) -> list[Reply] | None:
        replies = []
        for _ in range(n):
            said = self.script(id, self.given.get(id, 0))
            self.given[id] = self.given.get(id, 0) + 1
            if said is None:
                return None
            replies.append(Reply(said, tokens=len(said)) if isinstance(said, str) else said)
        return replies


def values(scores: Sequence[Sequence[Score]]) -> list[list[float | None]]:
    return [[score.value for score in row] for row in scores]


def stats_of(probabilities: Sequence[Sequence[float]]) -> TokenStats:
    """KL(uniform ‖ p) written out as Σ u log(u / p)."""
    p = np.asarray(probabilities, dtype=float)
    u = 1 / p.shape[-1]
    certainty = (u * np.log(u / p)).sum(-1)
    return TokenStats(np.log(p[:, 0]), -(p * np.log(p)).sum(-1), certainty, p[:, 0] - p[:, 1])
