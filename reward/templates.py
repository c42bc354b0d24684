"""Fills the words of a case into a template that a user may edit."""

import re
from dataclasses import replace

from rollouts.types import Message, Prompt


def fill(template: str, **words: str) -> str:
    """`template` with each {name} replaced, in one pass: braces in the words stay what they are, and so do other
    braces of the template."""
    names = "|".join(map(re.escape, words))
    return re.sub(rf"\{{({names})\}}", lambda match: words[match[1]], template)


def question_about(prompt: Prompt, id: str, text: str, *, chat: bool | None = None) -> Prompt:
    """A new prompt that asks `text`, as a chat or not, where that is None as `prompt` does; without its labels."""
    as_chat = chat if chat is not None else not isinstance(prompt.content, str)
    content: str | tuple[Message, ...] = (Message(role="user", content=text),) if as_chat else text
    return replace(prompt.without_labels(), id=id, content=content)
