"""Sample thoughts of chain models stopped early, over strengths of noise and dropout: what docs/results.md shows.

    python -m benchmarks.results.noise --output_dir outputs/noise

A run whose results are already in `--output_dir` is not run again.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from .grid import results_of

ROOT = Path(__file__).resolve().parents[2]

STOPS = {0: 400, 1: 400, 2: 375}  # supervised steps, after which 0.50 to 0.69 of the answers are right
EARLY = "run_ccot.py configs/recipes/chain_pccot_gpt2-2x64.yaml --lr_scheduler_type constant_with_warmup"
ASKED = "run_ccot.py --dataset_name chain --task_args operations=4 --do_predict --max_new_tokens 4 --explicit_cot false"
SAMPLES = "--num_samples 16 --per_device_eval_batch_size 125"
NOISE, DROPOUT = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0), (0.05, 0.1, 0.2, 0.3)
SHOWN = ("pass_at_1", "pass_at_4", "pass_at_16", "majority_vote", "distinct_answers")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(STOPS))
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "noise")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "latent_noise.png")
    args = parser.parse_args()
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    panels = figure.subplots(1, len(args.seeds), sharey=True, squeeze=False)[0]
    print("| seed | noise | dropout | greedy | pass@1 | pass@4 | pass@16 | vote of 16 | distinct answers |")
    print("|---" * 9 + "|")
    for seed, axes in zip(args.seeds, panels, strict=True):
        early = args.output_dir.resolve() / f"early-{seed}"
        results_of(f"{EARLY} --use_cpu --seed {seed} --max_steps {STOPS[seed]}".split(), early)
        swept = []
        for noise, dropout in [*((noise, 0.0) for noise in NOISE), *((0.0, dropout) for dropout in DROPOUT)]:
            command = (
                f"{ASKED} {SAMPLES} --model_name_or_path {early} --latent_noise {noise} --latent_dropout {dropout}"
            )
            results = results_of(
                [*command.split(), "--use_cpu"],
                args.output_dir.resolve() / f"seed-{seed}-noise-{noise}-dropout-{dropout}",
            )
            greedy = results["test_ccot_exact_match"]
            values = [results[f"test_ccot_{name}"] for name in SHOWN]
            cells = " | ".join(f"{value:.4f}" for value in values[:-1])
            print(f"| {seed} | {noise} | {dropout} | {greedy:.4f} | {cells} | {values[-1]:.2f} |", flush=True)
            if not dropout:
                swept.append(values)
        for index, label in enumerate(("pass@1", "pass@4", "pass@16", "vote of 16")):
            axes.plot(NOISE, [values[index] for values in swept], marker=".", label=label)
        axes.axhline(greedy, color="grey", linestyle=":", label="greedy")
        axes.set(title=f"seed {seed}", xlabel="latent_noise", ylim=(0, 1.03))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("2,000 test questions")
    panels[0].legend(fontsize="small")
    figure.savefig(args.plot, dpi=120)


if __name__ == "__main__":
    main()
