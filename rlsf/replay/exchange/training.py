"""Files that TRL trains on: completions (prompt, completion), and preferences (prompt, chosen, rejected).

Chats are messages there, and plain prompts text; one file holds one of the two.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlsf.config.algorithms import DpoConfig
from rlsf.errors import DataError
from rlsf.experience import Experience, Group
from rlsf.preferences import make_pairs
from rlsf.replay.exchange.formats import write_rows
from rlsf.replay.exchange.rows import Row
from rlsf.replay.exchange.tables import batch_of, messages_type, without_surrogates

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["pairs", "trl"]
_MESSAGE = ("role", "content")


def export_training(groups: Iterable[Group], path: Path, kind: Kind) -> int:
    """Write what TRL trains on, and return how many rows. What UTF-8 cannot hold (half a character) is replaced.

    Args:
        kind: `pairs`: those that DPO makes of a group with the defaults of its config, none where all rewards are
            equal. `trl`: every completion.

    Raises:
        DataError: there is no row, or some prompts are chats and others text.
        RunDirError: the file cannot be written, or is one of a run.
    """
    rows = (row for group in groups for row in (_pairs(group) if kind == "pairs" else _completions(group)))
    first = next(rows, None)
    if first is None:
        why = "; no group has two different rewards" if kind == "pairs" else ""
        raise DataError(f"{path}: there is nothing to write{why}")
    is_text = isinstance(first["prompt"], str)
    written = 0

    def checked() -> Iterator[Row]:
        nonlocal written
        for row in chain((first,), rows):
            if isinstance(row["prompt"], str) != is_text:
                raise DataError(
                    f"{path}: some prompts are chats and others plain text, which TRL does not take together; write "
                    "them to files of their own with --task"
                )
            yield row
            written += 1

    def to_batch(rows: Sequence[Row]) -> "pa.RecordBatch":
        import pyarrow as pa

        return batch_of(rows, pa.schema(dict.fromkeys(first, pa.string() if is_text else messages_type(_MESSAGE))))

    write_rows(path, checked(), to_batch)
    return written


def _completions(group: Group) -> Iterator[Row]:
    for experience in group.experiences:
        yield {"prompt": _prompt(group), "completion": _answer(group, experience)}


def _pairs(group: Group) -> Iterator[Row]:
    for pair in make_pairs(group, DpoConfig(), fresh=True):
        yield {
            "prompt": _prompt(group),
            "chosen": _answer(group, pair.chosen),
            "rejected": _answer(group, pair.rejected),
        }


def _prompt(group: Group) -> Any:
    content = group.prompt.content
    if isinstance(content, str):
        return without_surrogates(content)
    return [without_surrogates({"role": message["role"], "content": message["content"]}) for message in content]


def _answer(group: Group, experience: Experience) -> Any:
    text = without_surrogates(experience.rollout.text)
    return text if isinstance(group.prompt.content, str) else [{"role": "assistant", "content": text}]
