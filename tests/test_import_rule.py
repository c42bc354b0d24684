"""Imports point one way, heavy packages stay where they belong, and the quick commands stay quick."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path for package in ("rollouts", "reward", "rlsf") for path in (ROOT / package).rglob("*.py"))

FORBIDDEN = {"rollouts": {"reward", "rlsf"}, "reward": {"rlsf"}, "rlsf": set[str]()}
OWNERS = {"vllm": "rollouts/", "trl": "rlsf/algorithms/", "wandb": "rlsf/tracking/"}
HEAVY = ("torch", "transformers", "datasets", "trl", "vllm", "peft", "wandb", "pyarrow", "sklearn")


def imported_packages(source: str) -> Iterator[tuple[str, int]]:
    """Top-level packages that a module imports anywhere in it, by statement or by importlib, with the line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module.split(".")[0], node.lineno
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value).split(".")[0], node.lineno


def violations(path: str, source: str) -> list[str]:
    package = path.split("/")[0]
    found = []
    for imported, line in imported_packages(source):
        if imported in FORBIDDEN[package]:
            found.append(f"{path}:{line}: {package} must not import {imported}")
        owner = OWNERS.get(imported)
        if owner is not None and not path.startswith(owner):
            found.append(f"{path}:{line}: only {owner} may import {imported}")
    return found


@pytest.mark.parametrize("path", [path.relative_to(ROOT).as_posix() for path in MODULES])
def test_imports_point_one_way(path: str) -> None:
    assert violations(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("rollouts/x.py", "import rlsf.config"),
        ("rollouts/x.py", "def f():\n    from reward.types import Score"),
        ("reward/x.py", "if True:\n    import rlsf as r"),
        ("reward/x.py", "import importlib\nimportlib.import_module('vllm.engine')"),
        ("rlsf/loop.py", "from trl.trainer import GRPOTrainer"),
        ("rlsf/loop.py", "import wandb"),
    ],
)
def test_the_rule_catches_a_violation(path: str, source: str) -> None:
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize("module", ["rlsf.config", "rlsf.tasks", "rlsf.errors", "reward.config", "rollouts.config"])
def test_light_modules_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
