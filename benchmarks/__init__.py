"""What the tables in docs/ come from: `benchmarks.speed.run`, the scripts in `benchmarks.results`, and `benchmarks.gpu`."""
