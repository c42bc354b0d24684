"""Fills the words of a case into a template that a user may edit."""

import re
from dataclasses import replace

from rollouts.types import Message, Prompt


def fill(template: str, **words: str) -> str:
    """`template` with each {name} replaced, in one pass: braces in the words stay what they are, and so do other
    braces of the template."""
    names = "|".join(map(re.escape, words))
    return re.sub(rf"\{{({names})\}}", lambda match: words[match[1]], template)


def question_about(prompt: Prompt, id: str, text: str) -> Prompt:
    """A new prompt that asks `text`, as a chat where `prompt` is one; without its labels."""
    chat = not isinstance(prompt.content, str)
    content: str | tuple[Message, ...] = (Message(role="user", content=text),) if chat else text
    return replace(prompt.without_labels(), id=id, content=content)
