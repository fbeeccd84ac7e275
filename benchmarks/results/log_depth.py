"""Train on affine maps with few passes and with one per map, with and without windows; print a Markdown table and plot exact match: what docs/results.md shows.

    python -m benchmarks.results.log_depth --output_dir outputs/log_depth

A training whose results are already in `--output_dir` is not run again.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from .grid import results_of

ROOT = Path(__file__).resolve().parents[2]

RECIPE = "configs/recipes/affine_pccot-windows_gpt2-3x128.yaml"
SIZE = "n_layer=3,n_embd=128,initializer_range=0.08"


@dataclass(frozen=True)
class Run:
    """A training: how it is supervised, the number of maps, T (None without a chain) and the modulus."""

    label: str
    maps: int
    iterations: int | None
    windows: bool = False
    modulus: int = 3
    steps: int = 3000

    @property
    def name(self) -> str:
        return f"{self.label.replace(' ', '-')}-{self.maps}-mod-{self.modulus}"

    @property
    def command(self) -> list[str]:
        """Without seed and folder; c is one less than the number of maps."""
        field = "windows" if self.windows else "first"  # the same questions and steps
        task = f"maps={self.maps},modulus={self.modulus},values=0,{field}=1,train=100000"
        latents = self.maps - 1
        if self.iterations is None:
            words = ["run_cot.py", "configs/recipes/affine_cot_gpt2-2x64.yaml", "--config_overrides", SIZE]
            words += ["--learning_rate", "0.001", "--warmup_steps", "100"]
        else:
            thought = f"num_latent_tokens={latents},num_iterations={self.iterations}"
            words = ["run_ccot.py", RECIPE, "--config_overrides", f"{thought},{SIZE}", "--explicit_cot", "false"]
        return [*words, "--task_args", task, "--max_steps", str(self.steps), "--use_cpu"]


RUNS = {
    run.name: run
    for run in (
        Run("windows", 8, 3, windows=True),
        Run("final steps only", 8, 3),
        Run("sequential", 8, 7),
        Run("no chain", 8, None),
        Run("windows", 8, 3, windows=True, modulus=5, steps=4000),
        Run("windows", 16, 4, windows=True),
        Run("sequential", 16, 15),
    )
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "log_depth")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "log_depth.png")
    args = parser.parse_args()
    print(
        "| supervised | maps | modulus | T | exact match | 95 % interval | training, s |\n|---|---|---|---|---|---|---|"
    )
    bars = {}
    for run in (RUNS[name] for name in args.runs):
        words = [*run.command, "--seed", str(args.seed)]
        results = results_of(words, args.output_dir.resolve() / f"{run.name}-{args.seed}")
        mode = "no_cot" if run.iterations is None else "ccot"
        right, low, high = (results[f"test_{mode}_exact_match{end}"] for end in ("", "_low", "_high"))
        passes = "" if run.iterations is None else str(run.iterations)
        seconds = results["train_runtime"]
        print(
            f"| {run.label} | {run.maps} | {run.modulus} | {passes} | {right:.4f} | {low:.4f} to {high:.4f} | {seconds:.0f} |"
        )
        bars[f"{run.label}\n{run.maps} maps mod {run.modulus}" + (f"\nT = {passes}" if passes else "")] = right
    figure = Figure(figsize=(1.6 * len(bars) + 1, 4), layout="constrained")
    axes = figure.subplots()
    drawn = axes.bar(bars.keys(), bars.values(), color="tab:blue", width=0.6)
    axes.bar_label(drawn, [f"{right:.3f}" for right in bars.values()])
    axes.set(ylabel="exact match (2,000 test questions)", ylim=(0, 1.1))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.savefig(args.plot, dpi=120)


if __name__ == "__main__":
    main()
