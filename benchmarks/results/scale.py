#!/usr/bin/env python
"""Is it the size of the latents? Trains a recipe with latents of another size, and writes one JSON file per run.

    python -m benchmarks.results.scale --task chain --variants off learned start-1 --seeds 0 1 2
    python -m benchmarks.results.scale --plot docs/latent_scale.png

A run whose file is already in `results/scale/` is not made again.
"""

import argparse
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import run_ccot
from latent_cot.training import PCCoTTrainer
from latent_cot.training.cli import read_recipe

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "results" / "scale"
RECIPES = {
    "chain": "chain_pccot_gpt2-2x64",
    "chain6": "chain6_pccot_gpt2-2x64",
    "chain16": "chain16_pccot_gpt2-2x64",
    "affine": "affine_pccot_gpt2-2x64",
    "permutations": "permutations_pccot_gpt2-3x128",
    "word_problems": "word-problems_pccot_gpt2-3x128",
}
EMBEDDINGS = 0.1  # their root mean square in the chain recipe at the start: its initializer_range


class Normalized(torch.nn.Module):
    """States of the root mean square `scale`, in place of a trained gain."""

    def __init__(self, scale: float):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(scale), requires_grad=False)

    def forward(self, states):
        return states * torch.rsqrt(states.square().mean(dim=-1, keepdim=True) + 1e-6) * self.weight


def change(base, variant: str) -> None:
    """Change the gain of a base model: `start-0.3`, `fixed-0.3`, `scalar-0.3`, `normalized`; as it is for the others."""
    kind, _, number = variant.partition("-")
    start = float(number) if number else None
    if kind == "normalized":
        base.latent_gain = Normalized(float(base.latent_gain.weight.mean()))
    elif kind == "scalar":
        base.latent_gain.weight = torch.nn.Parameter(torch.full((1,), start))
    elif kind in ("start", "fixed"):
        base.latent_gain.weight.data.fill_(start)
        base.latent_gain.weight.requires_grad_(kind == "start")


FLAGS = {
    "off": ["--scale_latents", "false"],
    "learned": [],
    "no-bot": ["--open_steps_with_bot", "false"],
    "no-warmup": ["--teacher_warmup_steps", "0"],
    "no-distillation": [],
    "supervised": [],
    "projection": [],
    "projection-off": ["--scale_latents", "false"],
}
OVERRIDES = {
    "no-distillation": {"loss_gamma": 0},
    "projection": {"use_projection": "true"},
    "projection-off": {"use_projection": "true"},
    "supervised": {"loss_delta": 1},
}


def run_one(task: str, variant: str, seed: int, more: list[str], label: str, folder: Path) -> None:
    """One run in this process, and its file."""
    recipe = f"configs/recipes/{RECIPES[task]}.yaml"
    entries = read_recipe(ROOT / recipe)
    own = dict(pair.split("=") for pair in entries.get("config_overrides", "").split(",") if pair)
    own |= {"loss_delta": 0} | OVERRIDES.get(variant, {})
    overrides = ",".join(f"{name}={value}" for name, value in own.items())

    class Changed(PCCoTTrainer):
        def prepare_model(self, model):
            if variant not in FLAGS:
                change(model.base_model, variant)
            return model

    argv = [recipe, "--config_overrides", overrides, *FLAGS.get(variant, []), *more, "--seed", str(seed)]
    argv += ["--output_dir", str(folder), "--overwrite_output_dir", "--disable_tqdm", "true"]
    metrics = run_ccot.main(argv, Changed)
    logged = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    scales = [(entry["step"], entry["latent_scale"]) for entry in logged if "latent_scale" in entry]
    curve = [(entry["step"], entry["eval_ccot_exact_match"]) for entry in logged if "eval_ccot_exact_match" in entry]
    row = {
        "task": task, "variant": label, "seed": seed, "command": " ".join(["python run_ccot.py", *argv[: -5]]),
        "exact_match": metrics["test_ccot_exact_match"],
        "low": metrics["test_ccot_exact_match_low"],
        "high": metrics["test_ccot_exact_match_high"],
        "explicit": metrics["test_cot_exact_match"],
        "validation": curve,
        "latent_scale": scales,
        "train_seconds": metrics["train_runtime"],
        "versions": {package: version(package) for package in ("torch", "transformers")},
    }  # fmt: skip
    path = RESULTS / task / label / f"seed-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row, indent=1) + "\n")
    print(task, label, seed, row["exact_match"], row["explicit"], scales[:1], scales[-1:], flush=True)


def rows_of(task: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((RESULTS / task).glob("*/seed-*.json"))]


def plot(path: Path) -> None:
    """Exact match against how large latents are beside embeddings at the start, chains of four without step supervision."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    runs = rows_of("chain")
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    starts = {"learned": 0.1} | {
        row["variant"]: float(row["variant"][6:]) for row in runs if row["variant"].startswith("start-")
    }
    points = [(starts[row["variant"]] / EMBEDDINGS, row["exact_match"]) for row in runs if row["variant"] in starts]
    axes.scatter(*zip(*points, strict=True), label="a gain, trained from there", zorder=3)
    off = [row["exact_match"] for row in runs if row["variant"] == "off"]
    off += [
        json.loads(file.read_text())["exact_match"]
        for file in (ROOT / "results/chain/pccot-unsupervised").glob("*.json")
    ]
    if off:
        axes.scatter(
            [1 / EMBEDDINGS] * len(off), off, marker="x", color="tab:red", label="states fed back as they are", zorder=3
        )
    direct = [json.loads(file.read_text())["exact_match"] for file in (ROOT / "results/chain/none").glob("*.json")]
    axes.axhline(sum(direct) / len(direct), color="gray", linestyle=":", label="no chain of thought")
    axes.set(
        xscale="log",
        xlabel="latents' root mean square / embeddings', at the start",
        ylabel="exact match",
        ylim=(0, 1.03),
    )
    axes.legend(loc="lower left")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table() -> str:
    """All runs as a Markdown table: task, variant, seeds, exact match."""
    lines = ["| task | latents | seeds | exact match, lowest | highest | written chain, lowest |", "|---" * 6 + "|"]
    for task in RECIPES:
        by_variant: dict[str, list[dict]] = {}
        for row in rows_of(task):
            by_variant.setdefault(row["variant"], []).append(row)
        for variant, rows in by_variant.items():
            matches = [row["exact_match"] for row in rows]
            chain = min(row["explicit"] for row in rows)
            lines.append(
                f"| {task} | {variant} | {len(rows)} | {min(matches):.4f} | {max(matches):.4f} | {chain:.4f} |"
            )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=RECIPES, default="chain")
    parser.add_argument("--variants", nargs="+", default=["learned"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--label", help="the name of the row, where further flags change what is run")
    parser.add_argument("--plot", type=Path, help="only draw the plot, into this file, and print the table")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args, more = parser.parse_known_args()
    if args.plot is not None:
        plot(args.plot)
        print(table())
        return
    if args.one:
        torch.set_num_threads(1)
        (variant,), (seed,) = args.variants, args.seeds
        label = args.label or variant
        run_one(args.task, variant, seed, more, label, ROOT / "outputs" / "scale" / args.task / label / f"seed-{seed}")
        return
    for seed in args.seeds:
        for variant in args.variants:
            label = args.label or variant
            if (RESULTS / args.task / label / f"seed-{seed}.json").exists():
                continue
            words = [
                sys.executable,
                "-m",
                "benchmarks.results.scale",
                "--one",
                "--task",
                args.task,
                "--variants",
                variant,
                "--seeds",
                str(seed),
            ]
            subprocess.run([*words, "--label", label, *more], check=False, cwd=ROOT)


if __name__ == "__main__":
    main()
