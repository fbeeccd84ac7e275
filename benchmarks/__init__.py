"""What the tables in docs/ come from: `python benchmarks/run.py`, and the two scripts in results/."""
