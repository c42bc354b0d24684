"""What `rlsf clusters` does."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console

from rlsf.clustering.clusters import fit_clusters
from rlsf.clustering.embeddings import Embeddings, ModelEmbeddings, make_embeddings
from rlsf.clustering.report import ClusterReport, clusters_table, describe, plot_map
from rlsf.config.clustering import ClusteringConfig
from rlsf.config.load import load_config
from rlsf.config.schema import ModelConfig
from rlsf.display import say
from rlsf.errors import ConfigError, RunDirError
from rlsf.experience import Group
from rlsf.files import check_output_folder, mendable_output, write_text
from rlsf.models import load_base_model, load_tokenizer, resolve_model
from rlsf.replay import ReplayStore
from rlsf.run_dir import RunDir
from rlsf.same import check_same_config, check_same_data
from rlsf.seeds import derive_seed
from rlsf.tasks import Stream, build_stream
from rollouts.types import Prompt, Rollout

Source = Literal["train", "replay"]


@dataclass(frozen=True, slots=True)
class Material:
    """What is clustered, one entry per point."""

    prompts: Sequence[Prompt]
    """Of answers: with the answer's words, to be shown as examples."""
    rewards: Sequence[float | None]
    answers: Sequence[Rollout] | None = None
    """Where answers are clustered, and not prompts."""

    def sample(self, limit: int, seed: int) -> "Material":
        """At most `limit` of them, in their order."""
        kept = np.sort(np.random.default_rng(seed).permutation(len(self.prompts))[:limit])
        answers = None if self.answers is None else [self.answers[index] for index in kept]
        return Material([self.prompts[index] for index in kept], [self.rewards[index] for index in kept], answers)


def clusters_of_run(
    directory: RunDir,
    console: Console,
    settings: ClusteringConfig,
    *,
    source: Source,
    limit: int,
    method: Literal["pca", "tsne"],
    output: Path | None,
) -> None:
    """Cluster the prompts of a run, or its answers. The run itself is not touched.

    Args:
        source: `train` takes the training prompts of all tasks, `replay` what the replay store holds: each prompt once,
            or every answer. Rewards are those in the store: of a prompt, the mean over its answers.
        limit: at most this many points, drawn from the run's seed.
        method: of the map.

    Raises:
        RlsfError, EngineError: with a message for the user.
    """
    if output is not None:
        check_output_folder(output)
    config = load_config(directory.config)
    check_same_config(directory, config)
    stream = build_stream(config)
    check_same_data(directory, stream)
    seed = derive_seed(config.seed, "clusters")
    everything = _material(directory, stream, source, settings.embedding.of)
    material = everything.sample(limit, seed)
    points = _embed(material, make_embeddings(settings.embedding, lambda: _base_model(config.model)))
    try:
        clusters = fit_clusters(points, settings.clusters, seed)
    except ValueError as error:
        raise RunDirError(f"{directory.path}: {error}") from error
    labels = clusters.assign(points)
    reports = describe(clusters, points, material.prompts, material.rewards)
    part = "" if len(points) == len(everything.prompts) else f" (a sample of {len(everything.prompts)})"
    what = "prompts" if material.answers is None else "answers"
    noise = f", {np.mean(labels < 0):.0%} of them in none" if (labels < 0).any() else ""
    say(console, f"{len(points)} {what}{part} in {len(clusters.labels)} clusters by {settings.clusters.kind}{noise}")
    console.print(clusters_table(reports))
    if output is None:
        return
    with mendable_output(output):
        facts = {"run": str(directory.path), "from": source, "settings": settings.model_dump(mode="json")}
        _write(output / "clusters.json", facts, reports, material, labels)
        for suffix in ("png", "svg"):
            plot_map(
                clusters.project(points), labels, output / f"clusters.{suffix}",
                tasks=[prompt.task for prompt in material.prompts], method=method, seed=seed,
            )  # fmt: skip
    say(console, f"Written to {output}")


def _material(directory: RunDir, stream: Stream, source: Source, of: Literal["prompt", "answer"]) -> Material:
    """Raises ConfigError where training prompts are to have answers, RunDirError where there is nothing."""
    if of == "answer" and source == "train":
        raise ConfigError("embedding.of: answer needs answers, and training prompts have none; take --from replay")
    with ReplayStore.open_read_only(directory.replay) as store:
        groups = [group for group in store.groups() if not group.is_lesson]
    if source == "train":
        rewards = _mean_rewards(groups)
        prompts = [prompt for task in stream.tasks for prompt in task.train]
        return Material(prompts, [rewards.get(prompt.id) for prompt in prompts])
    if not groups:
        raise RunDirError(f"{directory.path}: its replay store is empty; let it run for an iteration, or --from train")
    if of == "answer":
        pairs = [(group.prompt, experience) for group in groups for experience in group.experiences]
        shown = [replace(prompt, content=e.rollout.text) for prompt, e in pairs]
        return Material(shown, [e.score.value for _, e in pairs], [e.rollout for _, e in pairs])
    once = {group.prompt.id: group.prompt for group in groups}
    rewards = _mean_rewards(groups)
    return Material(list(once.values()), [rewards.get(id) for id in once])


def _mean_rewards(groups: Sequence[Group]) -> dict[str, float]:
    """Of all answers to a prompt that have a reward, by the prompt's id."""
    found: dict[str, list[float]] = {}
    for group in groups:
        found.setdefault(group.prompt.id, []).extend(reward for reward in group.rewards if reward is not None)
    return {id: float(np.mean(rewards)) for id, rewards in found.items() if rewards}


def _base_model(config: ModelConfig) -> Embeddings:
    path = resolve_model(config.source)
    return ModelEmbeddings(
        load_base_model(path, config.dtype, config.device), load_tokenizer(path, config.chat_template)
    )


def _embed(material: Material, embeddings: Embeddings) -> np.ndarray:
    return embeddings.prompts(material.prompts) if material.answers is None else embeddings.answers(material.answers)


def _write(
    path: Path, facts: Mapping[str, object], reports: Sequence[ClusterReport], material: Material, labels: np.ndarray
) -> None:
    """Settings, clusters, and the cluster of every point."""
    ids = [item.id for item in (material.prompts if material.answers is None else material.answers)]
    rows = zip(ids, material.prompts, labels.tolist(), strict=True)
    points = [{"id": id, "task": prompt.task, "cluster": label} for id, prompt, label in rows]
    content = {**facts, "clusters": [asdict(report) for report in reports], "points": points}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
