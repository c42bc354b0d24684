"""Which answers to one prompt mean the same: what everything that counts votes counts by.

Answers that mean the same get one spelling, so that counting equal strings is enough afterwards. An empty answer is
none, however alike the empty ones are.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from reward.config import EquivalenceConfig
from reward.expressions import refusal, same_expression
from reward.math_process import shared_process
from reward.numerals import bare_number, canonical_number, number_value
from reward.types import RewardContext, RewardError
from rollouts.types import Rollout

Equivalent = Callable[[Sequence[str]], list[int]]
"""A cluster number for each of some distinct answers to one prompt. The clusters do not depend on the order."""
Embed = Callable[[Sequence[str]], np.ndarray]
"""(N, H) vectors for N texts; close directions for close meanings."""


def group_answers(group: Sequence[Rollout], context: RewardContext) -> list[str | None]:
    """The answers of rollouts to one prompt, those that mean the same spelled alike; None where there is none."""
    return spell_alike([context.extract(rollout) for rollout in group], context.equivalent)


def spell_alike(answers: Sequence[str | None], equivalent: Equivalent | None) -> list[str | None]:
    """Each answer in the most frequent spelling of those that mean the same, of equally frequent ones the first in the
    alphabet; None for none and for empty ones. Without `equivalent`, each spelling has a meaning of its own."""
    counts = Counter(answer for answer in answers if answer)
    distinct = sorted(counts, key=lambda answer: (-counts[answer], answer))
    clusters = equivalent(distinct) if equivalent is not None and len(distinct) > 1 else range(len(distinct))
    spellings: dict[int, str] = {}
    alike = {answer: spellings.setdefault(cluster, answer) for answer, cluster in zip(distinct, clusters, strict=True)}
    return [alike[answer] if answer else None for answer in answers]


def make_equivalent(config: EquivalenceConfig, embed: Embed | None = None) -> Equivalent | None:
    """What the config calls the same; None where it is the spelling alone.

    Raises:
        RewardError: it takes embeddings, and `embed` is missing.
    """
    match config.kind:
        case "spelling":
            return None
        case "math":
            return by_sorted_set(math_clusters)
        case "embedding":
            if embed is None:
                raise RewardError("answer.equivalence: kind embedding needs a model that embeds answers; none is here")
            return by_sorted_set(lambda answers: embedding_clusters(embed(answers), config.max_distance))


def by_sorted_set(cluster: Callable[[Sequence[str]], list[int]]) -> Equivalent:
    """`cluster`, made independent of the order of the answers, and asked once for each set of them: a group is looked
    at by several parts of a run."""

    @lru_cache(maxsize=4096)
    def clusters(answers: tuple[str, ...]) -> dict[str, int]:
        return dict(zip(answers, cluster(answers), strict=True))

    def equivalent(answers: Sequence[str]) -> list[int]:
        found = clusters(tuple(sorted(set(answers))))
        return [found[answer] for answer in answers]

    return equivalent


def math_clusters(answers: Sequence[str]) -> list[int]:
    """An answer joins the first cluster in which it equals every member: math-verify's equality is not transitive
    (50\\% equals 50, and 0.5 too)."""
    clusters: list[list[str]] = []
    numbers = []
    for answer in answers:
        fitting = (i for i, members in enumerate(clusters) if all(same_answer(member, answer) for member in members))
        number = next(fitting, len(clusters))
        if number == len(clusters):
            clusters.append([])
        clusters[number].append(answer)
        numbers.append(number)
    return numbers


def embedding_clusters(vectors: np.ndarray, max_distance: float) -> list[int]:
    """Agglomerative clustering by cosine distance with average linkage: the two closest clusters are merged while the
    mean distance between their members is at most `max_distance`. A zero vector is at distance 1 from all others.

    Args:
        vectors: (N, H).

    Raises:
        RewardError: a vector is not finite.
    """
    from sklearn.cluster import AgglomerativeClustering

    if len(vectors) < 2:
        return [0] * len(vectors)
    vectors = np.asarray(vectors, dtype=np.float64)
    if not np.isfinite(vectors).all():
        raise RewardError("an embedding of an answer is not finite: the model that embeds answers is broken")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = vectors / np.where(norms > 0, norms, 1.0)
    distances = np.clip(1.0 - directions @ directions.T, 0.0, 2.0)
    np.fill_diagonal(distances, 0.0)
    clustering = AgglomerativeClustering(
        n_clusters=None,
        metric="precomputed",
        linkage="average",
        distance_threshold=np.nextafter(max_distance, np.inf),  # scikit-learn merges below it
    )
    return [int(label) for label in clustering.fit_predict(distances)]


def same_answer(first: str, second: str) -> bool:
    """Whether each of two answers would be right if the other were the reference: math-verify's equality is not
    symmetric. What it cannot read, or not in time, equals nothing but itself."""
    first, second = sorted((first, second))
    return first == second or _same(first, second)


@lru_cache(maxsize=65536)
def _same(first: str, second: str) -> bool:
    if _far_apart(first, second):
        return False
    pairs = (first, second), (second, first)
    if any(refusal(*pair) is not None for pair in pairs) or not (_is_readable(first) and _is_readable(second)):
        return False
    return all(same_expression(*pair).equal for pair in pairs)


def _far_apart(first: str, second: str) -> bool:
    """Whether both are plain numbers that differ by more than math-verify's rounding (six decimals): most pairs need
    no more than this."""
    a, b = _value(first), _value(second)
    return a is not None and b is not None and abs(a - b) > Fraction(1, 10**5)


@lru_cache(maxsize=65536)
def _value(answer: str) -> Fraction | None:
    number = bare_number(answer)
    return None if number is None else number_value(canonical_number(number))


@lru_cache(maxsize=65536)
def _is_readable(answer: str) -> bool:
    """Asked of each answer alone: one that takes too long would run out of time once for every other answer."""
    verdict = shared_process().compare(answer, "0")
    return verdict.equal is not None and not verdict.note
