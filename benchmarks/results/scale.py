"""Is it the size of the latents? Trains a recipe without step supervision and with latents of another size; one JSON file per run.

    python -m benchmarks.results.scale --task chain --variants off learned start-1 --seeds 0 1 2
    python -m benchmarks.results.scale --task affine --label twice-the-steps --seeds 2 --max_steps 6000
    python -m benchmarks.results.scale --plot docs/latent_scale.png

A run whose file is already in `results/scale/` is not made again.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

import run_ccot
from latent_cot.analysis.recorded_runs import markdown_table, measured_values
from latent_cot.training import PCCoTTrainer

from . import grid, runs

TASKS = ("chain", "chain6", "chain16", "affine", "permutations", "word_problems")
EMBEDDINGS = 0.1  # their root mean square in the chain recipe at the start: its initializer_range
GAINS = ("normalized", "scalar-0.1", "fixed-0.1", "start-0.01", "start-0.03", "start-0.3", "start-1", "start-3")
COLUMNS = ["task", "latents", "seeds", "exact match, lowest", "highest", "written chain, lowest"]


class Normalized(torch.nn.Module):
    """States of the root mean square `scale`, in place of a trained gain."""

    def __init__(self, scale: float):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(scale), requires_grad=False)

    def forward(self, states):
        return states * torch.rsqrt(states.square().mean(dim=-1, keepdim=True) + 1e-6) * self.weight


def train(variant: str) -> None:
    """`run_ccot.py` with another gain: one of `GAINS`, with any number."""
    kind, _, number = variant.partition("-")

    class Changed(PCCoTTrainer):
        def prepare_model(self, model):
            base = model.base_model
            if kind == "normalized":
                base.latent_gain = Normalized(float(base.latent_gain.weight.mean()))
            elif kind == "scalar":
                base.latent_gain.weight = torch.nn.Parameter(torch.full((1,), float(number)))
            else:
                base.latent_gain.weight.data.fill_(float(number))
                base.latent_gain.weight.requires_grad_(kind == "start")
            return model

    run_ccot.main(sys.argv[1:], Changed)


def runs_of(task: str, variant: str, seed: int, label: str | None = None, more: Sequence[str] = ()) -> list[runs.Run]:
    method = grid.VARIANTS.get(variant, grid.Method())
    recipe = grid.TASKS[task].recipes["pccot"] if task in grid.TASKS else "chain6_pccot_gpt2-2x64"
    words = grid.command_of(recipe, replace(method, overrides=f"loss_delta=0,{method.overrides}"), seed)
    if variant not in grid.VARIANTS:
        words[:1] = ["-c", f"from benchmarks.results.scale import train; train({variant!r})"]
    about = {"task": task, "variant": label or variant, "seed": seed}
    return [runs.Run(f"scale/{task}/{label or variant}/seed-{seed}", [*words, *more], about, measured)]


def measured(metrics: dict) -> dict:
    values = measured_values(metrics, "ccot") | {"explicit": metrics["test_cot_exact_match"]}
    for name, key in (("validation", "eval_ccot_exact_match"), ("latent_scale", "latent_scale")):
        values[name] = [(entry["step"], entry[key]) for entry in metrics["log_history"] if key in entry]
    return values


def table() -> str:
    """All runs as a Markdown table."""
    cells: dict[tuple[str, str], list[dict]] = {}
    for task in TASKS:
        for row in runs.recorded(f"scale/{task}/*/seed-*"):
            cells.setdefault((task, row["variant"]), []).append(row)
    lines = []
    for (task, variant), rows in cells.items():
        matches = [row["exact_match"] for row in rows]
        figures = min(matches), max(matches), min(row.get("explicit", math.nan) for row in rows)
        figures = ["not asked" if math.isnan(figure) else f"{figure:.4f}" for figure in figures]
        lines.append([task, variant, str(len(rows)), *figures])
    return "\n".join(markdown_table(COLUMNS, lines))


def show(path: Path) -> None:
    """The table; and exact match against how large latents are beside embeddings at the start, chains of four operations."""
    print(table())

    def matches(name: str) -> list[float]:
        return [row["exact_match"] for row in runs.recorded(f"{name}/seed-*")]

    starts = {"learned": EMBEDDINGS} | {name: float(name[6:]) for name in GAINS if name.startswith("start-")}
    points = [(start / EMBEDDINGS, match) for name, start in starts.items() for match in matches(f"scale/chain/{name}")]
    off = matches("scale/chain/off")
    direct = matches("chain/none")
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*zip(*points, strict=True), label="a gain, trained from there", zorder=3)
    axes.scatter(
        [1 / EMBEDDINGS] * len(off), off, marker="x", color="tab:red", label="states fed back as they are", zorder=3
    )
    axes.axhline(sum(direct) / len(direct), color="gray", linestyle=":", label="no chain of thought")
    axes.set(xscale="log", xlabel="latents' root mean square / embeddings', at the start")
    axes.set(ylabel="exact match", ylim=(0, 1.03))
    axes.legend(loc="lower left")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


AXES = {
    "task": (TASKS, ["chain"]),
    "variants": ([*grid.VARIANTS, *GAINS], ["learned"]),
    "seeds": ((), [0]),
}

if __name__ == "__main__":
    runs.command_line(__doc__, AXES, runs_of, show, "latent_scale.png", takes_flags=True)
