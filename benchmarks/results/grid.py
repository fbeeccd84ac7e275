"""Compare methods on a task: train each from the task's recipes, write one JSON file per run, and the tables of docs/results.md.

    make results TASK=chain
    python -m benchmarks.results.grid --task chain --methods none explicit pccot --seeds 0 1 2
    python -m benchmarks.results.grid --tables                       # only write the tables again

All methods of a task but iCoT see the same examples, in models of the same size. A run whose file is already in `results/` is not
made again; what has no file has no row, and a task without one no table.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from latent_cot.analysis.recorded_runs import markdown_table, measured_values, records
from latent_cot.training.cli import read_recipe
from latent_cot.training.flags import joined, pairs

from . import runs

PAGE = runs.DOCS / "results.md"
COLUMNS = ["method", "recipe", "seeds", "exact match, mean", "lowest", "highest"]
COLUMNS += ["training, s", "ms per answer", "tokens"]
BEGIN, END = "<!-- grid: benchmarks/results/grid.py writes this part -->", "<!-- end of the grid -->"
SCRIPTS = {"cot": "run_cot.py", "pccot": "run_ccot.py", "icot": "run_icot.py"}


@dataclass(frozen=True)
class Method:
    """A way to reason.

    Args:
        label: in the table.
        recipe: which of a task's recipes it starts from: "cot", "pccot", "pccot-add" or "icot".
        mode: the answer mode that is measured (`models/answer_modes.py`).
        flags: added to the recipe.
        overrides: of the configuration, added to the recipe's own.
    """

    label: str = ""
    recipe: str = "pccot"
    mode: str = "ccot"
    flags: str = ""
    overrides: str = ""


@dataclass(frozen=True)
class Task:
    """A comparison.

    Args:
        title: in the page.
        recipes: below `configs/recipes/`, by `Method.recipe`.
        without: methods that would repeat another one.
    """

    title: str
    recipes: dict[str, str]
    without: Sequence[str] = ()


GIVEN = yaml.safe_load(Path(__file__).with_name("methods.yaml").read_text(encoding="utf-8"))
METHODS, VARIANTS = ({name: Method(**entry) for name, entry in GIVEN[part].items()} for part in ("methods", "scale"))
TASKS = {name: Task(**entry) for name, entry in GIVEN["tasks"].items()}


def command_of(recipe: str, method: Method, seed: int) -> list[str]:
    """The command line of a method that starts from a recipe, from the repository's root."""
    path = f"configs/recipes/{recipe}.yaml"
    entries = read_recipe(runs.ROOT / path)
    own = pairs(entries.get("config_overrides", ""))
    settings = json.loads((runs.ROOT / entries["config_name"]).read_text()) | own
    latents = int(settings.get("num_latent_tokens", 0))
    sizes = {"c": latents, "twice": 2 * latents}
    overrides = own | pairs(method.overrides.format(**sizes))
    command = [SCRIPTS[method.recipe.removesuffix("-add")], path, *method.flags.format(**sizes).split()]
    if overrides != own:
        command += ["--config_overrides", joined(overrides)]
    return [*command, "--seed", str(seed)]


def runs_of(name: str, method_name: str, seed: int) -> list[runs.Run]:
    """The run of a cell of a table, where there is one."""
    task, method = TASKS[name], METHODS[method_name]
    if method.recipe not in task.recipes or method_name in task.without:
        return []
    words = command_of(task.recipes[method.recipe], method, seed)
    recipe = read_recipe(runs.ROOT / words[1])
    about = {"task": name, "method": method_name, "seed": seed, "recipe": words[1]}
    about["examples_seen"] = recipe["max_steps"] * recipe["per_device_train_batch_size"]
    measure = partial(measured_values, mode=method.mode)
    return [runs.Run(f"{name}/{method_name}/seed-{seed}", words, about, measure)]


def table(name: str) -> str:
    """A task's table in Markdown: mean and range over the seeds; empty if nothing was run."""
    task, cells = TASKS[name], []
    for method, rows in records(runs.RESULTS / name, METHODS).items():
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


AXES = {"task": (TASKS, TASKS), "methods": (METHODS, METHODS), "seeds": ((), range(5))}

if __name__ == "__main__":
    runs.command_line(__doc__, AXES, runs_of, write_tables)
