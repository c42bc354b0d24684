"""Reward functions written for TRL: `f(prompts, completions, completion_ids, **columns) -> list[float |
None]`."""

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from numbers import Real
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from reward.base import BaseReward, Groups, prompt_of
from reward.types import Need, RewardContext, RewardError, Score
from rollouts.types import Prompt, Rollout

RewardFunction = Callable[..., Any]

_RESERVED = (
    "prompts",
    "completions",
    "completion_ids",
    "prompt",
    "completion",
    "trainer_state",
    "log_extra",
    "log_metric",
)


class FunctionReward(BaseReward):
    """Calls the function once for all rollouts, with keyword arguments as TRL's GRPOTrainer does.

    It gets `prompts` and `completions` (strings, or lists of messages where the prompt is a chat), `completion_ids`,
    one list per metadata column of the prompts (None where a prompt lacks it), `reference` if asked for,
    `trainer_state` (its `global_step` is the iteration), `log_extra`, whose values end up in the evidence, and
    `log_metric`, whose values end up there and in the metrics. A function without `**kwargs` gets the ones it names.
    A coroutine function is awaited.
    """

    def __init__(self, function: RewardFunction, *, name: str | None = None, needs_reference: bool = False) -> None:
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self.needs: frozenset[Need] = frozenset({"reference"}) if needs_reference else frozenset()
        self._function = function
        if not needs_reference and _demands(function, "reference"):
            raise RewardError(
                f"reward function {self.name!r} takes `reference`, which it is not given: set needs_reference: true, "
                "and it sees labels; or give the parameter a default"
            )

    def _score(self, groups: Groups, context: RewardContext) -> list[list[Score]]:
        rollouts = [rollout for group in groups for rollout in group]
        if not rollouts:
            return [[] for _ in groups]
        log = _Log(len(rollouts))
        arguments = self._arguments(rollouts, context) | {"log_extra": log.extra, "log_metric": log.metric}
        values = self._checked(self._call(arguments, rollouts), rollouts)
        for name, value in log.metrics.items():
            if math.isfinite(value):  # the evidence shows the others
                context.log_metric(name, value)
        scores = iter(
            Score(value, {} if value is None else {self.name: value}, log.evidence(index))
            for index, value in enumerate(values)
        )
        return [[next(scores) for _ in group] for group in groups]

    def _arguments(self, rollouts: Sequence[Rollout], context: RewardContext) -> dict[str, Any]:
        prompts = [prompt_of(rollout, context) for rollout in rollouts]
        names = sorted({name for prompt in prompts for name in prompt.metadata} - set(_RESERVED))
        # Copies: what the function does to them must not reach the next iteration.
        columns: dict[str, Any] = {name: [deepcopy(prompt.metadata.get(name)) for prompt in prompts] for name in names}
        if "reference" in self.needs:
            columns["reference"] = [prompt.reference for prompt in prompts]
        else:
            columns.pop("reference", None)
        ids = [list(rollout.completion_ids) for rollout in rollouts]
        if all(own or not rollout.text for own, rollout in zip(ids, rollouts, strict=True)):
            columns["completion_ids"] = ids  # else nobody has turned the texts into tokens
        return {
            "prompts": [_messages(prompt) for prompt in prompts],
            "completions": [_completion(r, prompt) for r, prompt in zip(rollouts, prompts, strict=True)],
            **columns,
            "trainer_state": SimpleNamespace(global_step=context.iteration),
        }

    def _call(self, arguments: dict[str, Any], rollouts: Sequence[Rollout]) -> Any:
        try:
            result = self._function(**_accepted(self._function, arguments))
            if inspect.iscoroutine(result):
                # In a thread of its own: the caller may be inside a running event loop already.
                with ThreadPoolExecutor(1) as pool:
                    result = pool.submit(asyncio.run, result).result()
            return result
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit, say, would end the run as if it had finished
            raise RewardError(
                f"reward function {self.name!r} raised {error!r} while scoring {_ids(rollouts)}{_place(error)}"
            ) from error

    def _checked(self, values: Any, rollouts: Sequence[Rollout]) -> list[float | None]:
        shape = getattr(values, "shape", None)  # of arrays and tensors
        is_row = hasattr(values, "__len__") and hasattr(values, "__iter__") if shape is None else len(shape) == 1
        if not is_row or isinstance(values, str | bytes | Mapping | Set):
            kind = type(values).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")
            raise RewardError(
                f"reward function {self.name!r} returned {kind} for {_ids(rollouts)}; a list was expected, with one "
                "number or None per completion, in their order"
            )
        if len(values) != len(rollouts):
            raise RewardError(
                f"reward function {self.name!r} returned {len(values)} rewards for {len(rollouts)} completions "
                f"({_ids(rollouts)})"
            )
        return [self._number(value, rollout) for value, rollout in zip(values, rollouts, strict=True)]

    def _number(self, value: Any, rollout: Rollout) -> float | None:
        if value is None:
            return None
        try:
            number = value.item() if hasattr(value, "item") else value  # NumPy scalars and tensors of one element
        except (ValueError, RuntimeError):  # more than one element
            number = value
        if not isinstance(number, Real):
            raise RewardError(
                f"reward function {self.name!r} returned {value!r} for rollout {rollout.id!r}: neither a number "
                "nor None"
            )
        try:
            return float(number)
        except OverflowError:
            raise RewardError(
                f"reward function {self.name!r} returned a number too large for a float for rollout {rollout.id!r}"
            ) from None


def parameter_of(function: RewardFunction, name: str) -> inspect.Parameter | None:
    """The function's parameter of this name; one that takes `**kwargs` alone has none."""
    try:
        return inspect.signature(function).parameters.get(name)
    except (TypeError, ValueError):  # some built-in callables have no signature
        return None


def _demands(function: RewardFunction, parameter: str) -> bool:
    """Whether a call without `parameter` would fail."""
    found = parameter_of(function, parameter)
    return found is not None and found.default is inspect.Parameter.empty


def _place(error: BaseException) -> str:
    """Where it was raised, in words to put behind it."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" (at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def load_function(path: str) -> RewardFunction:
    """The function that `module:function` or `path/to/file.py:function` names; a relative file is taken from
    the working directory.

    Raises:
        RewardError: there is no such module, file or function, or importing it raised.
    """
    module_name, _, name = path.rpartition(":")
    try:
        module = _load_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise RewardError(
            f"reward function {path!r}: {module_name} cannot be imported: {error!r}{_place(error)}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        found = sorted(
            key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")
        )
        raise RewardError(
            f"reward function {path!r}: {module_name} has no function {name!r}; it has: {', '.join(found) or 'none'}"
        )
    return function


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path} in {Path.cwd()}")
    # A name that no other module has: dataclasses, pickle and typing look their module up by it.
    name = f"_reward_file_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class _Log:
    """Keeps what a function hands to `log_extra` and `log_metric`, for the evidence. Functions may log from
    threads."""

    def __init__(self, rollouts: int) -> None:
        self._rollouts = rollouts
        self._lock = threading.Lock()
        self._extra: dict[str, list[Any]] = {}
        self._metrics: dict[str, list[float]] = {}

    def extra(self, column: str, values: Sequence[Any]) -> None:
        """TRL's `log_extra`: one value per completion."""
        if len(values) != self._rollouts:
            raise ValueError(f"log_extra({column!r}) got {len(values)} values for {self._rollouts} completions")
        with self._lock:
            self._extra[column] = [_readable(value) for value in values]

    def metric(self, name: str, value: float) -> None:
        """TRL's `log_metric`: a number for the batch, averaged over calls."""
        with self._lock:
            self._metrics.setdefault(name, []).append(float(value))

    @property
    def metrics(self) -> dict[str, float]:
        """Averages over the calls."""
        return {name: sum(values) / len(values) for name, values in self._metrics.items()}

    def evidence(self, index: int) -> dict[str, Any]:
        evidence = {column: values[index] for column, values in self._extra.items()}
        if self._metrics:
            evidence["metrics"] = {name: _readable(value) for name, value in self.metrics.items()}
        return evidence


def _accepted(function: RewardFunction, arguments: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    return {parameter.name: arguments[parameter.name] for parameter in parameters if parameter.name in arguments}


def _messages(prompt: Prompt) -> Any:
    return prompt.content if isinstance(prompt.content, str) else [dict(message) for message in prompt.content]


def _completion(rollout: Rollout, prompt: Prompt) -> Any:
    return rollout.text if isinstance(prompt.content, str) else [{"role": "assistant", "content": rollout.text}]


def _readable(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value


def _ids(rollouts: Sequence[Rollout]) -> str:
    shown = ", ".join(repr(rollout.id) for rollout in rollouts[:8])
    return f"rollouts {shown}" + (f" and {len(rollouts) - 8} more" if len(rollouts) > 8 else "")
