"""What `rlsf replay relabel` does: scores what a store holds with another reward, into a new store."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
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
        settings = replay_config(capacity=store.capacity, keep=store.keep)
        with (
            Display(console, f"rlsf replay relabel {source}", total=total) as display,
            open_models(config.model, config.engine, demands, display, seed=config.seed) as models,
        ):
            graders = {name: Grader(task, models.embed()) for name, task in tasks.items()}
            made_reward = make_reward(config.reward, graders={name: g.verifier for name, g in graders.items()})
            with (
                closing(Scorer(made_reward, graders, models.policy, models.engine)) as scorer,
                display.phase("score"),
                new_store(new, settings, name="NEW", seed=store.seed) as made,
            ):
                relabelling = _Relabelling(scorer, config, labels, display.advance)
                # A run that is at work may begin another task meanwhile.
                groups = (group for group in store.groups() if group.task in tasks)
                for chunk in [list(groups)] if remembers(config.reward) else batched(groups):
                    made.add(relabelling.score(chunk), iteration=0)
                relabelling.check()
    say(console, f"{new}: {relabelling.summary()}")


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


class _Relabelling:
    """Scores groups chunk by chunk, and counts."""

    def __init__(self, scorer: Scorer, config: ScoreConfig, labels: Labels, advance: Callable[[int], None]) -> None:
        self._scorer = scorer
        self._config = config
        self._labels = labels
        self._advance = advance
        self._counts: Counter[str] = Counter()
        self._old: list[float | None] = []
        self._new: list[float | None] = []
        self._lessons = 0
        self._chunks = 0
        self._unfit: list[NoQuestionFitsError] = []
        """One for each chunk in which no question fitted."""
        self._last: Sequence[Score] = ()

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with their new scores; lessons as they are."""
        answers = [group for group in groups if not group.is_lesson]
        self._lessons += len(groups) - len(answers)
        if not answers:
            return list(groups)
        scores = dict(zip((group.id for group in answers), self._scores(answers), strict=True))
        self._last = [score for own in scores.values() for score in own]
        self._new += [score.value for score in self._last]
        self._old += [reward for group in answers for reward in group.rewards]
        return [_with_scores(group, scores[group.id]) if group.id in scores else group for group in groups]

    def _scores(self, answers: Sequence[Group]) -> list[list[Score]]:
        batches = Batches(
            self._scorer,
            [replace(group.prompt, task=group.task, **self._labels.get(group.prompt.id, {})) for group in answers],
            [[experience.rollout for experience in group.experiences] for group in answers],
            whole=remembers(self._config.reward),
        )
        seed = derive_seed(self._config.seed, "relabel", self._chunks)
        try:
            batches.score(iteration=self._config.iteration, seed=seed, advance=self._advance)
        except NoQuestionFitsError as error:  # of this chunk, which is scored; of all of them it is an error
            self._unfit.append(error)
        self._chunks += 1
        self._counts.update(batches.counts)
        return [scores for scores in batches.scores if scores is not None]

    def check(self) -> None:
        """Raises RewardError where no question that the reward asked fitted, or none was answered."""
        if self._unfit and len(self._unfit) == self._chunks:
            raise self._unfit[0]
        check_some_reply_came(self._counts, self._last)

    def summary(self) -> str:
        """What a person wants to know first."""
        text = f"{len(self._new):,} completions: {_figures(self._new)}; before: {_figures(self._old)}"
        if self._counts:
            text += " (" + ", ".join(f"{name} {amount:g}" for name, amount in self._counts.items()) + ")"
        if self._lessons:
            text += f". Lessons, which stay as they are: {self._lessons:,}"
        return text


def _figures(rewards: Sequence[float | None]) -> str:
    known = [reward for reward in rewards if reward is not None]
    silent = f"no opinion on {len(rewards) - len(known):,}"
    return f"mean reward {np.mean(known):.4g}, {silent}" if known else silent


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
