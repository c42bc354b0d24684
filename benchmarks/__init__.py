"""Every performance and learning claim comes from here. `python -m benchmarks` runs them all."""
