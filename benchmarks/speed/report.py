"""A table as Markdown, JSON and a plot, and what moved in it since the last recorded run (`docs/performance/*.json`)."""

import json
from dataclasses import dataclass
from math import nan
from pathlib import Path

from matplotlib.figure import Figure

from latent_cot.analysis.recorded_runs import markdown_table

RECORDED = Path(__file__).resolve().parents[2] / "docs" / "performance"
# Another machine has other seconds; ratios and bytes are to stay.
OF_THE_MACHINE = ("seconds", "per_second", "rate")
THRESHOLD = 0.05


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        title: its head.
        key: of the rows.
        form: how a figure is written, a summary as its median with the quartiles after it; "{}" for what a row is about.
        factor: what figures are multiplied by, for another unit than in the JSON.
        plotted: whether the plot has a panel of it.
    """

    title: str
    key: str
    form: str = "{}"
    factor: float = 1
    plotted: bool = False

    def figures(self, row: dict) -> list[float]:
        """Median, and quartiles where there are any; empty if the row has no such figure."""
        value = row.get(self.key)
        values = [value[name] for name in ("median", "q1", "q3")] if isinstance(value, dict) else [value]
        return [] if value is None else [one * self.factor for one in values]

    def cell(self, row: dict) -> str:
        if self.form == "{}":
            return str(row.get(self.key, "–"))
        texts = [self.form.format(value) for value in self.figures(row)] or ["–"]
        return texts[0] + (f" ({texts[1]}–{texts[2]})" if texts[1:] else "")


def identity(table, row: dict) -> str:
    """What a row is about."""
    return ", ".join(f"{column.title} {row[column.key]}" for column in table.COLUMNS if column.form == "{}")


def write(table, rows: list[dict], facts: dict, folder: Path) -> None:
    """`<table>.json` and `<table>.png`, and the Markdown on the screen.

    Args:
        table: a module with `NAME`, `TITLE` and `COLUMNS`.
        rows: what the table's `measure` returned.
        facts: the setting, the machine and how long it took.
        folder: of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = markdown_table(
        [column.title for column in table.COLUMNS], [[column.cell(row) for column in table.COLUMNS] for row in rows]
    )
    print("\n".join([f"\n### {table.TITLE}\n", *lines, ""]), flush=True)
    (folder / f"{table.NAME}.json").write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
    figure = plot(table, rows)
    figure.suptitle(f"{table.TITLE} ({facts['machine']['processor']}, {facts['machine']['device']})", fontsize=10)
    figure.savefig(folder / f"{table.NAME}.png", dpi=120)


def plot(table, rows: list[dict]) -> Figure:
    """A panel per figure, a bar per row, with the quartiles as whiskers."""
    shown = [column for column in table.COLUMNS if column.plotted]
    figure = Figure(figsize=(4 + 3 * len(shown), 1.2 + 0.28 * len(rows)), layout="constrained")
    for axes, column in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        values = [(column.figures(row) or [nan]) * 3 for row in rows]
        whiskers = [[value[0] - value[1] for value in values], [value[2] - value[0] for value in values]]
        axes.barh([identity(table, row) for row in rows], [value[0] for value in values], xerr=whiskers, capsize=2)
        axes.set_title(column.title, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.axes[0].invert_yaxis()
    return figure


def moved(table, rows: list[dict], facts: dict, folder: Path = RECORDED) -> list[str]:
    """One line for every figure that moved by more than 5 %, and for every row that is only in one of the two runs.

    Args:
        table: a module with `NAME` and `COLUMNS`; a row is known again by what it is about.
        rows: what was measured now.
        facts: the setting and the machine of this run.
        folder: of the recorded runs.
    """
    path = folder / f"{table.NAME}.json"
    if not path.is_file():
        return [f"no recorded run: {path.name} is not in {folder.name}/"]
    recorded = json.loads(path.read_text())
    if recorded["quick"] != facts["quick"] or recorded["setting"] != facts["setting"]:
        return ["the recorded run has another setting: nothing to compare"]
    same_machine = all(recorded["machine"][one] == facts["machine"][one] for one in ("processor", "threads", "torch"))
    before, now = ({identity(table, row): row for row in run} for run in (recorded["rows"], rows))
    lines = [f"{key}: not in the recorded run" for key in now.keys() - before.keys()]
    lines += [f"{key}: only in the recorded run" for key in before.keys() - now.keys()]
    for key in now.keys() & before.keys():
        for column in table.COLUMNS:
            old, new = column.figures(before[key]), column.figures(now[key])
            of_machine = column.key.endswith(OF_THE_MACHINE) and not same_machine
            if column.form == "{}" or of_machine or not old or not new:
                continue
            change = new[0] / old[0] - 1 if old[0] else float(new[0] != 0)
            if abs(change) > THRESHOLD:
                within = len(old) == 3 and old[1] <= new[0] <= old[2]
                figure = f"{column.title} {column.form.format(old[0])} -> {column.form.format(new[0])}"
                lines.append(f"{key}: {figure} ({change:+.0%}{', within the recorded quartiles' if within else ''})")
    if not same_machine:
        lines.append("(another machine or torch than the recorded run's: seconds are not compared)")
    return sorted(lines)
