"""The lab model reflecting on its own sums. It cannot reflect; but every part has to run."""

from collections import Counter
from dataclasses import dataclass, field

from reward.answers import make_extractor
from reward.config import AnswerConfig, ReflectionConfig
from reward.factory import make_reward
from reward.types import Lesson, RewardContext, Score
from rlsf.models.lab_tasks import LAB_DIR
from rollouts.config import TransformersEngineConfig
from rollouts.transformers_engine import TransformersEngine
from rollouts.types import Engine, Message, Prompt, Rollout, SamplingParams

WORDING = "State the final answer to the following arithmetic problem: {} ="
SUMS = ("58 + 67", "27 - 85", "96 + 47", "74 - 39")
TEMPERATURE = 1.0


@dataclass
class Reflected:
    """A batch of answers, and what reflecting on them gave."""

    prompts: list[Prompt]
    rollouts: list[list[Rollout]]
    scores: list[list[Score]] = field(default_factory=list)
    lessons: list[Lesson] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def lab_engine() -> Engine:
    return TransformersEngine(LAB_DIR, TransformersEngineConfig())


def reflect_on_sums(engine: Engine, *, chat: bool = False, seed: int = 0) -> Reflected:
    """Six answers to each sum, each criticised and revised three times, measured by the majority."""
    questions = [WORDING.format(words) for words in SUMS]
    prompts = [
        Prompt(f"s{i}", "sum", (Message(role="user", content=text),) if chat else f"<bos>{text}\n")
        for i, text in enumerate(questions)
    ]
    rollouts = engine.generate(prompts, SamplingParams(temperature=TEMPERATURE, max_tokens=8, n=6), seed=seed)
    reward = make_reward(
        ReflectionConfig(
            critique_template="{answer}\n{question}",
            revision_template="{critique}\n{answer}\n{question}",
            critique_tokens=6,
            temperature=TEMPERATURE,
            critiques=3,
            measure={"kind": "majority"},
            learn=("critique", "revision"),
        )
    )
    result = Reflected(prompts, rollouts)

    def count(name: str, amount: float) -> None:
        result.counts[name] += int(amount)

    result.scores = reward.score(
        rollouts,
        RewardContext(
            prompts={prompt.id: prompt for prompt in prompts},
            extract=make_extractor(AnswerConfig()),
            seed=seed,
            engine=engine,
            count=count,
            teach=result.lessons.append,
        ),
    )
    return result
