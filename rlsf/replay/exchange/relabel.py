"""What `rlsf replay relabel` does: scores what a store holds with another reward, into a new store."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from reward.config import uses_labels
from reward.factory import make_reward
from reward.types import NoQuestionFitsError, Score
from rlsf.config.load import load_config, read_document
from rlsf.config.schema import TaskConfig
from rlsf.display import Display, say
from rlsf.errors import ConfigError, DataError, RunDirError
from rlsf.evaluation.grading import Grader
from rlsf.experience import Group
from rlsf.offline.batches import Batches
from rlsf.offline.config import ScoreConfig, load_score_config
from rlsf.offline.demands import Demands, check_answers, demands_of, demands_of_answers, no_model_error, remembers
from rlsf.offline.models import open_models
from rlsf.offline.score import NAME_A_MODEL, check_some_reply_came
from rlsf.replay.exchange.labels import Labels, labels_of_file, labels_of_run
from rlsf.replay.exchange.stores import check_new, is_run, new_store, open_store, replay_config
from rlsf.replay.exchange.transfer import batched
from rlsf.replay.reader import ReplayReader
from rlsf.scorer import Scorer
from rlsf.seeds import derive_seed

OLD = "old_reward"
"""In the evidence: the reward and its components before."""


@dataclass
class _Tally:
    """What was scored so far, and what it was worth before."""

    counts: Counter[str] = field(default_factory=Counter)
    old: list[float | None] = field(default_factory=list)
    new: list[float | None] = field(default_factory=list)
    lessons: int = 0
    chunks: int = 0
    unfit: list[NoQuestionFitsError] = field(default_factory=list)
    last: Sequence[Score] = ()


def relabel_store(
    source: Path, new: Path, reward: Path, overrides: Sequence[str], *, references: Path | None, console: Console
) -> None:
    """Score all groups of a store with another reward, and put them into a new one with the same settings. Lessons,
    which are no answers, go along as they are; priorities stay.

    Args:
        reward: a `ScoreConfig`, or the config of a run, whose tasks then say how answers are found.
        references: a file with `prompt_id` and `reference`, for a reward that sees labels; None takes them from the
            data of the run, where `source` is one.

    Raises:
        RlsfError, EngineError, RewardError: with a message for the user; there is no new store then.
    """
    check_new(new, "NEW")
    config, tasks_of_config = _load(reward, overrides)
    with open_store(source) as store:
        if not len(store):
            raise RunDirError(f"{source}: its replay store is empty; there is nothing to score")
        stored = [task.task for task in store.stats().tasks]
        alike = [config.task.model_copy(update={"name": name}) for name in stored]
        tasks = _named(alike if tasks_of_config is None else tasks_of_config, stored, reward)
        labels = _labels(config, store, source, references)
        demands = _demands(config, tasks.values())
        total = sum(task.rollouts for task in store.stats().tasks)
        tally = _Tally()
        with (
            Display(console, f"rlsf replay relabel {source}", total=total) as display,
            open_models(config.model, config.engine, demands, display, seed=config.seed) as models,
        ):
            graders = {name: Grader(task, models.embed()) for name, task in tasks.items()}
            made_reward = make_reward(config.reward, graders={name: g.verifier for name, g in graders.items()})
            scorer = Scorer(made_reward, graders, models.policy, models.engine)
            settings = replay_config(capacity=store.capacity, keep=store.keep)
            try:
                with display.phase("score"), new_store(new, settings, name="NEW", seed=store.seed) as made:
                    for chunk in [list(store.groups())] if remembers(config.reward) else batched(store.groups()):
                        made.add(_scored(chunk, scorer, config, labels, tally, display), iteration=0)
                    if tally.chunks and len(tally.unfit) == tally.chunks:
                        raise tally.unfit[0]
                    check_some_reply_came(tally.counts, tally.last)
            finally:
                scorer.close()
    say(console, f"{new}: {_summary(tally)}")


def _load(path: Path, overrides: Sequence[str]) -> tuple[ScoreConfig, Sequence[TaskConfig] | None]:
    """The config, and the tasks of one that is of a run."""
    document = read_document(path).value
    if isinstance(document, dict) and "tasks" in document:
        of_run = load_config(path, overrides)
        return ScoreConfig.of_run(of_run), of_run.tasks
    return load_score_config(path, overrides), None


def _named(tasks: Sequence[TaskConfig], names: Sequence[str], path: Path) -> Mapping[str, TaskConfig]:
    """The tasks of these names, by name.

    Raises:
        ConfigError: there is none of that name.
    """
    known = {task.name: task for task in tasks}
    missing = [name for name in names if name not in known]
    if missing:
        raise ConfigError(
            f"{path}: there is no task {missing[0]!r}, of which the store has groups; its tasks are "
            f"{', '.join(known)}. A file with `reward`, and `answer` and `verifier` as they are needed, does for all"
        )
    return {name: known[name] for name in names}


def _labels(config: ScoreConfig, store: ReplayReader, source: Path, references: Path | None) -> Labels:
    """By prompt id; none where the reward sees none.

    Raises:
        ConfigError, DataError: it does, and there are none, or a prompt has none.
    """
    if not uses_labels(config.reward):
        return {}
    if references is not None:
        labels, origin = labels_of_file(references), f"--references: {references}"
    elif is_run(source):
        labels, origin = labels_of_run(source), f"the data of {source}"
    else:
        raise ConfigError(
            "reward: it compares with references, and a store keeps none; name a file with prompt_id and reference: "
            "--references FILE"
        )
    asked = dict.fromkeys(group.prompt.id for group in store.groups() if not group.is_lesson)
    bare = [id for id in asked if id not in labels]
    if bare:
        raise DataError(f"{origin} has no reference for prompt {bare[0]!r} ({len(bare)} of {len(asked)} have none)")
    return labels


def _demands(config: ScoreConfig, tasks: Collection[TaskConfig]) -> Demands:
    """Stored rollouts bring their tokens and log-probabilities along.

    Raises:
        ConfigError: a model is needed, and none is named.
    """
    of_reward = demands_of(config.reward, make_reward(config.reward).needs)
    demands = Demands(policy=of_reward.policy, engine=of_reward.engine)
    if demands.any and config.model is None:
        raise no_model_error(config.reward, "reward", NAME_A_MODEL)
    for task in tasks:
        check_answers(task.answer, config.model, NAME_A_MODEL)
    return reduce(or_, (demands_of_answers(task.answer) for task in tasks), demands)


def _scored(
    groups: Sequence[Group], scorer: Scorer, config: ScoreConfig, labels: Labels, tally: _Tally, display: Display
) -> list[Group]:
    """The groups with their new scores."""
    answers = [group for group in groups if not group.is_lesson]
    tally.lessons += len(groups) - len(answers)
    scores: dict[str, list[Score]] = {}
    if answers:
        batches = Batches(
            scorer,
            [replace(group.prompt, task=group.task, **labels.get(group.prompt.id, {})) for group in answers],
            [[experience.rollout for experience in group.experiences] for group in answers],
            whole=remembers(config.reward),
        )
        seed = derive_seed(config.seed, "relabel", tally.chunks)
        try:
            batches.score(iteration=config.iteration, seed=seed, advance=display.advance)
        except NoQuestionFitsError as error:  # of this chunk; whether it is so in all of them shows at the end
            tally.unfit.append(error)
        tally.chunks += 1
        tally.counts.update(batches.counts)
        scores = {group.id: own for group, own in zip(answers, batches.scores, strict=True) if own is not None}
        tally.last = [score for own in scores.values() for score in own]
        tally.new += [score.value for score in tally.last]
        tally.old += [reward for group in answers for reward in group.rewards]
    return [_with_scores(group, scores[group.id]) if group.id in scores else group for group in groups]


def _with_scores(group: Group, scores: Sequence[Score]) -> Group:
    return replace(
        group,
        experiences=tuple(
            replace(experience, score=replace(score, evidence={**score.evidence, OLD: _old(experience.score)}))
            for experience, score in zip(group.experiences, scores, strict=True)
        ),
    )


def _old(score: Score) -> dict[str, Any]:
    return {"reward": score.value, "components": dict(score.components)}


def _summary(tally: _Tally) -> str:
    """What a person wants to know first."""
    old, new = _figures(tally.old), _figures(tally.new)
    text = f"{len(tally.new):,} completions: {new}; before: {old}"
    if tally.counts:
        text += " (" + ", ".join(f"{name} {amount:g}" for name, amount in tally.counts.items()) + ")"
    if tally.lessons:
        text += f". {tally.lessons:,} lessons went along as they are"
    return text


def _figures(rewards: Sequence[float | None]) -> str:
    known = [reward for reward in rewards if reward is not None]
    silent = f"no opinion on {len(rewards) - len(known):,}"
    return f"mean reward {np.mean(known):.4g}, {silent}" if known else silent
