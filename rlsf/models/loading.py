"""Tokenizer and base model from a folder that `resolve_model` returned."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlsf.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["float32", "bfloat16", "auto"]
Device = Literal["auto", "cpu", "cuda"]


def load_tokenizer(path: Path, chat_template: str | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer in `path`, with `chat_template` in place of its own where one is given.

    Where the model brings no padding token, the end-of-sequence token stands in: padding is masked out everywhere.

    Raises:
        ModelError: the tokenizer cannot be read, or has no end-of-sequence token, so that no completion could ever end.
    """
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
        except Exception as error:  # tokenizers raises bare Exception for a broken tokenizer.json
            raise ModelError(f"model: cannot read the tokenizer in {path}: {error}") from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model: the tokenizer in {path} has no end-of-sequence token; set eos_token in its config")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base_model(path: Path, dtype: Dtype = "auto", device: Device = "auto") -> "PreTrainedModel":
    """The causal language model in `path`, in evaluation mode, on its device.

    Args:
        dtype: of the weights; `auto` is float32 on a CPU, bfloat16 on a GPU.
        device: `auto` is the GPU where there is one.

    Raises:
        ModelError: the weights cannot be read or do not fit config.json, or there is no GPU.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    place = choose_device(device)
    with quiet_transformers():
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                path, dtype=choose_dtype(dtype, place), local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise ModelError(f"model: cannot load {path}: {error}") from error
    if report["missing_keys"]:  # transformers would draw them at random and only warn
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"model: the weights in {path} lack {len(missing)} tensors of its config, such as {missing[0]}"
        )
    return model.to(place).eval()


def choose_device(device: Device) -> "torch.device":
    """`auto` is the first GPU where torch sees one, else the CPU.

    Raises:
        ModelError: `cuda` was asked for and torch sees no GPU.
    """
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ModelError("model.device: cuda was asked for, but torch sees no GPU; use auto or cpu")
    return torch.device("cuda" if available and device != "cpu" else "cpu")


def choose_dtype(dtype: Dtype, device: "torch.device") -> "torch.dtype":
    """`auto` is float32 on a CPU, where bfloat16 is slow, and bfloat16 elsewhere."""
    import torch

    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return getattr(torch, dtype)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and nothing below an error from transformers inside; its settings are put back afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
