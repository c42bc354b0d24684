"""GGUF files, converted once to a folder of safetensors and kept in the user's cache."""

import errno
import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsf.errors import ModelError

CONVERTER_VERSION = 1
"""Part of the cache key. Raise it when the converter's output changes."""

_BYTES_PER_WEIGHT = 4  # saved as float32, see _write_weights


@dataclass(frozen=True)
class GgufHeader:
    """What the conversion needs to know from the file's metadata."""

    parameters: int
    context_length: int | None
    pre_tokenizer: str | None
    """llama.cpp's name for the way text is split before byte-pair encoding."""


def cache_dir() -> Path:
    """`RLSF_CACHE`, else `rlsf` below `XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("RLSF_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlsf"


def convert_gguf(file: Path) -> Path:
    """A folder with the file's weights dequantised to float32, its config, tokenizer and chat template.

    The result is cached by the file's content and `CONVERTER_VERSION`. Processes that ask at the same moment wait for
    one of them; one that is killed half-way leaves nothing that would be taken for a model.

    Raises:
        ModelError: the file is no GGUF file, is cut short, has no tokenizer, is of an architecture that transformers
            cannot convert, or the cache cannot be written.
    """
    from filelock import FileLock

    models = cache_dir() / "models"
    target = models / f"{file.stem}-{_digest(file)}-v{CONVERTER_VERSION}"
    if target.is_dir():
        return target
    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f".{target.name}.lock"):
            if not target.is_dir():
                _convert_into(file, target)
    except OSError as error:
        raise ModelError(
            f"model.source: cannot write the converted model to {models}: {error.strerror or error}. "
            "Set RLSF_CACHE to a folder with room for it"
        ) from error
    return target


def read_header(file: Path) -> GgufHeader:
    """Check the file and read its metadata.

    Raises:
        ModelError: the file is no GGUF file, is cut short, or has no tokenizer.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        parameters = sum(int(tensor.n_elements) for tensor in reader.tensors)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise ModelError(f"model.source: {file} is not a complete GGUF file: {error}") from error

    def field(name: str) -> Any:
        entry = reader.get_field(name)
        return entry.contents() if entry else None

    if not field("tokenizer.ggml.tokens"):
        raise ModelError(f"model.source: {file} holds no tokenizer; use a GGUF file exported with one")
    return GgufHeader(
        parameters=parameters,
        context_length=field(f"{field('general.architecture')}.context_length"),
        pre_tokenizer=field("tokenizer.ggml.pre"),
    )


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ModelError(f"model.source: cannot read {file}: {error.strerror}") from error


def _convert_into(file: Path, target: Path) -> None:
    """Fill a folder beside `target`, then rename it: `target` is complete or not there. The caller holds the lock."""
    header = read_header(file)
    size = header.parameters * _BYTES_PER_WEIGHT
    free = shutil.disk_usage(target.parent).free
    if free < size * 1.05:
        raise OSError(errno.ENOSPC, f"it takes {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")
    print(f"Converting {file.name} once, to {size / 1e9:.1f} GB in {target}", file=sys.stderr, flush=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    try:
        partial.mkdir()
        _write_tokenizer(file, header, partial)
        _write_weights(file, partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_tokenizer(file: Path, header: GgufHeader, folder: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"model.source: transformers cannot read the tokenizer of {file}: {error}") from error
    if header.pre_tokenizer == "smollm":
        # transformers ignores this field: SmolLM splits digits first, which decides how "  1" is encoded
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if header.context_length:
        tokenizer.model_max_length = header.context_length
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)


def _write_weights(file: Path, folder: Path) -> None:
    """Save the dequantised weights as float32: scale times integer plus offset does not fit a 16-bit float."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        dequantised = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"model.source: transformers cannot convert {file}: {error}") from error
    broken = [name for name, weight in dequantised.state_dict().items() if not torch.isfinite(weight).all()]
    if broken:
        raise ModelError(f"model.source: {file} holds infinite or undefined weights, the first in {broken[0]}")
    # A model loaded from GGUF refuses to be saved, so its weights move to one that never was quantised.
    config = dequantised.config
    del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(dequantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = dequantised.generation_config
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # raised for a full disk as well
        raise OSError(errno.EIO, str(error)) from error
