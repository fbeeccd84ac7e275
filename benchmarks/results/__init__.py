"""The figures of docs/results.md: each module is a command, `python -m benchmarks.results.grid`."""
