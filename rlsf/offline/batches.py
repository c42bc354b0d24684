"""Scoring many groups at once, with a bar to look at."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from reward.types import Score
from rlsf.scorer import Scorer
from rlsf.seeds import derive_seed
from rollouts.types import Prompt, Rollout

BATCH = 256
"""Rollouts scored between two steps of the bar; a group stays whole."""

_Case = tuple[int, Prompt, Sequence[Rollout]]
"""A group's place, its prompt, and its rollouts."""


@dataclass(frozen=True, slots=True)
class Batched:
    """What scoring gave."""

    scores: list[list[Score]]
    counts: Mapping[str, float]
    """As in `Scored`, over everything."""


def score_in_batches(
    scorer: Scorer,
    prompts: Sequence[Prompt],
    rollouts: Sequence[Sequence[Rollout]],
    *,
    whole: bool,
    iteration: int,
    seed: int,
    advance: Callable[[int], None] = lambda rollouts: None,
) -> Batched:
    """Scores one group per prompt.

    Args:
        whole: score everything of one task and temperature together, as a reward must that depends on what it has
            scored before.
        iteration: that the reward takes it for, of the weights that change.
        advance: told how many more rollouts are scored.

    Raises:
        RewardError: from the reward.
    """
    scores: list[list[Score]] = [[] for _ in prompts]
    counts: Counter[str] = Counter()
    for number, batch in enumerate(_batches(prompts, rollouts, whole)):
        places, asked, groups = zip(*batch, strict=True)
        scored = scorer.score(
            asked,
            groups,
            task=asked[0].task,
            temperature=_temperature(groups[0]),
            iteration=iteration,
            seed=derive_seed(seed, "batch", number),
        )
        for place, group_scores in zip(places, scored.scores, strict=True):
            scores[place] = group_scores
        counts.update(scored.counts)  # type: ignore[arg-type]  # amounts may be fractions
        advance(sum(map(len, groups)))
    return Batched(scores, counts)


def _batches(prompts: Sequence[Prompt], rollouts: Sequence[Sequence[Rollout]], whole: bool) -> Iterator[list[_Case]]:
    """Groups of one task and one temperature, at which the model is then asked for its probabilities."""

    def kind(case: _Case) -> tuple[str, float]:
        return case[1].task, _temperature(case[2])

    cases = zip(range(len(prompts)), prompts, rollouts, strict=True)
    for _, alike in groupby(sorted(cases, key=kind), key=kind):
        batch: list[_Case] = []
        size = 0
        for case in alike:
            if batch and not whole and size + len(case[2]) > BATCH:
                yield batch
                batch, size = [], 0
            batch.append(case)
            size += len(case[2])
        yield batch


def _temperature(group: Sequence[Rollout]) -> float:
    return group[0].sampling.temperature
