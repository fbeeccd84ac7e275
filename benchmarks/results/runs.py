"""What the comparisons here share: runs of scripts with a JSON file each below `results/`, a command line, and plots of lines."""

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from matplotlib.figure import Figure

from latent_cot.analysis.recorded_runs import write_record

ROOT = Path(__file__).resolve().parents[2]
RESULTS, DOCS = ROOT / "results", ROOT / "docs"


@dataclass(frozen=True)
class Run:
    """A script's run and its record.

    Args:
        name: of its record below `results/`, and of its folder below `--output_dir`.
        words: the script, from the repository's root, and its arguments, without `--output_dir`.
        about: what the record says beside the command and what was measured.
        measure: what the record takes from the metrics (of `metrics_of`).
        after: the run that makes its model, which is made first.
    """

    name: str
    words: Sequence[str]
    about: dict = field(default_factory=dict)
    measure: Callable[[dict], dict] = dict
    after: "Run | None" = None


def record(run: Run, outputs: Path) -> None:
    """Make a run that has no record, and write it."""
    path = RESULTS / f"{run.name}.json"
    if path.exists():
        return
    more = []
    if run.after is not None:
        metrics_of(run.after.words, outputs / run.after.name)
        more = ["--model_name_or_path", str(outputs / run.after.name)]
    metrics = metrics_of([*run.words, *more], outputs / run.name)
    write_record(path, run.about | {"command": shlex.join(["python", *run.words])} | run.measure(metrics))


def metrics_of(words: Sequence[str], folder: Path) -> dict:
    """The metrics that a run leaves in its folder, and its `log_history`; it is made where they are not there, on one thread."""
    path = folder / "all_results.json"
    if path.exists():
        made = datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "minutes")
        print(f"{folder}: not run again, finished at {made}; remove it if the code has changed since", file=sys.stderr)
    else:
        command = [sys.executable, *words, "--overwrite_output_dir", "true", "--disable_tqdm", "true"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(
            [*command, "--output_dir", str(folder)], cwd=ROOT, check=True, env=environment, stdout=sys.stderr
        )
    state = folder / "trainer_state.json"
    history = json.loads(state.read_text())["log_history"] if state.exists() else []
    return json.loads(path.read_text()) | {"log_history": history}


def recorded(pattern: str) -> list[dict]:
    """The records below `results/` whose name matches, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob(f"{pattern}.json"))]


def command_line(
    doc: str,
    axes: dict[str, tuple[Sequence, Sequence]],
    runs_of: Callable[..., list[Run]],
    show: Callable[..., None],
    plot: str | None = None,
    argv: list[str] | None = None,
    takes_flags: bool = False,
) -> None:
    """Make the runs that have no record, and show what is recorded.

    Args:
        doc: the module's.
        axes: by flag, the values that it takes (none given: any) and its default.
        runs_of: the runs of one value of each axis.
        show: prints the table, and draws the plot into the file that it is given.
        plot: that file's name in `docs/`, unless `--plot` says another; None without a plot.
        takes_flags: `runs_of` also takes `label` and `more`, flags that are handed on to the script.
    """
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=style, allow_abbrev=False)
    for name, (values, default) in axes.items():
        choices, default = list(values) or None, list(default)
        parser.add_argument(f"--{name}", nargs="+", type=type(default[0]), choices=choices, default=default)
    if takes_flags:
        parser.add_argument("--label", help="the record's name, where further flags (the script's) change what is run")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "results")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    if plot is not None:
        parser.add_argument("--plot", type=Path, help=f"run nothing, and draw into this file (otherwise docs/{plot})")
    args, more = parser.parse_known_args(argv)
    if more and not getattr(args, "label", None):
        parser.error(f"unknown arguments: {' '.join(more)}")
    options = {"label": args.label, "more": more} if takes_flags else {}
    drawn = [] if plot is None else [args.plot or DOCS / plot]
    if not args.tables and not (plot and args.plot):
        for cell in itertools.product(*(getattr(args, name) for name in axes)):
            for run in runs_of(*cell, **options):
                record(run, args.output_dir.resolve())
    show(*drawn)


@dataclass(frozen=True)
class Panel:
    """Exact match against one quantity.

    Args:
        xlabel: the quantity.
        lines: by label, the values by quantity.
        title: of the panel.
        levels: by label, values that do not depend on it.
    """

    xlabel: str
    lines: dict[str, dict]
    title: str = ""
    levels: dict[str, float] = field(default_factory=dict)


def plot_lines(panels: list[Panel], path: Path) -> None:
    figure = Figure(figsize=(1.5 + 3.3 * len(panels), 3.8), layout="constrained")
    for panel, axes in zip(panels, figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], strict=True):
        for (label, points), marker in zip(panel.lines.items(), itertools.cycle("osd^vX")):
            axes.plot(sorted(points), [points[x] for x in sorted(points)], marker=marker, label=label)
        for (label, level), style in zip(panel.levels.items(), itertools.cycle(("--", ":"))):
            axes.axhline(level, color="grey", linestyle=style, label=label)
        axes.set(xlabel=panel.xlabel, ylim=(0, 1.03), title=panel.title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("exact match (test questions)")
    figure.savefig(path, dpi=120)
