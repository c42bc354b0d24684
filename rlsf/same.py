"""Whether a run that is gone on with, or looked at, still is what it began as."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reward.config import FunctionConfig, ReflectionConfig, RewardConfig, RulesConfig, WordsRule, all_rewards
from rlsf.config.schema import RunConfig
from rlsf.errors import RunDirError
from rlsf.paths import expand
from rlsf.run_dir import RunDir
from rlsf.tasks import Stream

CHANGEABLE = (
    *("name", "output_dir", "engine", "delivery", "evaluation", "preflight", "guard", "tracking"),
    *("loop.checkpoint_every", "loop.keep_checkpoints", "algorithm.learning_rate", "algorithm.value_learning_rate"),
)
"""Keys that a resumed run may have other values of; before its first checkpoint also those of the warm start."""
_ABSENT = object()


def check_same_config(directory: RunDir, config: RunConfig) -> None:
    """Raises RunDirError where config.yaml was changed in a way that the run so far cannot be continued with."""
    saved = directory.read_json(directory.versions)
    try:  # as this version reads it, with the defaults of keys that are new
        began = RunConfig.model_validate(saved.get("config", config.model_dump(mode="json")))
    except ValidationError as error:
        version = saved.get("versions", {}).get("rlsf", "another version")
        raise RunDirError(
            f"{directory.path} began with rlsf {version}, whose config this version does not understand: resume it "
            "with that one"
        ) from error
    fixed = ("evaluation.prompts", "evaluation.samples") if config.evaluation.chooses else ()
    differing = _differing(began.model_dump(mode="json"), config.model_dump(mode="json"))
    changeable = CHANGEABLE if directory.latest_checkpoint() is not None else (*CHANGEABLE, "warm_start")
    changed = [key for key in differing if key in fixed or not key.startswith(changeable)]
    if changed:
        raise RunDirError(
            f"{directory.config}: {', '.join(changed)} changed since the run began: put it back, or start a new run. "
            f"What may change is {', '.join(CHANGEABLE)}"
        )


def _differing(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Dotted keys at which two configs differ."""
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        before, after = dict(enumerate(before)), dict(enumerate(after))
    if not isinstance(before, dict) or not isinstance(after, dict):
        return [] if before == after else [prefix]
    keys = [key for key in {**before, **after} if before.get(key, _ABSENT) != after.get(key, _ABSENT)]
    found = [_differing(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else key) for key in keys]
    return [key for part in found for key in part]


def check_same_data(directory: RunDir, stream: Stream) -> None:
    """Raises RunDirError where a source has changed since the run began: held-out prompts would be trained on."""
    known = directory.read_json(directory.versions).get("data", {})
    changed = [name for name, digest in stream.digests().items() if known.get(name) != digest]
    if changed:
        raise RunDirError(
            f"the data of task {changed[0]!r} is not what {directory.path} began with: restore its source, or start a "
            "new run on the new data"
        )


def reward_digests(reward: RewardConfig) -> dict[str, str]:
    """SHA-256 (hex) of the file of every reward function, by the path that names the function, and of every file of
    words or comments."""
    files: dict[str, Path | None] = {}
    for _, part in all_rewards(reward):
        match part:
            case FunctionConfig():
                files[part.path] = _source_file(part.path.rpartition(":")[0])
            case ReflectionConfig(feedback=str(path)):
                files[path] = _readable(path)
            case RulesConfig():
                files |= {r.file: _readable(r.file) for r in part.rules if isinstance(r, WordsRule) and r.file}
    return {path: hashlib.sha256(file.read_bytes()).hexdigest() for path, file in files.items() if file is not None}


def changed_rewards(directory: RunDir, config: RunConfig) -> list[str]:
    """What the reward reads whose file is another one than when the run began. What a file imports goes unseen."""
    began = directory.read_json(directory.versions).get("rewards", {})
    return [path for path, digest in reward_digests(config.reward).items() if began.get(path, digest) != digest]


def _source_file(module: str) -> Path | None:
    """None where there is none to read: loading the function says why, or it is part of Python itself."""
    if not module.endswith(".py"):
        try:
            spec = importlib.util.find_spec(module)
        except Exception:  # whatever its package raises
            return None
        module = (spec and spec.origin) or ""
    return _readable(module)


def _readable(path: str) -> Path | None:
    file = expand(path)
    return file if file.is_file() else None
