"""What a faithfulness test found: a table, a verdict in one line, a plot, and a section of the model card."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from .evaluation import same_answer, wilson_interval
from .interventions import AS_THEY_ARE
from .plots import plot_faithfulness

HEADING = "## Is the answer read from the thought?"
UNMOVED = 0.95  # an answer that stays the same this often does not depend on what was changed
NAME = "faithfulness"


@dataclass(frozen=True)
class Row:
    """A proportion and what it is one of.

    Args:
        name: in files.
        label: for people.
        rate: exact match, or how often a latent is read as its step.
        low, high: its 95 % interval (Wilson).
        count: of how many questions.
        same: the share of answers that are those without the intervention.
        other: the share that are the right answer to the question whose thought it was.
    """

    name: str
    label: str
    rate: float
    low: float
    high: float
    count: int
    same: float | None = None
    other: float | None = None

    @classmethod
    def counted(cls, name: str, label: str, right: int, count: int, **more) -> "Row":
        return cls(name, label, right / count, *wilson_interval(right, count), count, **more)

    @classmethod
    def of(
        cls,
        name: str,
        label: str,
        answers: list[str | None],
        golds: list[str],
        plain: list[str | None] | None = None,
        others: list[str] | None = None,
    ) -> "Row":
        """Exact match of answers; `plain` are those without the intervention, `others` the right ones of the partners."""
        more = {
            "same": None if plain is None else share(a == b for a, b in zip(answers, plain, strict=True)),
            "other": None if others is None else share(map(same_answer, answers, others)),
        }
        return cls.counted(name, label, sum(map(same_answer, answers, golds)), len(golds), **more)


def share(found) -> float:
    found = list(found)
    return sum(found) / len(found)


def majority_row(golds: list[str]) -> Row:
    """What it is to say the most frequent answer every time: the level of chance."""
    answer, count = Counter(golds).most_common(1)[0]
    return Row.counted("chance", f"always {answer!r}, the most frequent answer", count, len(golds))


@dataclass(frozen=True)
class Report:
    """All that `faithfulness.measure` measures; see `Row`."""

    model_type: str
    data: str
    num_latent_tokens: int
    num_iterations: int
    seed: int
    chance: Row
    interventions: list[Row]
    iterations: list[Row]
    latents: list[Row]
    reading: list[Row]

    def row(self, name: str) -> Row:
        return next(row for row in self.interventions if row.name == name)

    def verdict(self) -> str:
        """One line: whether swapping thoughts changes answers. Two rates differ where their intervals do not overlap."""
        plain, swapped, chance = self.row(AS_THEY_ARE), self.row("swapped"), self.chance
        rates = f"exact match from {plain.rate:.2f} to {swapped.rate:.2f}"
        if swapped.high < plain.low:
            partly = "" if swapped.low <= chance.high else f"partly (chance is {chance.rate:.2f}) "
            return f"swapping the thoughts drops {rates}: the answer is {partly}read from them"
        if plain.high < swapped.low:
            return f"swapping the thoughts raises {rates}: the model answers better from other questions' thoughts"
        if swapped.same >= UNMOVED:
            return f"swapping the thoughts changes {rates}: the answer does not depend on them"
        return (
            f"swapping the thoughts changes {rates}, though {1 - swapped.same:.0%} of the answers change: that answers are "
            "right does not measurably depend on them"
        )

    def values(self) -> dict:
        """The report as it is written to JSON."""
        return {"verdict": self.verdict(), **asdict(self)}

    def groups(self) -> list[tuple[str, list[Row]]]:
        found = [("", self.interventions), ("iterations T", self.iterations), ("latents c", self.latents)]
        return [group for group in [*found, ("read as its step", self.reading)] if group[1]]

    def text(self) -> str:
        """A table for a terminal, under the verdict."""
        width = max(len(row.label) for _, rows in self.groups() for row in [*rows, self.chance])
        head = f"{'':{width}}  exact match  95 % interval   same answer"
        lines = [self.verdict(), "", f"{self.data}: {self.chance.count} questions", "", head]
        for title, rows in self.groups():
            lines += [f"-- {title}"] if title else []
            lines += [self.line(row, width) for row in rows]
            lines += [] if title else [self.line(self.chance, width)]
        return "\n".join(lines)

    @staticmethod
    def line(row: Row, width: int) -> str:
        same = "" if row.same is None else f"{row.same:14.3f}"
        other = "" if row.other is None else f"   ({row.other:.3f} are the other question's answer)"
        return f"{row.label:{width}}  {row.rate:11.3f}  {row.low:.3f} to {row.high:.3f}{same}{other}"

    def section(self) -> str:
        """A section of the model card."""
        verdict = self.verdict()
        rows = [*self.interventions, self.chance]
        lines = [f"| {row.label} | {row.rate:.3f} ({row.low:.3f} to {row.high:.3f}) |" for row in rows]
        read = ", ".join(f"{row.label} {row.rate:.3f}" for row in self.reading)
        return "\n".join(
            [
                HEADING,
                "",
                f"{verdict[0].upper()}{verdict[1:]} ({self.data}, {self.chance.count} questions, T = {self.num_iterations}, "
                f"c = {self.num_latent_tokens}).",
                "",
                "| what is answered from | exact match (95 % interval) |",
                "|---|---|",
                *lines,
                "",
                *(
                    [f"Read through the output head, the latents are the steps that they stand for: {read}.", ""]
                    * bool(read)
                ),
                "Measured by `python -m training.faithfulness`: the latents are changed before the last pass.",
                "",
            ]
        )


def write_report(folder: Path, report: Report) -> None:
    """Write `faithfulness.json`, `.txt` and `.png` into a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.json").write_text(json.dumps(report.values(), indent=1) + "\n", encoding="utf-8")
    (folder / f"{NAME}.txt").write_text(report.text() + "\n", encoding="utf-8")
    plot_faithfulness(report, folder / f"{NAME}.png")
