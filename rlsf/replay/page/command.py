"""What `rlsf replay page` does."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from tokenizers import Tokenizer  # and not transformers, whose import takes ten seconds

from rlsf.display import say, warn
from rlsf.errors import RunDirError
from rlsf.models.sources import resolve_model
from rlsf.replay.page.view import Offset
from rlsf.replay.page.write import Selection, write_page
from rlsf.replay.reader import ReplayReader
from rlsf.run_dir import RunDir
from rollouts.types import Rollout


def make_page(run: Path, console: Console, selection: Selection, output: Path | None) -> None:
    """Write the page of a run, evidence.html in its folder where nothing else is said, and say where it is.

    Raises:
        RunDirError: there is no run, no group fits the selection, or the page cannot be written.
    """
    directory = RunDir.open(run)
    config = _read(directory.config)
    path = run / "evidence.html" if output is None else output
    with ReplayReader.open_read_only(directory.replay) as store:
        shown, stored = write_page(
            store,
            path,
            selection,
            run=run,
            reward=yaml.safe_dump({"reward": config["reward"]}, sort_keys=False, allow_unicode=True),
            offset=_offsets(config["model"], console),
        )
    more = "" if shown == stored else f", the newest of {stored:,} (--limit shows more)"
    say(console, f"{path}: {shown:,} group{'' if shown == 1 else 's'}{more}. Open it in a browser")


def _read(path: Path) -> Mapping[str, Any]:
    """The run's config as it stands: a page can be made of runs that this version of rlsf would no longer begin.

    Raises:
        RunDirError: it cannot be read, or lacks what the page needs.
    """
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunDirError(f"cannot read {path}: {error}") from error
    if not (isinstance(config, dict) and "reward" in config and isinstance(config.get("model"), dict)):
        raise RunDirError(f"{path}: `reward` or `model` is missing; this is no config of a run")
    return config


def _offsets(model: Mapping[str, Any], console: Console) -> Offset:
    """By the run's own tokenizer, loaded when it is first asked for."""

    @cache
    def loaded() -> Tokenizer | None:
        try:
            return Tokenizer.from_file(str(resolve_model(str(model.get("source"))) / "tokenizer.json"))
        except Exception as error:  # tokenizers raises nothing narrower
            warn(console, f"tokens are not marked in the completions: cannot read the tokenizer: {error}")
            return None

    def offset(rollout: Rollout, tokens: int) -> int | None:
        tokenizer = loaded()
        if tokenizer is None or tokenizer.decode(rollout.completion_ids) != rollout.text:
            return None
        begun = tokenizer.decode(rollout.completion_ids[:tokens]).rstrip("\ufffd")  # half of a character
        return len(begun) if rollout.text.startswith(begun) else None

    return offset
