"""Trainings that differ in one thing, of `sweeps.yaml`: a file per run in `results/NAME/`, a Markdown table, a plot.

    python -m benchmarks.results.sweep log_depth
    python -m benchmarks.results.sweep noise --seeds 0 1
    python -m benchmarks.results.sweep iterations_range --tables       # run nothing

A run whose file is already there is not made again.
"""

import re
import statistics
import sys
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import yaml

from latent_cot.analysis.recorded_runs import markdown_table

from . import runs

SWEEPS = yaml.safe_load(Path(__file__).with_name("sweeps.yaml").read_text(encoding="utf-8"))


def runs_of(name: str, row: str, seed: int) -> list[runs.Run]:
    sweep = SWEEPS[name]
    values = {"seed": seed, "stop": sweep.get("stops", {seed: None})[seed]}
    flags = sweep["rows"][row]
    command = flags if flags.startswith("run_") else f"{sweep['command']} {flags}"
    after = None
    if "after" in sweep:
        after = runs.Run(f"early/{values['stop']}-{seed}", sweep["after"].format(**values).split())
    words, about = command.format(**values).split(), {"row": row, "seed": seed}
    slug = re.sub(r"[^\w.]+", "-", row)
    return [runs.Run(f"{name}/{slug}/seed-{seed}", words, about, partial(measured, columns=sweep["columns"]), after)]


def measured(metrics: dict, columns: dict[str, str]) -> dict:
    return {
        column: next(value for name, value in metrics.items() if fnmatch(name, pattern))
        for column, pattern in columns.items()
    }


def show(name: str, path: Path) -> None:
    """Mean of the seeds, in the table with the lowest and the highest."""
    sweep, means = SWEEPS[name], {}
    columns, cells = list(sweep["columns"]), []
    found = runs.recorded(f"{name}/*/seed-*")
    for row in sweep["rows"]:
        own = [one for one in found if one["row"] == row]
        if own:
            values = {column: [one[column] for one in own] for column in columns}
            means[row] = {column: statistics.mean(values[column]) for column in columns}
            spread = "{:.4g}" if len(own) == 1 else "{:.4g} ({:.4g} to {:.4g})"
            cells.append(
                [row, str(len(own)), *(spread.format(means[row][c], min(values[c]), max(values[c])) for c in columns)]
            )
    print("\n".join(markdown_table(["", "seeds", *columns], cells)))
    if means:
        lines = {column: {row: mean[column] for row, mean in means.items()} for column in sweep.get("plotted", columns)}
        runs.plot_lines([runs.Panel("", means if sweep["x"] == "columns" else lines, name)], path)


def main() -> None:
    name = next(iter(sys.argv[1:]), None)
    if name not in SWEEPS:
        raise SystemExit(f"{__doc__}\nThere are {', '.join(SWEEPS)}.")
    rows, seeds = SWEEPS[name]["rows"], SWEEPS[name]["seeds"]
    axes = {"rows": (rows, rows), "seeds": (seeds, seeds)}
    runs.command_line(__doc__, axes, partial(runs_of, name), partial(show, name), SWEEPS[name]["plot"], sys.argv[2:])


if __name__ == "__main__":
    main()
