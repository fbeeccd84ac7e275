"""Synthetic data: reproducible, disjoint, right."""

import re

import pytest
from conftest import FIXTURES

import tasks
from tasks import multiplication
from training.rows import format_line

SMALL = "train=40,validation=10,test=20"


def generate(settings: str = "") -> dict[str, list[dict]]:
    return tasks.generate("chain", ",".join(filter(None, [SMALL, settings])))


def values(question: str) -> list[int]:
    """Exact running values, by Python's own arithmetic on a bracketed prefix."""
    first, *rest = re.findall(r"^\d|[+\-*]\d", question)
    prefixes = [rest[:count] for count in range(1, len(rest) + 1)]
    return [eval("(" * len(prefix) + first + "".join(f"{part})" for part in prefix)) for prefix in prefixes]


def test_seeded():
    assert generate() == generate("seed=0")
    assert generate() != generate("seed=1")
    # Shipped checkpoints were trained on these.
    assert generate()["test"][0] == {"question": "6-0-8-6-7=", "steps": ["6", "8", "2", "5"], "answer": "5"}


def test_sizes_and_no_shared_question():
    found = tasks.generate("chain", "operations=2,train=3000,validation=500,test=1000")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 3000, "validation": 500, "test": 1000}
    assert len({row["question"] for rows in found.values() for row in rows}) == 4500


@pytest.mark.parametrize("modulus", [10, 7, 1])
@pytest.mark.parametrize("operations", [1, 4])
def test_steps_are_the_running_values(operations, modulus):
    sizes = "train=30,validation=5,test=5"
    for rows in tasks.generate("chain", f"operations={operations},modulus={modulus},{sizes}").values():
        for row in rows:
            assert re.fullmatch(rf"\d([+\-*]\d){{{operations}}}=", row["question"])
            assert row["steps"] == [str(value % modulus) for value in values(row["question"])]
            assert row["answer"] == row["steps"][-1]


def test_plain_integers():
    rows = [row for rows in generate("operations=6,modulus=0").values() for row in rows]
    for row in rows:
        assert row["steps"] == [str(value) for value in values(row["question"])]
        assert row["answer"] == row["steps"][-1]
    assert any(int(row["answer"]) < 0 for row in rows) and any(int(row["answer"]) > 9 for row in rows)


def test_all_operators_and_digits_occur():
    text = "".join(row["question"] for row in generate()["train"])
    assert set(text) == set("0123456789+-*=")


@pytest.mark.parametrize(
    "settings, message",
    [
        ("operations=0", "operations must be at least 1"),
        ("modulus=-1", "modulus at least 0"),
        ("train=-1", "train, validation and test must be at least 0"),
        ("operations=1,train=141,validation=5,test=5", "151 examples are more than half of all questions with 1 op"),
        ("size=3", "chain has no setting 'size'; there are: operations, modulus"),
        ("operations", "operations must be a whole number, got ''"),
        ("operations=4.5", "operations must be a whole number, got '4.5'"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        tasks.generate("chain", settings)


def test_half_of_all_questions_is_possible():
    found = tasks.generate("chain", "operations=1,train=140,validation=5,test=5")
    assert sum(map(len, found.values())) == 150


def test_multiplication_is_the_published_format():
    """Every published row of the fixture is reproduced to the letter, and none of their operands is drawn."""
    published = (FIXTURES / "published" / "4_by_4_valid.txt").read_text().splitlines()
    for line in published:
        a, b = (int("".join(reversed(side.split()))) for side in line.split("||")[0].split("*"))
        assert format_line(multiplication.example_of(a, b)) == line
    drawn = tasks.generate("multiplication", "digits=2,train=3000,validation=100,test=100")
    questions = [row["question"] for rows in drawn.values() for row in rows]
    assert len(set(questions)) == len(questions) == 3200
    assert len(multiplication.published_pairs()) > 2990
    with pytest.raises(ValueError, match="too many"):
        tasks.generate("multiplication", "digits=1,train=100")
