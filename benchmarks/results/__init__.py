"""The figures of docs/results.md, passes.md and sampling.md: each module is a command, `python -m benchmarks.results.grid`."""
