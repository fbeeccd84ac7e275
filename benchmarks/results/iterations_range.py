"""Train chain models at one T and over a range of T, five seeds each; print a Markdown table and plot accuracy against T: what docs/results.md shows.

    python -m benchmarks.results.iterations_range --output_dir outputs/iterations_range

A training whose results are already in `--output_dir` is not run again.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from .grid import results_of

ROOT = Path(__file__).resolve().parents[2]

RANGE = "run_ccot.py configs/recipes/chain_pccot-range_gpt2-2x64.yaml"
FIXED = (
    "run_ccot.py configs/recipes/chain_pccot_gpt2-2x64.yaml --max_steps 1500 --eval_strategy no --do_predict "
    "--eval_iterations 0,1,2,4,5,6,8,12 "
    "--config_overrides num_latent_tokens=6,num_iterations=3,latents_per_step=2"
)
TRAINED = {"3 to 6": RANGE, "3": FIXED}
ITERATIONS = (0, 1, 2, 3, 4, 5, 6, 12)


def exact_match(command: str, folder: Path) -> dict[int, float]:
    """Exact match on the test split by T, after a training."""
    results = results_of([*command.split(), "--use_cpu", "--explicit_cot", "false"], folder)
    return {T: results["test_ccot_exact_match" if T == 3 else f"test_ccot_T{T}_exact_match"] for T in ITERATIONS}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "iterations_range")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "iterations_range.png")
    args = parser.parse_args()
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    print("| trained with T | seed | " + " | ".join(f"T = {T}" for T in ITERATIONS) + " |")
    print("|---" * (len(ITERATIONS) + 2) + "|")
    for (trained, command), colour, style in zip(TRAINED.items(), ("tab:blue", "tab:red"), ("-", ":"), strict=True):
        for seed in args.seeds:
            folder = args.output_dir.resolve() / f"{trained.replace(' ', '-')}-{seed}"
            results = exact_match(f"{command} --seed {seed}", folder)
            print(f"| {trained} | {seed} | " + " | ".join(f"{right:.4f}" for right in results.values()) + " |")
            label = f"trained with T = {trained}" if seed == args.seeds[0] else None
            axes.plot(results.keys(), results.values(), color=colour, linestyle=style, marker="o", label=label)
    axes.set(xlabel="T at answering", ylabel="exact match (2,000 test questions)", ylim=(0, 1.03), xticks=ITERATIONS)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(args.plot, dpi=120)


if __name__ == "__main__":
    main()
