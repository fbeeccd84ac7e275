"""Train chain models by reward from several seeds, print a Markdown table and plot the curves: what docs/results.md shows.

    python -m benchmarks.results.grpo --output_dir outputs/grpo

A seed whose results are already in `--output_dir` is not run again.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
# Where supervised training stops: the last evaluation (every 25 steps) that finds less than 0.7 of the answers right.
STOPS = {0: 425, 1: 425, 2: 375}
EARLY = "run_ccot.py configs/recipes/chain_pccot_gpt2-2x64.yaml --lr_scheduler_type constant_with_warmup"
REWARDED = "run_grpo.py configs/recipes/chain_grpo_gpt2-2x64.yaml --eval_on_start"


def run(command: str, folder: Path) -> None:
    """A training in a process of its own, unless its results are there; its CPU seconds are written beside them."""
    if (folder / "all_results.json").exists():
        return
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [*command.split(), "--use_cpu", "--output_dir", str(folder)]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (folder / "cpu_seconds.txt").write_text(f"{seconds:.0f}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "grpo")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "grpo_chain.png")
    args = parser.parse_args()
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    print(
        "| seed | supervised steps | exact match before | after (test) | steps to 0.95 (validation) | wall s | CPU s |"
    )
    print("|---" * 7 + "|")
    for seed, stop in STOPS.items():
        early, folder = (args.output_dir.resolve() / f"{name}-{seed}" for name in ("early", "rewarded"))
        run(f"{EARLY} --seed {seed} --max_steps {stop}", early)
        run(f"{REWARDED} --seed {seed} --model_name_or_path {early}", folder)
        before, after = (json.loads((path / "all_results.json").read_text()) for path in (early, folder))
        log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        points = [(entry["step"], entry["eval_ccot_exact_match"]) for entry in log if "eval_ccot_exact_match" in entry]
        reached = next((step for step, right in points if right >= 0.95), "not reached")
        right = before["test_ccot_exact_match"], after["test_ccot_exact_match"]
        seconds = f"{after['train_runtime']:.0f} | {(folder / 'cpu_seconds.txt').read_text().strip()}"
        print(f"| {seed} | {stop} | {right[0]:.4f} | {right[1]:.4f} | {reached} | {seconds} |")
        axes.plot(*zip(*points, strict=True), label=f"seed {seed}")
    axes.axhline(0.95, color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="steps of training by reward", ylabel="exact match (500 validation questions)", ylim=(0.5, 1.01))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(args.plot, dpi=120)


if __name__ == "__main__":
    main()
