"""A table as Markdown, JSON and a plot, and what moved in it since the last recorded run (`docs/performance/*.json`)."""

import json
from dataclasses import dataclass
from pathlib import Path

RECORDED = Path(__file__).resolve().parents[2] / "docs" / "performance"
# Another machine has other seconds; ratios and bytes are to stay.
OF_THE_MACHINE = ("seconds", "per_second", "rate")
THRESHOLD = 0.05


def pyplot():
    """matplotlib without a screen; imported when something is drawn, so that tables need no matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        title: its head.
        key: of the rows.
        form: how a number is written; a summary is written as its median with the quartiles after it.
        factor: what numbers are multiplied by, for another unit than in the JSON.
    """

    title: str
    key: str
    form: str = "{}"
    factor: float = 1

    def cell(self, row: dict) -> str:
        value = row.get(self.key)
        if value is None:
            return "–"
        if not isinstance(value, dict):
            return self.form.format(value if isinstance(value, (str, bool)) else value * self.factor)
        median, low, high = (self.form.format(value[name] * self.factor) for name in ("median", "q1", "q3"))
        return f"{median} ({low}–{high})"


def markdown(columns: list[Column], rows: list[dict]) -> str:
    lines = ["| " + " | ".join(column.title for column in columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(column.cell(row) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def write(table, rows: list[dict], facts: dict, folder: Path) -> None:
    """`<table>.json` and `<table>.png`, and the Markdown on the screen.

    Args:
        table: a module with `NAME`, `TITLE`, `COLUMNS` and `plot(rows)`, which returns a figure.
        rows: what the table's `measure` returned.
        facts: the setting, the machine and how long it took.
        folder: of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    print(f"\n### {table.TITLE}\n\n{markdown(table.COLUMNS, rows)}\n", flush=True)
    (folder / f"{table.NAME}.json").write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
    figure = table.plot(rows)
    figure.suptitle(f"{table.TITLE} ({facts['machine']['processor']}, {facts['machine']['device']})", fontsize=10)
    figure.savefig(folder / f"{table.NAME}.png", dpi=120)
    pyplot().close(figure)


def panels(rows: int, columns: int, width: float = 4.5, height: float = 3.6):
    """A figure and its axes as a list, row by row, with a light grid."""
    figure, axes = pyplot().subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False
    )
    for one in axes.flat:
        one.grid(alpha=0.3)
        one.set_axisbelow(True)
    return figure, list(axes.flat)


def draw(axes, places, values: list, how: str = "errorbar", **style) -> None:
    """Summaries or plain numbers at `places`: `errorbar` (points and a line) or `bar`, with quartiles as whiskers."""
    middle = [value["median"] if isinstance(value, dict) else value for value in values]
    spread = [
        [m - value["q1"] if isinstance(value, dict) else 0 for m, value in zip(middle, values, strict=True)],
        [value["q3"] - m if isinstance(value, dict) else 0 for m, value in zip(middle, values, strict=True)],
    ]
    options = {"marker": "o", "markersize": 4} if how == "errorbar" else {"error_kw": {"linewidth": 1}}
    getattr(axes, how)(places, middle, yerr=spread, capsize=2, **(options | style))


# --- what moved ---


def moved(table, rows: list[dict], facts: dict, folder: Path = RECORDED) -> list[str]:
    """One line for every figure that moved by more than 5 %, and for every row that is only in one of the two runs.

    Args:
        table: a module with `NAME` and `COLUMNS`; a row is known again by what its columns write as it is.
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
    same_machine = all(
        recorded["machine"][name] == facts["machine"][name] for name in ("processor", "threads", "torch")
    )
    before, now = ({identity(table, row): row for row in run} for run in (recorded["rows"], rows))
    lines = [f"{', '.join(key)}: not in the recorded run" for key in now if key not in before]
    lines += [f"{', '.join(key)}: only in the recorded run" for key in before if key not in now]
    for key in now.keys() & before.keys():
        for column in figures(table, same_machine):
            line = compare(column, before[key].get(column.key), now[key].get(column.key))
            if line:
                lines.append(f"{', '.join(key)}: {line}")
    if not same_machine:
        lines.append("(another machine or torch than the recorded run's: seconds are not compared)")
    return sorted(lines)


def identity(table, row: dict) -> tuple[str, ...]:
    """What a row is about."""
    return tuple(
        f"{column.title} {row[column.key]}" for column in table.COLUMNS if column.form == "{}" and column.key in row
    )


def figures(table, same_machine: bool) -> list[Column]:
    """The columns that hold figures to compare."""
    return [
        column
        for column in table.COLUMNS
        if column.form != "{}" and (same_machine or not column.key.endswith(OF_THE_MACHINE))
    ]


def compare(column: Column, before: dict | float | None, now: dict | float | None) -> str | None:
    """One line, where the median moved by more than the threshold."""
    if before is None or now is None:
        return None if before is now else f"{column.title} is only in one of the runs"
    old, new = (value["median"] if isinstance(value, dict) else value for value in (before, now))
    change = new / old - 1 if old else float(new != old)
    if abs(change) <= THRESHOLD:
        return None
    within = isinstance(before, dict) and before["q1"] <= new <= before["q3"]
    return (
        f"{column.title} {column.form.format(old * column.factor)} -> {column.form.format(new * column.factor)} "
        f"({change:+.0%}{', within the recorded quartiles' if within else ''})"
    )
