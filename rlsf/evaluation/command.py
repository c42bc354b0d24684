"""What `rlsf eval` does."""

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from rlsf.config.load import load_config
from rlsf.config.schema import RunConfig
from rlsf.display import Display
from rlsf.embedding import model_embedder
from rlsf.errors import RunDirError
from rlsf.evaluation.evaluate import Evaluation, evaluate
from rlsf.evaluation.grading import Grader
from rlsf.evaluation.report import print_evaluations
from rlsf.files import check_output, mendable_output, write_text
from rlsf.models import load_tokenizer, resolve_model
from rlsf.models.loading import choose_device, choose_dtype
from rlsf.run_dir import RunDir, check_not_of_a_run, iteration_of, iterations_in
from rlsf.same import check_same_config, check_same_data
from rlsf.seeds import derive_seed
from rlsf.tasks import Task, build_stream
from rollouts.adapter import read_adapter
from rollouts.factory import create_engine
from rollouts.types import Engine, EngineError


def evaluate_run(
    directory: RunDir,
    console: Console,
    *,
    split: str,
    samples: int,
    adapter: str,
    limit: int | None,
    output: Path | None,
) -> None:
    """Measure one adapter of a run on held-out prompts of every task. The run itself is not touched.

    Args:
        adapter: `last`, `best`, `canary` (the one that the guard would go back to), `base`, the number of an iteration
            whose checkpoint is still there, or with an adapter per task, a task's name or `merged`.
        limit: at most this many prompts per task.

    Raises:
        RlsfError, EngineError: with a message for the user.
    """
    if output is not None:
        check_output(output)
        check_not_of_a_run(output)
    config = load_config(directory.config)
    check_same_config(directory, config)
    stream = build_stream(config)
    check_same_data(directory, stream)  # held-out prompts of other data may have been trained on
    tasks = [task for task in stream.tasks if task.has_references]
    if not tasks:
        raise RunDirError(f"{directory.path}: no task has reference answers, so there is nothing to grade with")
    folder, iteration = find_adapter(directory, adapter)
    with ExitStack() as stack:
        if folder is not None:
            folder = copied(folder, Path(stack.enter_context(TemporaryDirectory(prefix="rlsf_eval_"))))
        display = stack.enter_context(Display(console, f"rlsf eval {directory.path}", total=len(tasks)))
        with display.phase("start engine"):
            engine = _engine(config)
        try:
            if folder is not None:
                engine.sync(folder, version=1)
                check_served(engine, folder)
            evaluations = _evaluate(config, tasks, engine, split, samples, limit, display)
        finally:
            engine.close()
    print_evaluations(evaluations, adapter, console)
    if output is not None:
        rows = [{**evaluation.as_json(), "adapter": adapter, "iteration": iteration} for evaluation in evaluations]
        with mendable_output(output):
            write_text(output, json.dumps(rows, indent=2))


def find_adapter(directory: RunDir, name: str) -> tuple[Path | None, int | None]:
    """The adapter's folder, None for the base model, and the iteration it was saved in, None where none is known.

    Raises:
        RunDirError: there is no such adapter; the message lists those that there are.
    """
    if name == "base":
        return None, None
    iterations = {str(iteration_of(path)): iteration_of(path) for path in iterations_in(directory.checkpoints)}
    adapters = {key: directory.checkpoint(number) / "policy" / "default" for key, number in iterations.items()}
    latest = directory.latest_checkpoint()
    if latest is not None:
        iterations["last"] = iteration_of(latest)
        adapters["last"] = latest / "policy" / "default"
        state = directory.read_json(latest / "state.json")
        best, canary = state["best_iteration"], state.get("guard", {}).get("best_iteration")
        if best is not None:
            iterations["best"], adapters["best"] = best, directory.best_adapter(best)
        if canary is not None and directory.guard_adapter(canary).exists():
            iterations["canary"], adapters["canary"] = canary, directory.guard_adapter(canary)
    for key, path in (directory.task_adapters() | {"merged": directory.adapters / "merged"}).items():
        if (path / "adapter_config.json").is_file():
            adapters.setdefault(key, path)
    if name not in adapters:
        raise RunDirError(f"{directory.path} has no adapter {name!r}; it has {', '.join(['base', *sorted(adapters)])}")
    return adapters[name], iterations.get(name)


def copied(adapter: Path, into: Path) -> Path:
    """A copy of an adapter's folder in `into`: a run that goes on would delete the folder while an engine starts."""
    try:
        return shutil.copytree(adapter, into / adapter.name)
    except OSError as error:
        raise RunDirError(
            f"cannot copy the adapter {adapter}: {error}. If the run goes on, it may have pruned it: try again"
        ) from error


def check_served(engine: Engine, folder: Path) -> None:
    """Raises EngineError where the engine can tell what it serves, and it is not the adapter in `folder`."""
    served = getattr(engine, "fingerprint", None)
    if engine.version != 1 or (served is not None and served != read_adapter(folder).fingerprint):
        raise EngineError(f"the engine ({engine.description}) does not serve the adapter in {folder}")


def _engine(config: RunConfig) -> Engine:
    path = resolve_model(config.model.source)
    device = choose_device(config.model.device)
    return create_engine(
        config.engine,
        path,
        tokenizer=load_tokenizer(path, config.model.chat_template),
        lora_rank=config.model.lora.r,
        dtype=choose_dtype(config.model.dtype, device),
        device=device,
    )


def _evaluate(
    config: RunConfig,
    tasks: Sequence[Task],
    engine: Engine,
    split: str,
    samples: int,
    limit: int | None,
    display: Display,
) -> list[Evaluation]:
    evaluations = []
    embed = model_embedder(config.model)
    for task in tasks:
        with display.phase(f"evaluate {task.name}"):
            prompts = task.test if split == "test" else task.validation
            evaluations.append(
                evaluate(
                    engine,
                    Grader(task.config, embed),
                    split,
                    prompts[:limit],
                    config.sampling_of(task.config),
                    samples=samples,
                    greedy=config.evaluation.greedy,
                    seed=derive_seed(config.seed, "evaluate", split, task.name),
                )
            )
    return evaluations
