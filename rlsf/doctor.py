"""`rlsf doctor`: what is installed, what will be used, and what is amiss."""

import os
import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlsf.provenance import machine, package_versions
from rollouts.config import AutoEngineConfig
from rollouts.factory import explain_choice


def print_report(console: Console) -> None:
    """Loads torch (to see the accelerator), but no model and no engine."""
    table = Table("package", "version", box=None)
    for package, version in package_versions().items():
        table.add_row(package, version)
    console.print(table)
    facts = machine()
    console.print(
        f"\nprocessor: {facts['processor']}, {os.cpu_count()} cores, {facts['threads']} torch threads", highlight=False
    )
    console.print(f"accelerator: {facts['gpu'] or 'none'}", highlight=False)
    console.print(f"memory: {_available_memory()}; disk here: {_free_disk()} free", highlight=False)
    choice = explain_choice(AutoEngineConfig())
    console.print(f"\nengine: [bold]{choice.kind}[/], sync: [bold]{choice.sync}[/]", highlight=False)
    console.print(f"because {choice.reason}", highlight=False)


def _available_memory() -> str:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return "unknown"
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable"):
            return f"{int(line.split()[1]) / 2**20:.1f} GiB available"
    return "unknown"


def _free_disk() -> str:
    return f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB"
