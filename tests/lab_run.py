"""Small real runs of the lab model through the command, and what they leave behind."""

from pathlib import Path
from string import Template
from typing import Any

from rlsf.run_dir import read_jsonl
from tests.killing import run_cli

HEAD = """
name: run
output_dir: $folder
model: {source: lab}
engine: {kind: transformers}
tracking: {tensorboard: false}
"""
SUMS = "{kind: reasoning_gym, dataset: chain_sum, params: {min_terms: 2, max_terms: 2}, size: 200}"
"""Source of sums of two numbers."""


def run_lab(folder: Path, settings: str, *overrides: str) -> Path:
    """Runs what `settings` add to HEAD, with `$folder` and `$sums` filled in, to its end; returns the run's folder."""
    config, log = folder / "config.yaml", folder / "log"
    config.write_text(Template(HEAD + settings).safe_substitute(folder=folder, sums=SUMS))
    changes = [part for override in overrides for part in ("--set", override)]
    assert run_cli(["run", str(config), *changes], log) == 0, log.read_text()
    return folder / "run"


def metrics_of(run: Path) -> dict[int, dict[str, Any]]:
    """By iteration."""
    return {row["iteration"]: row for row in read_jsonl(run / "metrics.jsonl")}
