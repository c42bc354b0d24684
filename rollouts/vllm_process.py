"""vLLM inside this process: the environment that takes, and what it must not change for the trainer beside it."""

import importlib
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from rollouts.types import EngineError

# The engine core and its worker share our process and thread: as processes of their own they busy-wait on the cores
# that the trainer needs.
_REQUIRED = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # one sampler and one way to reload weights on CPU and GPU
    "VLLM_NO_USAGE_STATS": "1",
}
_DEFAULTS = {
    "KMP_BLOCKTIME": "0",  # idle OpenMP threads sleep at once
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def import_vllm(cpu_kvcache_gib: int = 2) -> Any:
    """The `vllm` module, imported in the environment that running in process needs.

    Raises:
        EngineError: it is not installed, or finds no device that it runs on.
    """
    os.environ.update(_REQUIRED, VLLM_CPU_KVCACHE_SPACE=str(cpu_kvcache_gib))
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # Without it vLLM takes the trainer's torch down to one thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    install = (
        "`make setup` in rlsf's source folder installs the one for this machine; or set engine.kind to transformers"
    )
    try:
        with unchanged_process():
            vllm = importlib.import_module("vllm")
            importlib.import_module("vllm.entrypoints.llm")
            platform = importlib.import_module("vllm.platforms").current_platform
    except (ImportError, OSError, RuntimeError) as error:  # OSError: a shared library of another CUDA version
        raise EngineError(f"vLLM cannot be imported ({type(error).__name__}: {error}); {install}") from error
    if not platform.device_type:
        raise EngineError(f"vLLM {vllm.__version__} finds no device that it can run on here; {install}")
    return vllm


def on_cpu() -> bool:
    """Whether the installed vLLM runs on the CPU. Call after `import_vllm`."""
    return bool(importlib.import_module("vllm.platforms").current_platform.is_cpu())


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Undo what vLLM's start changes for everyone else in the process.

    It seeds the generators of Python, NumPy and torch, disables `torch.set_num_threads`, prefixes tracebacks with a
    rank, and puts an allocator into LD_PRELOAD, which every process started later would inherit.
    """
    python, legacy = random.getstate(), np.random.get_state()
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    dtype, preload = torch.get_default_dtype(), os.environ.get("LD_PRELOAD")
    excepthook = sys.excepthook
    try:
        with torch.random.fork_rng(devices=_cuda()):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        sys.excepthook = excepthook
        if preload is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = preload


@contextmanager
def borrowed_process(threads: int | None) -> Iterator[None]:
    """One call into vLLM: its random draws leave the caller's generators alone, `threads` holds inside only."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=_cuda()):
            yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)


def _cuda() -> list[int]:
    """The device whose random state vLLM shares with the trainer, if any."""
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []
