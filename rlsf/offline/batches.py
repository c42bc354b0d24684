"""Scoring many groups at once, with a bar to look at."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby

from reward.types import NoQuestionFitsError, Score
from rlsf.scorer import Scorer
from rlsf.seeds import derive_seed
from rollouts.types import Prompt, Rollout

BATCH = 256
"""Rollouts scored between two steps of the bar; a group stays whole."""

_Case = tuple[int, Prompt, Sequence[Rollout]]
"""A group's place, its prompt, and its rollouts."""


class Batches:
    """Scores one group per prompt, batch by batch; what was scored before an error is still there.

    Args:
        whole: score everything of one task and temperature together, as a reward must that depends on what it has
            scored before.
    """

    def __init__(
        self, scorer: Scorer, prompts: Sequence[Prompt], rollouts: Sequence[Sequence[Rollout]], *, whole: bool
    ) -> None:
        self._scorer = scorer
        self._batches = list(_batches(prompts, rollouts, whole))
        self.scores: list[list[Score] | None] = [None] * len(prompts)
        """By group; None before it is scored."""
        self.counts: Counter[str] = Counter()
        """As in `Scored`, over everything that is scored."""

    def score(
        self, *, iteration: int, seed: int, advance: Callable[[int], None] = lambda rollouts: None
    ) -> list[list[Score]]:
        """The scores of all groups.

        Args:
            iteration: that the reward takes it for, of the weights that change.
            advance: told how many more rollouts are scored.

        Raises:
            RewardError: from the reward. That no question fits is an error only where it is so in every batch.
        """
        too_long: dict[int, NoQuestionFitsError] = {}
        for number, batch in enumerate(self._batches):
            places, asked, groups = zip(*batch, strict=True)
            scored = self._scorer.score(
                asked,
                groups,
                task=asked[0].task,
                temperature=_temperature(groups[0]),
                iteration=iteration,
                seed=derive_seed(seed, "batch", number),
                none_fits=partial(too_long.setdefault, number),
            )
            for place, group_scores in zip(places, scored.scores, strict=True):
                self.scores[place] = group_scores
            self.counts.update(scored.counts)  # type: ignore[arg-type]  # amounts may be fractions
            advance(sum(map(len, groups)))
        if len(too_long) == len(self._batches):
            raise too_long[0]
        return [scores for scores in self.scores if scores is not None]


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


def counted(counts: Mapping[str, float], counter: str) -> float:
    """Over a reward and its parts, whose counters begin with their names."""
    return sum(amount for name, amount in counts.items() if name.rpartition("/")[2] == counter)
