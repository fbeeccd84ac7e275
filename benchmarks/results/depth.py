"""How many latents and passes do K intermediate results need? Train each, write a JSON file per run, print Markdown tables, plot.

    python -m benchmarks.results.depth
    python -m benchmarks.results.depth --steps 15 --forms blocks       # some of the runs
    python -m benchmarks.results.depth --tables                        # run nothing

Chains of K + 1 operations mod 7 that forget nothing (docs/data-and-tasks.md). A run whose file is already in `results/depth` is not made again.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from .grid import results_of

ROOT = Path(__file__).resolve().parents[2]

RESULTS = ROOT / "results" / "depth"
RECIPE = "configs/recipes/chain16_pccot_gpt2-2x64.yaml"
NO_CHAIN = "configs/recipes/chain16_cot_gpt2-2x64.yaml"
STEPS, SEED = (3, 5, 8, 12, 15, 31), 0
TWO_CHARACTERS_PER_OPERATION = 2
OPTIMISER_STEPS = {31: 4500}  # what the recipe has is not enough here: 0.1575


@dataclass(frozen=True)
class Form:
    """How the latents of K results are supervised.

    Args:
        label: in the table.
        per_step: latents per intermediate result.
        supervised: whether each latent is trained to read as its result.
        in_range: one training with T from the lowest to K, asked at each T, instead of a training at each T.
        thinks: whether there are latents at all; without, the model answers at once, T = 0 in the tables.
    """

    label: str
    per_step: int = 1
    supervised: bool = True
    in_range: bool = False
    thinks: bool = True

    def passes(self, steps: int) -> list[int]:
        """T of the trainings with K results, the highest first."""
        if not self.thinks:
            return [0]
        return passes_of(steps)[-1:] if self.in_range else passes_of(steps)[::-1]


FORMS = {
    "steps": Form("a latent per result"),
    "blocks": Form("two latents per result", per_step=2),
    "range": Form("a latent per result, T drawn from a range", in_range=True),
    "unsupervised": Form("a latent per result, not supervised", supervised=False),
    "none": Form("none, no chain", thinks=False),
}


def passes_of(steps: int) -> list[int]:
    """The T that are tried for K results: quarters of K, and K."""
    return sorted({max(1, round(steps * part / 4)) for part in (1, 2, 3, 4)})


def command_of(form: Form, steps: int, passes: int) -> list[str]:
    latents = steps * form.per_step
    positions = TWO_CHARACTERS_PER_OPERATION * (steps + 1) + 2 + max(latents, steps) + 30
    overrides = {"n_positions": -(-positions // 32) * 32}
    thought = {
        "num_latent_tokens": latents,
        "num_iterations": passes,
        "latents_per_step": form.per_step,
        "loss_delta": float(form.supervised),
    }
    if form.thinks:
        overrides |= thought
    words = ["run_ccot.py", RECIPE] if form.thinks else ["run_cot.py", NO_CHAIN]
    words += ["--task_args", f"operations={steps + 1},modulus=7,invertible=1,train=40000"]
    words += ["--config_overrides", ",".join(f"{name}={value}" for name, value in overrides.items())]
    words += ["--max_cot_tokens", str(steps + 10)]
    if form.in_range:
        low, *between = passes_of(steps)[:-1]
        words += ["--num_iterations_range", f"{low},{steps}", "--eval_iterations", ",".join(map(str, [low, *between]))]
    if steps in OPTIMISER_STEPS:
        words += ["--max_steps", str(OPTIMISER_STEPS[steps])]
    return [*words, "--eval_strategy", "no", "--seed", str(SEED)]


def run(name: str, steps: int, passes: int, outputs: Path) -> None:
    """Train and measure, and write the run's file; a range of T is trained once, at its highest."""
    path = path_of(name, steps, passes)
    if path.exists():
        return
    form = FORMS[name]
    command = command_of(form, steps, passes)
    measured = results_of(
        [*command, "--overwrite_output_dir", "true"], outputs / path.relative_to(RESULTS).with_suffix("")
    )
    found = {passes: measured[f"test_{'ccot' if form.thinks else 'no_cot'}_exact_match"]}
    if form.in_range:
        found |= {T: measured[f"test_ccot_T{T}_exact_match"] for T in passes_of(steps)[:-1]}
    row = {
        "form": name,
        "steps": steps,
        "command": " ".join(["python", *command]),
        "exact_match": {str(T): found[T] for T in sorted(found)},
        "explicit": measured.get("test_cot_exact_match"),
        "train_seconds": measured["train_runtime"],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row, indent=1) + "\n")


def path_of(name: str, steps: int, passes: int) -> Path:
    return RESULTS / name / f"steps-{steps}-T-{passes}.json"


def found() -> dict[str, dict[int, dict[int, float]]]:
    """Exact match by form, K and T."""
    all_found: dict = {}
    for path in RESULTS.glob("*/steps-*.json"):
        row = json.loads(path.read_text())
        matches = all_found.setdefault(row["form"], {}).setdefault(row["steps"], {})
        matches |= {int(T): match for T, match in row["exact_match"].items()}
    return all_found


def tables() -> str:
    lines = ["| latents | K | T, and exact match |", "|---|---|---|"]
    for name in (name for name in FORMS if name in found()):
        for steps, matches in sorted(found()[name].items()):
            cells = ", ".join(f"{T}: {matches[T]:.4f}" for T in sorted(matches))
            lines.append(f"| {FORMS[name].label} | {steps} | {cells} |")
    return "\n".join(lines)


def plot(path: Path) -> None:
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    by_depth, by_form = figure.subplots(1, 2, sharey=True)
    markers = "osd^vX"
    for (steps, matches), marker in zip(sorted(found()["steps"].items()), markers, strict=False):
        shares = sorted(matches)
        by_depth.plot([T / steps for T in shares], [matches[T] for T in shares], marker=marker, label=f"K = {steps}")
    for name, marker in zip(FORMS, markers, strict=False):
        if matches := found().get(name, {}).get(15):
            by_form.plot(sorted(matches), [matches[T] for T in sorted(matches)], marker=marker, label=FORMS[name].label)
    by_depth.set(
        xlabel="T / K", ylabel="exact match (2,000 test questions)", ylim=(0, 1.03), title="a latent per result"
    )
    by_form.set(xlabel="T", title="K = 15")
    for axes in (by_depth, by_form):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--forms", choices=FORMS, nargs="+", default=list(FORMS))
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "depth")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "depth.png")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    args = parser.parse_args()
    for name in [] if args.tables else args.forms:
        for steps in args.steps:
            for passes in FORMS[name].passes(steps):
                run(name, steps, passes, args.output_dir.resolve())
    print(tables())
    plot(args.plot)


if __name__ == "__main__":
    main()
