"""A stream of tasks that get in each other's way: four questions about the same pairs of two-digit numbers, told apart
by a word or two at the end, with answers that look alike. What is learned of one question is wrong for the others."""

import json
import random
from collections.abc import Callable
from pathlib import Path

PAIRS = 3600
SEED = 7
WORDING = "State the final answer to the following arithmetic problem: {a} + {b} {question}"
"""As the lab model knows sums; it has one token for the wording."""

QUESTIONS: dict[str, tuple[str, Callable[[int, int], int | str]]] = {
    "sum": ("=", lambda a, b: a + b),
    "larger": ("larger", max),
    "flip": ("flip first", lambda a, b: str(a)[::-1]),
    "second": ("second", lambda a, b: b),
}
"""By task: the end of the question, and the answer."""


def write_tasks(folder: Path) -> None:
    """One JSONL file for each task, the same on every machine."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    chosen = random.Random(SEED).sample(pairs, PAIRS)
    for name, (question, answer) in QUESTIONS.items():
        rows = [
            {"prompt": WORDING.format(a=a, b=b, question=question), "reference": str(answer(a, b))} for a, b in chosen
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
