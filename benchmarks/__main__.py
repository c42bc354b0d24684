"""`make bench`: every benchmark, one after the other; arguments such as --again go to each."""

import subprocess
import sys

BENCHMARKS = ("headline", "signals", "self_feedback", "collapse", "clustering", "replay", "continual")

for name in BENCHMARKS:
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], check=True)
