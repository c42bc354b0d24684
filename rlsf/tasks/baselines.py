"""What answers without any thought would score: printed beside every accuracy, so that a false gain shows."""

from collections import Counter
from collections.abc import Callable

from reward.numerals import numbers_in
from rlsf.tasks.stream import Task
from rollouts.types import Prompt

Grade = Callable[[Prompt, str], bool]
"""Whether an answer to a prompt is right."""


def most_frequent_answer(task: Task) -> str | None:
    """The commonest reference of the training prompts (of equally common ones the first in alphabetical order); of the
    validation prompts where no training prompt has one; None where those have none either."""
    for prompts in (task.train, task.validation):
        counts = Counter(prompt.reference for prompt in prompts if prompt.reference is not None)
        if counts:
            return min(counts, key=lambda answer: (-counts[answer], answer))
    return None


def last_operand(task: Task, prompt: Prompt) -> str | None:
    """The last number in the question, thousands separators removed; the words of the task's template do not count."""
    before, _, after = task.config.template.partition("{prompt}")
    numbers = numbers_in(prompt.text.removeprefix(before).removesuffix(after))
    return numbers[-1] if numbers else None


def most_frequent_correct(task: Task, grade: Grade) -> list[bool]:
    """For each test prompt: is "always the most frequent answer" right?"""
    answer = most_frequent_answer(task)
    return [answer is not None and grade(prompt, answer) for prompt in task.test]


def last_operand_correct(task: Task, grade: Grade) -> list[bool]:
    """For each test prompt: is "always the last operand" right? A question without a number counts as wrong."""
    answers = [(prompt, last_operand(task, prompt)) for prompt in task.test]
    return [answer is not None and grade(prompt, answer) for prompt, answer in answers]
