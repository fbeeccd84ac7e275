"""What a faithfulness test found: a table, a verdict in one line, a plot, and a section of the model card."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from latent_cot.training.checkpoints.write import add_to_manifest

from .comparison import Comparison, same_answer
from .evaluation import wilson_interval
from .interventions import AS_THEY_ARE
from .plots import READING, plot_faithfulness

HEADING = "## Is the answer read from the thought?"
UNMOVED = 0.95  # an answer that stays the same this often does not depend on what was changed
NAME = "faithfulness"


@dataclass(frozen=True)
class Row:
    """A proportion and what it is one of."""

    name: str  # in files
    label: str  # for people
    rate: float  # exact match, or how often a latent is read as its step
    low: float  # its 95 % interval (Wilson)
    high: float
    count: int  # of how many questions
    same: float | None = None  # the share of answers that are those without the intervention
    other: float | None = None  # the share that are the right answer to the question whose thought it was

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
        same: Comparison = same_answer,
    ) -> "Row":
        """Exact match of answers; `plain` are those without the intervention, `others` the right ones of the partners."""
        more = {
            "same": None if plain is None else share(a == b for a, b in zip(answers, plain, strict=True)),
            "other": None if others is None else share(map(same, answers, others)),
        }
        return cls.counted(name, label, sum(map(same, answers, golds)), len(golds), **more)


def share(found) -> float:
    found = list(found)
    return sum(found) / len(found)


def majority_row(golds: list[str]) -> Row:
    """What it is to say the most frequent answer every time: the level of chance."""
    answer, count = Counter(golds).most_common(1)[0]
    return Row.counted("chance", f"always {answer!r}, the most frequent answer", count, len(golds))


def judge(plain: Row, changed: Row, chance: Row, doing: str, conclusion: str, better: str) -> str:
    """One line: whether a change moves answers. Two rates differ where their intervals do not overlap.

    Args:
        plain, changed, chance: answers without and with the change, and the most frequent answer.
        doing: what the change is.
        conclusion: what it means that answers get worse, with a place for "partly".
        better: what it means that they get better.
    """
    rates = f"exact match from {plain.rate:.2f} to {changed.rate:.2f}"
    if changed.high < plain.low:
        partly = "" if changed.low <= chance.high else f"partly (chance is {chance.rate:.2f}) "
        return f"{doing} drops {rates}: {conclusion.format(partly=partly)}"
    if plain.high < changed.low:
        return f"{doing} raises {rates}: {better}"
    if changed.same >= UNMOVED:
        return f"{doing} changes {rates}: the answer does not depend on them"
    return (
        f"{doing} changes {rates}, though {1 - changed.same:.0%} of the answers change: that answers are right does not "
        "measurably depend on them"
    )


@dataclass(frozen=True)
class Report:
    """What the reports of both families have; see `Row`.

    A family adds `verdict()`, one line on what the change that decides does to answers; `setting()`, what stands between
    question and answer; `sweeps()`, further rows in groups with titles; and `remarks()`, sentences below the table.
    """

    model_type: str
    data: str
    seed: int
    chance: Row
    interventions: list[Row]

    def row(self, name: str) -> Row:
        return next(row for row in self.interventions if row.name == name)

    def values(self) -> dict:
        """The report as it is written to JSON."""
        return {"verdict": self.verdict(), **asdict(self)}

    def groups(self) -> list[tuple[str, list[Row]]]:
        return [("", self.interventions), *(group for group in self.sweeps() if group[1])]

    def text(self) -> str:
        """A table for a terminal, under the verdict."""
        width = max(len(row.label) for _, rows in self.groups() for row in [*rows, self.chance])
        head = f"{'':{width}}  exact match  95 % interval   same answer"
        lines = [self.verdict(), "", f"{self.data}: {self.chance.count} questions, {self.setting()}", "", head]
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
        verdict, rows = self.verdict(), [*self.interventions, self.chance]
        found = f"{verdict[0].upper()}{verdict[1:]} ({self.data}, {self.chance.count} questions, {self.setting()})."
        lines = [HEADING, "", found, "", "| what is answered from | exact match (95 % interval) |", "|---|---|"]
        lines += [f"| {row.label} | {row.rate:.3f} ({row.low:.3f} to {row.high:.3f}) |" for row in rows]
        return "\n".join([*lines, "", *(line for remark in self.remarks() for line in (remark, ""))])


@dataclass(frozen=True)
class PCCoTReport(Report):
    """All that `faithfulness.measure` measures of a `pccot-*` model."""

    num_latent_tokens: int
    num_iterations: int
    iterations: list[Row]
    latents: list[Row]
    reading: list[Row]

    def verdict(self) -> str:
        return judge(
            *(self.row(AS_THEY_ARE), self.row("swapped"), self.chance),
            doing="swapping the thoughts",
            conclusion="the answer is {partly}read from them",
            better="the model answers better from other questions' thoughts",
        )

    def setting(self) -> str:
        return f"T = {self.num_iterations}, c = {self.num_latent_tokens}"

    def sweeps(self) -> list[tuple[str, list[Row]]]:
        return [("iterations T", self.iterations), ("latents c", self.latents), (READING, self.reading)]

    def remarks(self) -> list[str]:
        read = ", ".join(f"{row.label} {row.rate:.3f}" for row in self.reading)
        found = [f"Read through the output head, the latents are the steps that they stand for: {read}."] * bool(read)
        return [*found, "Measured by `latent-cot faithfulness`: the latents are changed before the last pass."]


@dataclass(frozen=True)
class ICoTReport(Report):
    """All that `icot_faithfulness.measure_icot` measures of an `icot-*` model."""

    between: str  # what stands between question and answer: "fillers", "steps" or "nothing"
    num_fillers: int  # of the configuration
    fillers: list[Row]  # answers with other numbers of fillers
    left_out: str  # which interventions do not apply, and why

    def verdict(self) -> str:
        plain = self.row(AS_THEY_ARE)
        if self.between == "nothing":
            return (
                f"nothing stands between question and answer that could be changed: exact match is {plain.rate:.2f} (chance "
                f"is {self.chance.rate:.2f})"
            )
        depends = "the answer {partly}depends on them"
        if self.between == "steps" and any(row.name == "swapped" for row in self.interventions):
            doing, better = "swapping the steps", "the model answers better from other questions' steps"
            return judge(plain, self.row("swapped"), self.chance, doing, "the answer is {partly}read from them", better)
        doing, better = f"leaving out the {self.between}", "the model answers better without them"
        # Without fillers, what follows stands at its old positions or moves up: what counts is what harms less.
        without = max((self.row("left_out"), *self.fillers[:1]), key=lambda row: row.rate)
        found = judge(plain, without, self.chance, doing, depends, better)
        if self.between == "steps":
            return found
        return f"{found}; with another token in their place it is {self.row('other_token').rate:.2f}"

    def setting(self) -> str:
        return {"fillers": f"{self.num_fillers} fillers", "steps": "part of the chain written", "nothing": "no chain"}[
            self.between
        ]

    def sweeps(self) -> list[tuple[str, list[Row]]]:
        return [("number of fillers", self.fillers)]

    def text(self) -> str:
        return f"{super().text()}\n\n{self.left_out}"

    def remarks(self) -> list[str]:
        found = ", ".join(f"{row.label.rpartition(' ')[2]}: {row.rate:.3f}" for row in self.fillers)
        numbers = [f"Exact match by the number of fillers: {found}."] * bool(found)
        return [*numbers, f"{self.left_out} Measured by `latent-cot faithfulness`."]


def write_report(folder: Path, report: Report) -> None:
    """Write `faithfulness.json`, `.txt` and `.png` into a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.json").write_text(json.dumps(report.values(), indent=1) + "\n", encoding="utf-8")
    (folder / f"{NAME}.txt").write_text(report.text() + "\n", encoding="utf-8")
    plot_faithfulness(report, folder / f"{NAME}.png")
    add_to_manifest(folder, [f"{NAME}.{kind}" for kind in ("json", "txt", "png")])
