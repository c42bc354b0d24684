"""Keeps the libraries below us from writing over the display. Their errors still come through."""

import logging
import os
import sys
import warnings


def quiet_libraries() -> None:
    """Call before torch, transformers, trl and vllm are imported. What the user has set in the environment stays."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries fill a log with carriage returns
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # "Triton not available", on every CPU
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")


def quiet_progress_bars() -> None:
    """Call after transformers is imported: the display has a bar of its own."""
    from transformers.utils import logging as transformers_logging

    quiet_datasets()
    transformers_logging.disable_progress_bar()


def quiet_datasets() -> None:
    """The bars of `datasets` alone; transformers is not imported."""
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
