"""`rlsf clusters` on a real run of the lab model."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlsf.replay import ReplayStore
from rlsf.run_dir import RunDir
from tests.killing import run_cli
from tests.lab_run import run_lab

pytestmark = pytest.mark.slow

SETTINGS = """
tasks:
  - name: sums
    source: $sums
    split: {validation: 4, test: 4}
    max_tokens: 4
  - name: words
    source: {kind: reasoning_gym, dataset: spell_backward, params: {min_word_len: 3, max_word_len: 8}, size: 200}
    split: {validation: 4, test: 4}
    max_tokens: 8
    answer: {kind: text}
sampling: {n: 2}
reward: {kind: verifier}
loop: {iterations: 2, prompts: 16}
evaluation: {samples: 1, final_samples: 1}
preflight: {enabled: false}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_lab(tmp_path_factory.mktemp("clusters"), SETTINGS)


def call(arguments: list[str], folder: Path) -> tuple[int, str]:
    status = run_cli(["clusters", *arguments], folder / "log")
    return status, " ".join((folder / "log").read_text().split())


def test_prompts_of_the_store_are_clustered(run: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in run.iterdir())
    out = tmp_path / "out"
    arguments = [str(run), "--set", "clusters.kind=kmeans", "--set", "clusters.k=2", "--output", str(out)]
    status, said = call(arguments, tmp_path)
    assert status == 0, said
    assert "32 prompts in 2 clusters by kmeans" in said
    content = json.loads((out / "clusters.json").read_text())
    assert (content["from"], content["settings"]["clusters"]["k"], len(content["points"])) == ("replay", 2, 32)
    assert {tuple(cluster["tasks"].items()) for cluster in content["clusters"]} == {(("sums", 16),), (("words", 16),)}
    with ReplayStore.open_read_only(RunDir.open(run).replay) as store:
        groups = list(store.groups())
    for cluster in content["clusters"]:
        inside = {point["id"] for point in content["points"] if point["cluster"] == cluster["label"]}
        rewards = [
            np.mean([r for r in group.rewards if r is not None]) for group in groups if group.prompt.id in inside
        ]
        assert cluster["reward"] == pytest.approx(np.mean(rewards))
    assert (out / "clusters.png").stat().st_size > 10_000
    assert (out / "clusters.svg").exists()
    assert sorted(path.name for path in run.iterdir()) == before


def test_training_prompts_and_answers_are_clustered(run: Path, tmp_path: Path) -> None:
    settings = tmp_path / "clusters.yaml"
    settings.write_text("clusters: {kind: dbscan}\nembedding: {of: answer}\n")
    status, said = call([str(run), "--config", str(settings)], tmp_path)
    assert status == 0 and "64 answers in" in said, said
    status, said = call([str(run), "--from", "train", "--limit", "60", "--map", "tsne"], tmp_path)
    assert status == 0 and "60 prompts (a sample of" in said, said
    status, said = call([str(run), "--from", "train", "--config", str(settings)], tmp_path)
    assert status == 2 and "take --from replay" in said
