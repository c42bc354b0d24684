"""What `rlsf eval` does."""

import json
from pathlib import Path

from rich.console import Console

from rlsf.config.load import load_config
from rlsf.config.schema import RunConfig
from rlsf.display import Display
from rlsf.errors import RunDirError
from rlsf.evaluation.evaluate import Evaluation, evaluate
from rlsf.evaluation.grading import Grader
from rlsf.evaluation.report import print_evaluations
from rlsf.models import load_tokenizer, resolve_model
from rlsf.models.loading import choose_device, choose_dtype
from rlsf.run_dir import RunDir, iteration_of
from rlsf.seeds import derive_seed
from rlsf.tasks import Stream, build_stream
from rollouts.factory import create_engine
from rollouts.types import Engine


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
        adapter: `last`, `best`, `base`, or the number of an iteration whose checkpoint is still there.
        limit: at most this many prompts per task.

    Raises:
        RlsfError, EngineError: with a message for the user.
    """
    config = load_config(directory.config)
    stream = build_stream(config)
    folder = find_adapter(directory, adapter)
    with Display(console, f"rlsf eval {directory.path}", total=len(stream.tasks)) as display:
        with display.phase("start engine"):
            engine = _engine(config)
        try:
            if folder is not None:
                engine.sync(folder, version=1)
            evaluations = _evaluate(config, stream, engine, split, samples, limit, display)
        finally:
            engine.close()
    print_evaluations(evaluations, adapter, console)
    if output is not None:
        directory.write_text(output, json.dumps([evaluation.as_json() for evaluation in evaluations], indent=2))


def find_adapter(directory: RunDir, name: str) -> Path | None:
    """The adapter's folder; None for the base model.

    Raises:
        RunDirError: there is no such adapter; the message lists those that there are.
    """
    if name == "base":
        return None
    folders = {str(iteration_of(path)): path for path in directory.checkpoints.glob("iter_*")}
    latest = directory.latest_checkpoint()
    if latest is not None:
        folders["last"] = latest
    adapters = {key: path / "policy" / "default" for key, path in folders.items()}
    for path in directory.best.glob("iter_*"):
        adapters["best"] = path
    if name not in adapters:
        raise RunDirError(f"{directory.path} has no adapter {name!r}; it has {', '.join(['base', *sorted(adapters)])}")
    return adapters[name]


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
    config: RunConfig, stream: Stream, engine: Engine, split: str, samples: int, limit: int | None, display: Display
) -> list[Evaluation]:
    evaluations = []
    for task in stream.tasks:
        with display.phase(f"evaluate {task.name}"):
            prompts = task.test if split == "test" else task.validation
            evaluations.append(
                evaluate(
                    engine,
                    Grader(task.config),
                    split,
                    prompts[:limit],
                    config.sampling_of(task.config),
                    samples=samples,
                    greedy=config.evaluation.greedy,
                    seed=derive_seed(config.seed, "evaluate", split, task.name),
                )
            )
    return evaluations
