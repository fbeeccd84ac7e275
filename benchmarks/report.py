"""A table as Markdown, JSON and a plot."""

import json
from dataclasses import dataclass
from pathlib import Path


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
