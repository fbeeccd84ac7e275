"""Ask a model of graph search the published questions at every T: a Markdown table and a plot.

    python -m benchmarks.results.graph_search --model outputs/graph-pccot --published prosqa_valid.json

`prosqa_valid.json` is in the Coconut repository (docs/data-and-tasks.md).
"""

import argparse
import json
import statistics
from pathlib import Path

import run_ccot
from latent_cot.analysis.recorded_runs import markdown_table
from latent_cot.tasks.graph import in_symbols
from latent_cot.training.checkpoints.read import read_config

from . import runs

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


def share(predictions: list[dict], steps: list[int], mode: str, number: int | None) -> float:
    """How many questions of a number of steps are right, answered in a way; None is all of them."""
    asked = zip(predictions, steps, strict=True)
    return statistics.mean(row[f"{mode}_right"] for row, own in asked if number in (None, own))


def table(predictions: list[dict], steps: list[int]) -> str:
    """Exact match by way to answer and number of steps."""
    numbers = sorted(set(steps))
    heads = ["answered after", "all", *(f"{number} steps ({steps.count(number)})" for number in numbers)]
    cells = [
        [label, *(f"{share(predictions, steps, mode, number):.3f}" for number in (None, *numbers))]
        for mode, label in modes_of(predictions).items()
    ]
    return "\n".join(markdown_table(heads, cells))


def plot(predictions: list[dict], steps: list[int], path: Path) -> None:
    latent = [mode for mode in modes_of(predictions) if mode != "cot"]
    lines = {
        f"{number} steps ({steps.count(number)} questions)": {
            T: share(predictions, steps, mode, number) for T, mode in enumerate(latent)
        }
        for number in sorted(set(steps))
    }
    levels = {"written chain, all questions": share(predictions, steps, "cot", None), "a guess": GUESS}
    runs.plot_lines([runs.Panel("T", lines, "graph search, published questions", levels)], path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="outputs/graph-pccot")
    parser.add_argument("--published", type=Path, required=True, help="a JSON list of rows in sentences")
    parser.add_argument("--output_dir", type=Path, default=runs.ROOT / "outputs" / "graph_search")
    parser.add_argument("--plot", type=Path, default=runs.DOCS / "graph_search.png")
    args = parser.parse_args()
    rows = json.loads(args.published.read_text(encoding="utf-8"))
    symbols = [in_symbols({name: row[name] for name in ("question", "steps", "answer")}) for row in rows]
    steps = [len(row["steps"]) for row in symbols]
    predictions = ask(args.model, symbols, args.output_dir.resolve())
    print(table(predictions, steps))
    plot(predictions, steps, args.plot)


if __name__ == "__main__":
    main()
