"""What the tables in docs/ come from: `python benchmarks/run.py`, and two older scripts beside it."""
