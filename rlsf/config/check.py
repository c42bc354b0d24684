"""What a config asks of this machine, checked before any long work: files, packages, functions, room to write.

Reads no data and imports no user code. The schema itself holds the checks that need nothing but the config.
"""

import ast
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

from reward.config import (
    AskingSection,
    FunctionConfig,
    LocalWriterConfig,
    OpenAIWriterConfig,
    ReflectionConfig,
    RewardConfig,
    RulesConfig,
    WordsRule,
    WriterConfig,
    all_rewards,
)
from reward.rules.words import read_words
from reward.types import RewardError
from rlsf.config.schema import FileSource, ModelConfig, RunConfig, TaskConfig
from rlsf.paths import expand, is_hub_id, is_there, packaged_module, unreachable, why_missing
from rlsf.text import did_you_mean

FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
# The tag that transformers adds to Jinja.
_GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


def check_config(config: RunConfig) -> list[str]:
    """Everything that would stop the run later, one line each, beginning with the key; empty if all is well."""
    found = [*_output_dir(config), *_model(config.model, "model"), *_packages(config)]
    for index, task in enumerate(config.tasks):
        found += _source(task, f"tasks.{index}.source")
    if config.replay.begin_with is not None:
        missing = why_missing(expand(config.replay.begin_with))
        found += [f"replay.begin_with: {missing}"] if missing is not None else []
    for key, reward in all_rewards(config.reward):
        found += _reward(reward, key)
    return found


def _reward(reward: RewardConfig, key: str) -> Iterator[str]:
    """Of one reward itself, without those that it is made of."""
    if isinstance(reward, FunctionConfig):
        yield from _function(reward.path, f"{key}.path")
    if isinstance(reward, ReflectionConfig) and reward.feedback is not None:
        yield from _file(expand(reward.feedback), f"{key}.feedback")
    for index, rule in enumerate(reward.rules if isinstance(reward, RulesConfig) else ()):
        if isinstance(rule, WordsRule) and rule.file is not None:
            yield from _words(rule.file, f"{key}.rules.{index}.file")
    if isinstance(reward, AskingSection | ReflectionConfig):
        yield from _writer(reward.by, f"{key}.by")


def _writer(by: WriterConfig, key: str) -> Iterator[str]:
    if isinstance(by, LocalWriterConfig):
        yield from _model(by, key)
    if isinstance(by, OpenAIWriterConfig) and by.api_key_env is not None and not os.environ.get(by.api_key_env):
        yield f"{key}.api_key_env: the environment variable {by.api_key_env} is not set; null sends no key"


def _output_dir(config: RunConfig) -> Iterator[str]:
    nearest = Path(config.output_dir) / config.name
    try:
        while not is_there(nearest) and nearest != nearest.parent:
            nearest = nearest.parent
    except (OSError, ValueError) as error:
        yield f"output_dir: {unreachable(nearest, error)}"
        return
    if not nearest.is_dir():
        yield f"output_dir: {nearest} is a file, not a folder"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield f"output_dir: {nearest} is not writable; choose another folder or mend its permissions"


def _model(model: ModelConfig | LocalWriterConfig, key: str) -> Iterator[str]:
    source = model.source
    if source.startswith("package:"):
        if not _is_installed(packaged_module(source)):
            yield f"{key}.source: the package {source.removeprefix('package:')!r} is not installed"
    elif not is_hub_id(source):
        missing = why_missing(expand(source))
        if missing is not None:
            yield f"{key}.source: {missing}"
    if model.chat_template is not None:
        yield from _chat_template(model.chat_template, f"{key}.chat_template")


def _chat_template(template: str, key: str) -> Iterator[str]:
    from jinja2 import Environment, TemplateSyntaxError

    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION_TAG.sub("", template))
    except TemplateSyntaxError as error:
        yield f"{key}: line {error.lineno} is no valid Jinja: {error.message}"


def _packages(config: RunConfig) -> Iterator[str]:
    if config.engine.kind == "vllm" and not _is_installed("vllm"):
        yield (
            "engine.kind: vLLM is not installed; `make setup` in rlsf's source folder installs the one for this "
            "machine, or take kind: auto"
        )
    if config.tracking.wandb.mode != "disabled" and not _is_installed("wandb"):
        yield "tracking.wandb.mode: wandb is not installed; set it to disabled"


def _source(task: TaskConfig, key: str) -> Iterator[str]:
    if not isinstance(task.source, FileSource):
        return
    path = expand(task.source.path)
    if path.suffix.lower() not in FILE_SUFFIXES:
        yield f"{key}.path: {path} ends in {path.suffix!r}; expected one of {', '.join(FILE_SUFFIXES)}"
    else:
        yield from _file(path, f"{key}.path")


def _file(path: Path, key: str) -> Iterator[str]:
    if (missing := why_missing(path)) is not None:
        yield f"{key}: {missing}"
    elif path.is_dir():
        yield f"{key}: {path} is a directory; name the file"


def _words(file: str, key: str) -> list[str]:
    missing = list(_file(expand(file), key))
    if not missing:
        try:
            read_words(file)
        except RewardError as error:
            return [f"{key}: {error}"]
    return missing


def _function(path: str, key: str) -> Iterator[str]:
    module, _, function = path.rpartition(":")
    if not module.endswith(".py"):
        if not _is_installed(module.split(".")[0]):
            yield f"{key}: there is no module {module.split('.')[0]!r} on the Python path"
    elif (missing := why_missing(Path(module))) is not None:
        yield f"{key}: {missing}"
    else:
        yield from _function_in_file(Path(module), function, key)


def _function_in_file(file: Path, function: str, key: str) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except OSError as error:
        yield f"{key}: {unreachable(file, error)}"
        return
    except (SyntaxError, ValueError) as error:
        yield f"{key}: {file} is no valid Python: {error}"
        return
    names = {name for node in ast.walk(tree) for name in _bound_names(node)}
    if function not in names and "*" not in names:
        yield f"{key}: {file} has no {function!r}{did_you_mean(function, sorted(names))}"


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
