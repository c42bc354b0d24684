"""What the sections of all rewards share."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from rollouts.config import Section


class RewardSection(Section):
    """Base of every reward's section. A reward made of others names them in `parts`."""

    may_be_probability: ClassVar[bool] = True
    """Whether a value in [0, 1] may be taken for the probability of being right. Not so where the values lie there by
    chance alone: logarithms of shares, penalties."""

    is_penalty: ClassVar[bool] = False
    """Whether no value is ever above 0."""

    def parts(self) -> Mapping[str, "RewardSection"]:
        """The rewards inside this one, by the dotted key at which each stands."""
        return {}

    @property
    def sees_labels(self) -> bool:
        """Whether this reward itself, its parts aside, is given reference answers: then it is no self-feedback."""
        return False


class QuestionSection(RewardSection):
    """What all rewards share that put questions to a model."""

    chat: bool | None = None
    """Whether questions are put as chats: a model that was tuned on chats has nothing to say to bare text. None asks as
    the task's prompts are written."""


def all_rewards(reward: Any, key: str = "reward") -> Iterator[tuple[str, Any]]:
    """A reward and all that it is made of, each with the dotted key at which it stands in a config."""
    yield key, reward
    for name, part in reward.parts().items():
        yield from all_rewards(part, f"{key}.{name}")


def uses_labels(reward: Any) -> bool:
    """Whether a reward or anything in it sees reference answers."""
    return any(part.sees_labels for _, part in all_rewards(reward))


def check_template(template: str, *names: str, key: str = "template") -> None:
    """Raises ValueError where a placeholder that the template cannot do without is missing."""
    missing = [f"{{{name}}}" for name in names if f"{{{name}}}" not in template]
    if missing:
        raise ValueError(f"{key} lacks {' and '.join(missing)}")
