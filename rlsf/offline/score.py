"""What `rlsf score` does."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reward.config import uses_labels
from reward.factory import make_reward
from reward.types import RewardError, Score
from reward.verifiers import make_verifier
from rlsf.display import Display, say
from rlsf.errors import DataError, RunDirError
from rlsf.evaluation.grading import Grader
from rlsf.files import check_output, is_special, mendable_output, write_parts
from rlsf.offline.batches import Batches, counted
from rlsf.offline.completions import Completion, CompletionGroup, read_completions
from rlsf.offline.config import TASK, ScoreConfig
from rlsf.offline.demands import (
    check_answers,
    check_references,
    demands_of,
    demands_of_answers,
    no_model_error,
    remembers,
)
from rlsf.offline.models import open_models
from rlsf.offline.rollouts import make_rollouts
from rlsf.replay.show import visible
from rlsf.run_dir import check_not_of_a_run
from rlsf.scorer import Scorer
from rlsf.seeds import derive_seed

SHOWN = 12
"""Rows of the table where nothing is written."""
NAME_A_MODEL = "add `model: {source: ...}` to the config (lab, a hub id, a folder or a .gguf file)"

Row = tuple[Completion, Score]


def score_file(path: Path, config: ScoreConfig, console: Console, *, output: Path | None) -> None:
    """Score the completions of a file, and write them with their rewards, in their order, or show the first.

    Raises:
        RlsfError, EngineError, RewardError: with a message for the user.
    """
    if output is not None:
        check_output(output)
        check_not_of_a_run(output)
        if output.exists() and path.exists() and output.samefile(path):
            raise DataError(f"--output: {output} is the file that is scored; name another one")
    groups = read_completions(path, config, labels=uses_labels(config.reward))
    check_answers(config.answer, config.model, NAME_A_MODEL)
    reward = make_reward(config.reward, graders={TASK: make_verifier(config.verifier, config.answer)})
    demands = demands_of(config.reward, reward.needs)
    if demands.any and config.model is None:
        raise no_model_error(config.reward, "reward", NAME_A_MODEL)
    demands |= demands_of_answers(config.answer)
    check_references(config.reward, groups, "reward")
    prompts = [group.prompt for group in groups]
    total = sum(len(group.completions) for group in groups)
    with (
        Display(console, f"rlsf score {path}", total=total) as display,
        open_models(config.model, config.engine, demands, display, seed=config.seed) as models,
    ):
        rollouts = make_rollouts(groups, config, demands, models, display)
        scorer = Scorer(reward, {TASK: Grader(config.task, models.embed())}, models.policy, models.engine)
        batches = Batches(scorer, prompts, rollouts, whole=remembers(config.reward))
        try:
            with display.phase("score"):
                batches.score(
                    iteration=config.iteration, seed=derive_seed(config.seed, "score"), advance=display.advance
                )
        except BaseException:
            if output is not None:
                _save_part(output, path, _in_order(groups, batches.scores), total, console)
            raise
        finally:
            scorer.close()
    rows = _in_order(groups, batches.scores)
    if output is None:
        console.print(_table(rows))
    else:
        try:
            with mendable_output(output):
                write_parts(output, map(_line, rows))
        except RunDirError:
            _save_part(output, path, rows, total, console)
            raise
    say(console, summary(rows, len({prompt.id for prompt in prompts}), batches.counts))
    if output is not None:
        say(console, f"Written to {output}")
    check_some_reply_came(batches.counts, [score for _, score in rows])


def check_some_reply_came(counts: Mapping[str, float], scores: Iterable[Score]) -> None:
    """Raises RewardError, with the most frequent reason, where every question that a reward asked went unanswered."""
    asked = counted(counts, "asked")
    if asked and counted(counts, "failed") == asked:
        reasons = Counter(_failures([score.evidence for score in scores])).most_common(1)
        why = reasons[0][0] if reasons else "the evidence says why (--output)"
        raise RewardError(f"not one of the {asked:g} questions that the reward asked was answered: {why}")


def _failures(evidence: Any) -> Iterator[str]:
    """What is called so, wherever it stands."""
    if isinstance(evidence, Mapping):
        yield from map(str, evidence.get("failures") or ())
        evidence = list(evidence.values())
    if isinstance(evidence, list | tuple):
        for item in evidence:
            yield from _failures(item)


def _save_part(output: Path, scored: Path, rows: Sequence[Row], total: int, console: Console) -> None:
    """What was scored before something broke, in a file of its own: judgements may have cost money. Beside the output;
    beside the file that is scored where the output is a pipe or a device."""
    if not rows:
        return
    what = f"The {len(rows)} of {total} completions that were scored by then"
    part = (scored if is_special(output) else output).resolve()
    try:
        part = _unused(part)
        write_parts(part, map(_line, rows))
    except OSError as error:  # what broke before is the greater trouble
        say(console, f"{what} could not be saved in {part}: {error.strerror or error}")
    else:
        say(console, f"{what} are in {part}")


def _unused(path: Path) -> Path:
    parts = (path.with_name(f"{path.stem[:100]}.part{number}{path.suffix}") for number in ("", *range(2, 10_000)))
    return next(part for part in parts if not part.exists())


def _in_order(groups: Sequence[CompletionGroup], scores: Sequence[Sequence[Score] | None]) -> list[Row]:
    """As the completions stand in the file; without groups that have no scores."""
    rows = [
        row
        for group, group_scores in zip(groups, scores, strict=True)
        if group_scores is not None
        for row in zip(group.completions, group_scores, strict=True)
    ]
    return sorted(rows, key=lambda row: row[0].position)


def _line(row: Row) -> str:
    completion, score = row
    scored = {"reward": score.value, "components": dict(score.components), "evidence": dict(score.evidence)}
    return json.dumps({**completion.columns, **scored}, ensure_ascii=False, allow_nan=False) + "\n"


def _table(rows: Sequence[Row]) -> Table:
    title = f"The first {SHOWN} of {len(rows)}" if len(rows) > SHOWN else None
    table = Table(title=title, title_justify="left", expand=True)
    table.add_column("row", justify="right")
    table.add_column("prompt", ratio=1, no_wrap=True)
    table.add_column("completion", ratio=2, no_wrap=True)
    table.add_column("reward", justify="right")
    for completion, score in rows[:SHOWN]:
        table.add_row(
            str(completion.position + 1),
            _clipped(_asked(completion.columns["prompt"])),
            _clipped(completion.text),
            "no opinion" if score.value is None else f"{score.value:.4g}",
        )
    return table


def _asked(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _clipped(text: str) -> Text:
    return Text(visible(" ".join(text.split())), overflow="ellipsis")


def summary(rows: Sequence[Row], prompts: int, counts: Mapping[str, float]) -> str:
    """What a person wants to know first."""
    return " ".join(_summary(rows, prompts, counts))


def _summary(rows: Sequence[Row], prompts: int, counts: Mapping[str, float]) -> Iterator[str]:
    known = [score.value for _, score in rows if score.value is not None]
    silent = len(rows) - len(known)
    yield f"{len(rows)} completions of {prompts} prompts:"
    if known:
        yield f"mean reward {np.mean(known):.4g}, deviation {np.std(known):.4g}, {min(known):.4g} to {max(known):.4g};"
    yield f"no opinion on {silent} ({silent / len(rows):.0%})"
    if counts:
        yield "(" + ", ".join(f"{name} {amount:g}" for name, amount in counts.items()) + ")"
