"""Compare methods on a task: train each from the task's recipes, write one JSON file per run, and the tables of docs/results.md.

    make results TASK=chain
    python -m benchmarks.results.grid --task chain --methods none explicit pccot --seeds 0 1 2
    python -m benchmarks.results.grid --tables                       # only write the tables again

All methods of a task but iCoT see the same examples, in models of the same size. A run whose file is already in `results/` is not
made again; what has no file has no row, and a task without one no table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from latent_cot.analysis.recorded_runs import markdown_table, measured_values, records, write_record
from latent_cot.training.cli import read_recipe
from latent_cot.training.flags import joined, pairs

ROOT = Path(__file__).resolve().parents[2]

RESULTS, PAGE = ROOT / "results", ROOT / "docs" / "results.md"
COLUMNS = [
    "method",
    "recipe",
    "seeds",
    "exact match, mean",
    "lowest",
    "highest",
    "training, s",
    "ms per answer",
    "tokens",
]
BEGIN, END = "<!-- grid: benchmarks/results/grid.py writes this part -->", "<!-- end of the grid -->"


def results_of(words: list[str], folder: Path) -> dict[str, float]:
    """The metrics that a run leaves in its output folder; made first where they are not there.

    Args:
        words: the script, from the repository's root, and its arguments, without `--output_dir`.
        folder: the run's.
    """
    path = folder / "all_results.json"
    if not path.exists():
        command = [sys.executable, *words, "--disable_tqdm", "true", "--output_dir", str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, check=True, env=environment, stdout=sys.stderr)
    else:
        made = datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "minutes")
        print(f"{folder}: not run again, finished at {made}; remove it if the code has changed since", file=sys.stderr)
    return json.loads(path.read_text())


@dataclass(frozen=True)
class Method:
    """A way to reason.

    Args:
        label: in the table.
        recipe: which of a task's recipes it starts from: "cot", "pccot" or "icot".
        mode: the answer mode that is measured (`models/answer_modes.py`).
        flags: added to the recipe; `{c}` is its number of latent tokens.
        overrides: of the configuration, added to the recipe's own.
        ablation: the recipe without something that it has; run only where `--methods` names it.
    """

    label: str
    recipe: str
    mode: str
    flags: str = ""
    overrides: str = ""
    ablation: bool = False


SCRIPTS = {"cot": "run_cot.py", "pccot": "run_ccot.py", "icot": "run_icot.py"}
METHODS = {
    "none": Method("no chain of thought", "cot", "no_cot", "--no_cot true"),
    "explicit": Method("explicit chain of thought", "cot", "cot", "--no_cot false"),
    "fillers": Method("fillers (T = 0)", "pccot", "ccot", overrides="num_iterations=0"),
    "pccot-T1": Method("PCCoT, T = 1", "pccot", "ccot", overrides="num_iterations=1"),
    "pccot-T3": Method("PCCoT, T = 3", "pccot", "ccot", overrides="num_iterations=3"),
    "pccot": Method("PCCoT, T = c (sequential)", "pccot", "ccot"),
    "pccot-unsupervised": Method("PCCoT, T = c, no step supervision", "pccot", "ccot", overrides="loss_delta=0"),
    "pccot-decoder": Method(
        "PCCoT, T = c, steps read by a decoder (SIM-CoT)", "pccot", "ccot", "--step_decoder_layers 1"
    ),
    "pccot-range": Method(
        "PCCoT, T from c to 2c, two latents per step",
        "pccot",
        "ccot",
        "--num_iterations_range {c},{twice}",
        "num_latent_tokens={twice},latents_per_step=2",
    ),
    "pccot-blocks": Method(
        "PCCoT, T = steps, blocks of two latents per step",
        "pccot",
        "ccot",
        overrides="num_latent_tokens={twice},num_iterations={c},latents_per_step=2",
    ),
    "mixed": Method("PCCoT, T = c, mixed curriculum", "pccot", "ccot", "--latent_curriculum mixed"),
    "icot": Method("iCoT", "icot", "icot"),
    "pccot-no-bot": Method(
        "PCCoT, T = c, steps do not open with `<bot>`", "pccot", "ccot", "--open_steps_with_bot false", ablation=True
    ),
    "pccot-no-warmup": Method(
        "PCCoT, T = c, teacher and student from the first step",
        "pccot",
        "ccot",
        "--teacher_warmup_steps 0",
        ablation=True,
    ),
    "pccot-add": Method(
        "T = c, a latent's own state added to its embedding (LOTUS' rule)",
        "pccot",
        "ccot",
        overrides="latent_update=add",
        ablation=True,
    ),
    "pccot-narrow": Method(
        "PCCoT, T = c, `initializer_range` 0.02", "pccot", "ccot", overrides="initializer_range=0.02", ablation=True
    ),
}


@dataclass(frozen=True)
class Task:
    """A comparison: what it is about, and its recipes below `configs/recipes/` by `Method.recipe`."""

    title: str
    recipes: dict[str, str]


TASKS = {
    "chain": Task(
        "Chains of four operations",
        {"pccot": "chain_pccot_gpt2-2x64", "cot": "chain_nocot_gpt2-2x64", "icot": "chain_icot_gpt2-4x96"},
    ),
    "chain16": Task("Chains of 16 operations", {"pccot": "chain16_pccot_gpt2-2x64", "cot": "chain16_cot_gpt2-2x64"}),
    "affine": Task("Eight affine maps mod 5", {"pccot": "affine_pccot_gpt2-2x64", "cot": "affine_cot_gpt2-2x64"}),
    "permutations": Task(
        "Eight permutations of five items (S5)",
        {"pccot": "permutations_pccot_gpt2-3x128", "cot": "permutations_cot_gpt2-3x128"},
    ),
    "word_problems": Task(
        "Word problems in English, two to four steps",
        {"pccot": "word-problems_pccot_gpt2-3x128", "cot": "word-problems_cot_gpt2-3x128"},
    ),
    "graph": Task(
        "Graph search, 6 to 28 nodes, one to six steps",
        {"pccot": "graph_pccot_llama-2x128", "cot": "graph_cot_llama-2x128"},
    ),
}


def applies(task: Task, method: Method) -> bool:
    """Whether a task has a recipe for a method, which the method changes if it says so, and without blocks in blocks."""
    if method.recipe not in task.recipes:
        return False
    settings = settings_of(task, method)
    if "latents_per_step" in method.overrides and int(settings.get("latents_per_step", 1)) > 1:
        return False
    overrides = pairs(method.overrides)
    return not overrides or any(str(settings.get(name)) != value for name, value in overrides.items())


def settings_of(task: Task, method: Method) -> dict:
    """The configuration that a task's recipe for a method gives."""
    entries = read_recipe(ROOT / f"configs/recipes/{task.recipes[method.recipe]}.yaml")
    return json.loads((ROOT / entries["config_name"]).read_text()) | pairs(entries.get("config_overrides", ""))


def command_of(task: Task, method: Method, seed: int) -> list[str]:
    """The command line of a run, from the repository's root."""
    recipe = f"configs/recipes/{task.recipes[method.recipe]}.yaml"
    entries = read_recipe(ROOT / recipe)
    own = pairs(entries.get("config_overrides", ""))
    latents = int(settings_of(task, method).get("num_latent_tokens", 0))
    sizes = {"c": latents, "twice": 2 * latents}
    overrides = own | pairs(method.overrides.format(**sizes))
    command = [SCRIPTS[method.recipe], recipe, *method.flags.format(**sizes).split()]
    if overrides != own:
        command += ["--config_overrides", joined(overrides)]
    return [*command, "--seed", str(seed)]


def run(name: str, method_name: str, seed: int, outputs: Path) -> None:
    """Train and measure one cell's run, in a process of its own on one thread, and write its file."""
    path = RESULTS / name / method_name / f"seed-{seed}.json"
    if path.exists():
        return
    task, method = TASKS[name], METHODS[method_name]
    folder = outputs / name / method_name / f"seed-{seed}"
    command = command_of(task, method, seed)
    measured = results_of([*command, "--overwrite_output_dir", "true"], folder)
    recipe = read_recipe(ROOT / command[1])
    row = {
        "task": name,
        "method": method_name,
        "seed": seed,
        "recipe": command[1],
        "command": " ".join(["python", *command]),
        "examples_seen": recipe["max_steps"] * recipe["per_device_train_batch_size"],
    }
    write_record(path, row | measured_values(measured, method.mode))


def rows_of(name: str) -> dict[str, list[dict]]:
    """What has been run on a task, by method."""
    return records(RESULTS / name, METHODS)


def table(name: str) -> str:
    """A task's table in Markdown: mean and range over the seeds; empty if nothing was run."""
    task, cells = TASKS[name], []
    for method, rows in rows_of(name).items():
        if not rows:
            continue
        matches = [row["exact_match"] for row in rows]
        row = [METHODS[method].label, f"`{task.recipes[METHODS[method].recipe]}`", str(len(rows))]
        row += [f"{value:.4f}" for value in (statistics.mean(matches), min(matches), max(matches))]
        row += [f"{statistics.median(row['train_seconds'] for row in rows):.0f}"]
        row += [f"{statistics.median(row['ms_per_answer_in_batches'] for row in rows):.2f}"]
        cells.append([*row, f"{statistics.mean(row['new_tokens'] for row in rows):.1f}"])
    return "\n".join([f"### {task.title}", "", *markdown_table(COLUMNS, cells)]) if cells else ""


def write_tables() -> None:
    """Put the tables of all tasks into the page, between its two marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    tables = "\n\n".join(filter(None, map(table, TASKS)))
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, nargs="+", default=list(TASKS))
    whole = [name for name, method in METHODS.items() if not method.ablation]
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=whole)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "results")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    args = parser.parse_args()
    cells = [(task, method, seed) for task in args.task for seed in args.seeds for method in args.methods]
    for task, method, seed in [] if args.tables else cells:
        if applies(TASKS[task], METHODS[method]):
            run(task, method, seed, args.output_dir.resolve())
    write_tables()


if __name__ == "__main__":
    main()
