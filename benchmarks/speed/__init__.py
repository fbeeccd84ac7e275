"""Speed and memory against a reference: `python -m benchmarks.speed.run`."""
