"""`make bench`: every benchmark, one after the other; arguments such as --again go to each."""

import subprocess
import sys

BENCHMARKS = ("benchmarks.headline", "benchmarks.signals", "benchmarks.self_feedback", "benchmarks.collapse")

for module in BENCHMARKS:
    subprocess.run([sys.executable, "-m", module, *sys.argv[1:]], check=True)
