"""`make bench`: every benchmark, one after the other."""

import subprocess
import sys

BENCHMARKS = ("benchmarks.headline",)

for module in BENCHMARKS:
    subprocess.run([sys.executable, "-m", module], check=True)
