"""Labels do not leak: with wrong references, or none, a label-free run learns exactly the same."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from rlsf.replay import ReplayStore
from tests.lab_run import run_lab

RUN = """
tasks:
  - name: sum
    source: {kind: file, path: $folder/rows.jsonl, reference_column: $column}
    max_tokens: 8
    split: {validation: 8, test: 8}
sampling: {n: 4}
loop: {iterations: 2, prompts: 8}
evaluation: {every: 1, samples: 2, final_samples: 2}
preflight: {canary: 8}
guard: {canary: {truth: votes, prompts: 8, samples: 2, window: 1}}
"""
REWARDS = {
    "votes": "{kind: weighted_sum, components: {m: {reward: {kind: majority, soft: true}}, "
    "e: {reward: {kind: semantic_entropy}}, p: {normalize: running, reward: {kind: p_true}}}}",
    "tokens": "{kind: weighted_sum, components: {c: {reward: {kind: self_certainty}}, "
    "g: {reward: {kind: confidence}}, e: {reward: {kind: token_entropy, model: reference}}}}",
    "labels": "{kind: verifier}",
    "words": "{kind: reflection, critiques: 2, critique_tokens: 4, learn: [critique], measure: {kind: majority}}",
}
ASKS = "samples: 2, max_tokens: 4, retries: 0"
REWARDS["combined"] = (
    "{kind: weighted_sum, components: {"
    f"j: {{reward: {{kind: judge, {ASKS}}}}}, "
    "pair: {reward: {kind: pairwise_judge, opponents: 1, max_tokens: 4, retries: 0}}, "
    f"meta: {{reward: {{kind: meta_judge, {ASKS}}}}}, "
    "r: {reward: {kind: rules, rules: [{kind: expression, name: near, holds: answer < 60}]}}, "
    "g: {reward: {kind: gate, condition: {kind: length_penalty, max_tokens: 4}, "
    "reward: {kind: minimum, components: {q: {reward: {kind: sequence_probability, pay: probability}}, "
    "m: {reward: {kind: majority}}}}}}, "
    "l: {reward: {kind: length_controlled, reward: {kind: semantic_entropy}}}, "
    "f: {reward: {kind: function, path: $folder/mine.py:mine}}}}"
)
"""Every other reward that is label-free, in one."""
REWARDS["revised"] = (
    "{kind: reflection, critiques: 2, critique_tokens: 4, learn: [critique, revision], measure: {kind: majority}}"
)
MINE = """
def mine(completions, **columns):
    assert "reference" not in columns, columns
    return [len(completion) / 10 for completion in completions]
"""
ALGORITHMS = {"grpo": "{kind: grpo, kl_coef: 0.05}", "dpo": "{kind: dpo}"}


def rows(kind: str) -> list[dict[str, Any]]:
    pairs = [(a, b) for a in range(10, 40) for b in range(10, 14)]
    poison = random.Random(0)
    references = {
        "true": [str(a + b) for a, b in pairs],
        "poisoned": [str(poison.randrange(10**6)) for _ in pairs],
        "none": [None for _ in pairs],
    }[kind]
    prompts = [f"State the final answer to the following arithmetic problem: {a} + {b} =" for a, b in pairs]
    found = [{"prompt": prompt, "reference": label} for prompt, label in zip(prompts, references, strict=True)]
    return [{key: value for key, value in row.items() if value is not None} for row in found]


def learn(folder: Path, kind: str, reward: str, algorithm: str) -> Path:
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(kind)))
    column = "null" if kind == "none" else "reference"
    (folder / "mine.py").write_text(MINE)
    changes = (f"reward={REWARDS[reward].replace('$folder', str(folder))}", f"algorithm={ALGORITHMS[algorithm]}")
    return run_lab(folder, RUN.replace("$column", column), *changes)


def learned(run: Path) -> tuple[Any, bytes, list[Any]]:
    """Every reward with its pairs' order and evidence, the revisions to imitate, the final weights, and the metrics."""
    with ReplayStore.open_read_only(run / "replay") as store:
        rewards = [
            (
                group.id,
                group.prompt.text,
                [(e.rollout.text, e.score.value, dict(e.score.evidence)) for e in group.experiences],
            )
            for group in store.groups()
        ]
    targets = run / "targets.jsonl"
    rewards += [json.loads(line) for line in targets.read_text().splitlines()] if targets.exists() else []
    weights = (run / "checkpoints" / "iter_000002" / "policy" / "default" / "adapter_model.safetensors").read_bytes()
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return rewards, weights, [{k: v for k, v in row.items() if not k.startswith("validation/")} for row in metrics]


@pytest.mark.parametrize(
    ("reward", "algorithm"),
    [
        ("votes", "grpo"),
        ("votes", "dpo"),
        ("tokens", "grpo"),
        ("words", "grpo"),
        ("combined", "grpo"),
        ("revised", "dpo"),
    ],
)
def test_poisoned_or_missing_references_change_no_reward_no_pair_and_no_weight(
    tmp_path: Path, reward: str, algorithm: str
) -> None:
    true, poisoned, none = (
        learned(learn(tmp_path / kind, kind, reward, algorithm)) for kind in ("true", "poisoned", "none")
    )
    assert true[0] == poisoned[0] == none[0] and len(true[0]) >= 16
    assert true[1] == poisoned[1] == none[1]
    assert true[2] == poisoned[2] == none[2]


def test_the_poison_works(tmp_path: Path) -> None:
    """A reward that sees labels does learn something else from other labels."""
    true, poisoned = (learned(learn(tmp_path / kind, kind, "labels", "grpo")) for kind in ("true", "poisoned"))
    assert true[0] != poisoned[0] and true[1] != poisoned[1]
