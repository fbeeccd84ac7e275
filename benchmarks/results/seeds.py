"""Run the demo from several seeds and print its results as a Markdown table: what docs/results.md shows.

    python -m benchmarks.results.seeds --seeds 0 1 2 3 4

A seed whose results are already in `--output_dir` is not run again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def results_of(seed: int, folder: Path) -> dict[str, float]:
    """Exact match by way of answering, after a run of the demo (in a process of its own)."""
    path = folder / f"seed-{seed}" / "results.json"
    if not path.exists():
        command = [sys.executable, "demo.py", "--seed", str(seed), "--output_dir", str(path.parent)]
        subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return {name: accuracy for name, accuracy, _ in json.loads(path.read_text())}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "seeds")
    args = parser.parse_args()
    results = {seed: results_of(seed, args.output_dir.resolve()) for seed in args.seeds}
    names = list(next(iter(results.values())))
    print("\n| seed | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for seed, accuracies in results.items():
        print(f"| {seed} | " + " | ".join(f"{accuracies[name]:.4f}" for name in names) + " |")


if __name__ == "__main__":
    main()
