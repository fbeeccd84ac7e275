"""What moved since the last recorded run (`docs/performance/*.json`)."""

import json
from pathlib import Path

from benchmarks.report import Column

RECORDED = Path(__file__).resolve().parent.parent / "docs" / "performance"
# Another machine has other seconds; ratios and bytes are to stay.
OF_THE_MACHINE = ("seconds", "per_second", "rate")
THRESHOLD = 0.05


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
