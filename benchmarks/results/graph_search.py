"""Ask a model of graph search the published questions at every T; print Markdown tables and plot: what docs/results.md shows.

    python -m benchmarks.results.graph_search --model outputs/graph-pccot --published prosqa_valid.json

`prosqa_valid.json` is in the Coconut repository (docs/data-and-tasks.md).
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

import run_ccot
from latent_cot.tasks.graph import in_symbols
from latent_cot.training.checkpoints.read import read_config

ROOT = Path(__file__).resolve().parents[2]

GUESS = 0.5  # there are two kinds to choose from


def ask(model: str, rows: list[dict], folder: Path) -> list[dict]:
    """The rows of `predictions.jsonl` for questions in symbols: the latent thought at every T, and the written chain."""
    folder.mkdir(parents=True, exist_ok=True)
    questions, passes = folder / "questions.jsonl", read_config(model).num_iterations
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["--model_name_or_path", model, "--test_file", str(questions), "--keep_last_step", "--do_predict"]
    command += ["--eval_iterations", ",".join(map(str, range(passes))), "--per_device_eval_batch_size", "100"]
    command += ["--max_new_tokens", "2", "--max_cot_tokens", "12", "--output_dir", str(folder), "--use_cpu"]
    run_ccot.main(command)
    text = (folder / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def modes_of(predictions: list[dict]) -> dict[str, str]:
    """The ways to answer that predictions hold, T = 0 first: their name there and a label."""
    passes = sorted(int(name[6:-6]) for name in predictions[0] if name.startswith("ccot_T") and name.endswith("_right"))
    labels = {f"ccot_T{T}": f"latent thought, T = {T}" for T in passes}
    return labels | {"ccot": f"latent thought, T = {max(passes, default=-1) + 1}", "cot": "written chain"}


def shares(predictions: list[dict], steps: list[int]) -> dict[str, dict[int | None, float]]:
    """How many are right, by way to answer and number of steps; None is all of them."""
    found: dict[str, dict[int | None, float]] = {}
    for mode in modes_of(predictions):
        right = defaultdict(list)
        for row, number in zip(predictions, steps, strict=True):
            for key in (number, None):
                right[key].append(row[f"{mode}_right"])
        found[mode] = {key: sum(values) / len(values) for key, values in right.items()}
    return found


def table(predictions: list[dict], steps: list[int]) -> str:
    """Exact match by way to answer and number of steps."""
    numbers = sorted(set(steps))
    heads = [f"{number} steps ({steps.count(number)})" for number in numbers]
    lines = ["| answered after | " + " | ".join(["all", *heads]) + " |", "|---" * (len(heads) + 2) + "|"]
    found = shares(predictions, steps)
    for mode, label in modes_of(predictions).items():
        cells = [f"{found[mode][key]:.3f}" for key in (None, *numbers)]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)


def plot(predictions: list[dict], steps: list[int], path: Path) -> None:
    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    axes, found = figure.subplots(), shares(predictions, steps)
    latent = [mode for mode in modes_of(predictions) if mode != "cot"]
    for number, marker in zip(sorted(set(steps)), "osd^v", strict=False):
        label = f"{number} steps ({steps.count(number)} questions)"
        axes.plot(range(len(latent)), [found[mode][number] for mode in latent], marker=marker, label=label)
    axes.axhline(found["cot"][None], linestyle="--", color="black", label="written chain, all questions")
    axes.axhline(GUESS, linestyle=":", color="grey", label="a guess")
    axes.set(xlabel="T", ylabel="exact match", ylim=(0, 1.03), title="graph search, published questions")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", ncols=2)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="outputs/graph-pccot")
    parser.add_argument("--published", type=Path, required=True, help="a JSON list of rows in sentences")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "graph_search")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "graph_search.png")
    args = parser.parse_args()
    rows = json.loads(args.published.read_text(encoding="utf-8"))
    symbols = [in_symbols({name: row[name] for name in ("question", "steps", "answer")}) for row in rows]
    steps = [len(row["steps"]) for row in symbols]
    predictions = ask(args.model, symbols, args.output_dir.resolve())
    print(table(predictions, steps))
    plot(predictions, steps, args.plot)


if __name__ == "__main__":
    main()
