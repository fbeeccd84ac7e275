"""Synthetic data: reproducible, disjoint, right."""

import inspect
import json
import re
from math import gcd

import numpy as np
import pytest
from conftest import FIXTURES, ROOT

from latent_cot import tasks
from latent_cot.tasks import multiplication, parity
from latent_cot.training.data.rows import format_line

SMALL = "train=40,validation=10,test=20"


def generate(settings: str = "") -> dict[str, list[dict]]:
    return tasks.generate("chain", ",".join(filter(None, [SMALL, settings])))


def values(question: str) -> list[int]:
    """Exact running values, by Python's own arithmetic on a bracketed prefix."""
    first, *rest = re.findall(r"^\d|[+\-*]\d", question)
    prefixes = [rest[:count] for count in range(1, len(rest) + 1)]
    return [eval("(" * len(prefix) + first + "".join(f"{part})" for part in prefix)) for prefix in prefixes]


def rows_of(task: str, settings: str) -> list[dict]:
    return [row for rows in tasks.generate(task, settings).values() for row in rows]


# --- every task ---


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_task_documents_its_settings(task):
    """Each setting is a whole number, described in the docstring and, with its default, in docs/data-and-tasks.md."""
    defaults = tasks.TASKS[task].settings
    assert all(type(default) is int for default in defaults.values())
    before, _, page = (ROOT / "docs" / "data-and-tasks.md").read_text().partition(f"\n## {task}\n")
    page = page.partition("\n## ")[0]
    # Of all tasks the page says the sizes in one sentence.
    assert "{train:,}, {validation:,} and {test:,}".format(**defaults) in " ".join(before.split())
    described = {name: defaults[name] for name in ("train", "validation", "test", "seed")}
    for names, values in re.findall(r"^\| (`.+?`) \| ([\d, ]+) \| .+ \|$", page, flags=re.MULTILINE):
        described |= dict(zip(re.findall(r"`(\w+)`", names), map(int, values.split(", ")), strict=True))
    assert described == defaults
    _, _, arguments = inspect.getdoc(tasks.TASKS[task].drawer).partition("Args:")
    described = re.findall(r"^    (\w[\w, ]*):", arguments, flags=re.MULTILINE)
    assert set(", ".join(described).split(", ")) == defaults.keys() - {"train", "validation", "test", "seed"}


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_documented_example_is_drawn(task):
    _, _, page = (ROOT / "docs" / "data-and-tasks.md").read_text().partition(f"\n## {task}\n")
    example = re.search(r"```json\n(.*?)```", page, flags=re.DOTALL).group(1)
    assert json.loads(example) == tasks.generate(task, "train=0,validation=0,test=1")["test"][0]


@pytest.mark.parametrize("task", tasks.TASKS)
def test_splits_are_seeded_and_share_no_question(task):
    sizes = {"train": 60, "validation": 20, "test": 30}
    settings = ",".join(f"{name}={size}" for name, size in sizes.items())
    found = tasks.generate(task, settings)
    assert {split: len(rows) for split, rows in found.items()} == sizes
    assert len({row["question"] for rows in found.values() for row in rows}) == 110
    assert found == tasks.generate(task, settings) != tasks.generate(task, f"{settings},seed=1")
    assert found["test"] == tasks.generate(task, "train=0,validation=0,test=30")["test"]


def test_every_task_is_in_the_training_guide():
    text = (ROOT / "docs" / "training.md").read_text()
    assert all(f"`{task}`" in text for task in tasks.TASKS)


@pytest.mark.parametrize(
    "task, settings, message",
    [
        ("chain", "operations=0", "operations must be at least 1"),
        ("chain", "modulus=-1", "modulus at least 0"),
        ("chain", "min_operations=5", "min_operations must be from 0 to operations"),
        ("chain", "invertible=2", "invertible 0 or 1"),
        ("chain", "train=-1", "train, validation and test must be at least 0"),
        ("chain", "operations=1,train=400", "give little more than (29.|300) questions; ask for fewer"),
        ("chain", "size=3", "chain has no setting 'size'; there are: operations, modulus"),
        ("chain", "operations", "operations must be a whole number, got ''"),
        ("chain", "operations=4.5", "operations must be a whole number, got '4.5'"),
        ("affine", "modulus=1", "^affine: .*modulus at least 2"),
        ("affine", "maps=1,values=0", "^affine: .*maps at least 1"),
        ("permutations", "items=10", "^permutations: .*items must be from 2 to 9"),
        ("permutations", "length=1", "^permutations: .*length at least 2"),
        ("permutations", "items=2,length=2,swaps=1", "^permutations: .*give little more than 1 questions"),
        ("parity", "bits=4,relevant=5", "^parity: .*relevant from 0 to bits"),
        ("parity", "bits=3,relevant=0,train=9,validation=0,test=0", "^parity: .*more than 8 questions; ask for fewer"),
        ("graph", "nodes=12,min_nodes=13", r"^graph: .*min_nodes must be 0, or from 6 to nodes \(12\), got 13"),
        ("graph", "symbols=2", "^graph: .*symbols must be 0 or 1"),
        ("graph", "nodes=5", "^graph: .*nodes must be from 6 to 40"),
        ("graph", "min_steps=4,max_steps=3", "^graph: .*min_steps from 1 to max_steps"),
        ("graph", "nodes=6,min_steps=9,max_steps=9", "^graph: .*hardly ever give paths of 9 to 9 facts"),
        ("word_problems", "steps=0", "^word_problems: .*min_steps must be from 1 to 0"),
        ("word_problems", "names=8", "^word_problems: .*names must be from 9 to 40"),
        ("word_problems", "wordings=4", "^word_problems: .*wordings must be from 1 to 3"),
        ("word_problems", "largest=9", "^word_problems: .*largest must be from 10 to 1000"),
        (
            "word_problems",
            "steps=1,min_steps=1,wordings=1,distractors=0,verbs=1,largest=10",
            "^word_problems: .*give little more than",
        ),
        ("multiplication", "digits=1,train=100", r"^multiplication: .*give little more than (80|81) questions"),
    ],
)
def test_impossible_settings(task, settings, message):
    with pytest.raises(ValueError, match=message):
        tasks.generate(task, settings)


# --- chain ---


def test_shipped_checkpoints_were_trained_on_these():
    assert generate()["test"][0] == {"question": "6-0-8-6-7=", "steps": ["6", "8", "2", "5"], "answer": "5"}


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


def test_chains_of_mixed_depth():
    """Every depth is as frequent as the others, and a question has as many steps as operators."""
    rows = tasks.generate("chain", "operations=6,min_operations=2,train=0,validation=0,test=1000")["test"]
    depths = [len(row["steps"]) for row in rows]
    for row in rows:
        assert row["steps"] == [str(value % 10) for value in values(row["question"])]
    assert set(depths) == {2, 3, 4, 5, 6} and all(150 < depths.count(depth) < 250 for depth in set(depths))


@pytest.mark.parametrize("modulus", [10, 7])
def test_invertible_chains_forget_nothing(modulus):
    """Another first number gives another answer; without the setting it often does not."""

    def share(settings: str) -> float:
        rows = rows_of("chain", f"operations=16,modulus={modulus},train=100,validation=0,test=0,{settings}")
        assert {int(digit) for row in rows for digit in re.findall(r"\*(\d)", row["question"])} <= factors(settings)
        answers = [{values(f"{first}{row['question'][1:]}")[-1] % modulus for first in range(modulus)} for row in rows]
        return sum(len(found) == modulus for found in answers) / len(rows)

    def factors(settings: str) -> set[int]:
        return {digit for digit in range(10) if "=0" in settings or gcd(digit, modulus) == 1}

    assert share("invertible=1") == 1.0 and share("invertible=0") < 0.5


def test_all_operators_and_digits_occur():
    text = "".join(row["question"] for row in generate()["train"])
    assert set(text) == set("0123456789+-*=")


def test_nearly_all_questions_are_possible():
    found = tasks.generate("chain", "operations=1,train=280,validation=5,test=5")
    assert sum(map(len, found.values())) == 290


# --- affine maps, permutations, parity ---


@pytest.mark.parametrize("settings", ["maps=5", "maps=4,modulus=10", "maps=1,modulus=97"])
def test_affine_steps_are_the_numbers(settings):
    """By evaluating the maps' text; a map is invertible: it takes different numbers to different ones."""
    modulus = int((re.findall(r"modulus=(\d+)", settings) or [7])[0])
    for row in rows_of("affine", f"{settings},train=60,validation=5,test=5"):
        first, *maps = row["question"].split()
        x, found = int(first), []
        for each in maps:
            formula = each.replace("x", "*x")
            assert len({eval(formula, {"x": other}) % modulus for other in range(modulus)}) == modulus
            x = eval(formula, {"x": x}) % modulus
            found.append(str(x))
        assert (row["steps"], row["answer"]) == (found, found[-1])


def test_affine_maps_without_numbers():
    """A step acts on every number as the maps so far do, one after the other."""
    for row in rows_of("affine", "maps=5,values=0,train=60,validation=5,test=5"):
        maps = [each.replace("x", "*x") for each in row["question"].split()]
        assert len(row["steps"]) == len(maps) - 1 == 4 and row["answer"] == row["steps"][-1]
        for count, step in enumerate(row["steps"], start=2):
            for number in range(7):
                x = number
                for formula in maps[:count]:
                    x = eval(formula, {"x": x}) % 7
                assert eval(step.replace("x", "*x"), {"x": number}) % 7 == x


@pytest.mark.parametrize("settings", ["items=5", "items=3,length=7", "items=9,length=3", "items=5,swaps=1"])
def test_permutations_move_items(settings):
    """By products of permutation matrices."""
    for row in rows_of("permutations", f"{settings},train=60,validation=5,test=5"):
        words = row["question"].split()
        items = np.arange(1, len(words[0]) + 1)
        product, found = np.eye(len(items), dtype=int), []
        for word in words:
            assert sorted(word) == [str(item) for item in items]
            assert (
                "swaps" not in settings or sum(int(place) != item for place, item in zip(word, items, strict=True)) == 2
            )
            product = (np.array([int(place) for place in word])[:, None] == items).astype(int) @ product
            found.append("".join(map(str, product @ items)))
        assert (row["steps"], row["answer"]) == (found[1:], found[-1])


@pytest.mark.parametrize("settings, relevant", [("bits=16,relevant=5", 5), ("bits=12,relevant=0", 12)])
def test_parity_is_of_the_same_places(settings, relevant):
    rows = rows_of("parity", f"{settings},train=200,validation=5,test=5")
    bits = np.array([[int(bit) for bit in row["question"]] for row in rows])
    steps = np.array([[int(step) for step in row["steps"]] for row in rows])
    places = parity.relevant_places(bits.shape[1], relevant % bits.shape[1], 0)
    assert len(set(places)) == relevant and places == sorted(places)
    assert (steps == bits[:, places].cumsum(axis=1) % 2).all()
    assert [row["answer"] for row in rows] == [row["steps"][-1] for row in rows]


def test_the_relevant_places_have_a_seed_of_their_own():
    """Data of another seed asks for the same places; `places` moves them."""

    def parities(settings: str) -> set[bool]:
        chosen = parity.relevant_places(16, 5, 0)
        rows = rows_of("parity", f"bits=16,relevant=5,train=50,validation=0,test=0,{settings}")
        return {str(sum(int(row["question"][place]) for place in chosen) % 2) == row["answer"] for row in rows}

    assert parities("seed=1") == {True} and parities("places=1") == {True, False}


# --- multiplication ---


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


@pytest.mark.parametrize("digits", [1, 3, 5])
def test_a_multiplication_is_worked_out_right(digits):
    """Partial products and running sums, by reading the text back."""

    def number(text: str) -> int:
        return int("".join(reversed(text.split())))

    train = {1: 10}.get(digits, 100)
    for row in rows_of("multiplication", f"digits={digits},train={train},validation=5,test=5"):
        a, b = map(number, row["question"].split("*"))
        (chain,) = row["steps"]
        total, parts = 0, chain.split(" + ")
        assert len(parts) == digits
        for place, part in enumerate(parts):
            product, running = re.fullmatch(r"([\d ]+?)(?: \( ([\d ]+) \))?", part).groups()
            assert number(product) == a * (b // 10**place % 10) * 10**place
            total += number(product)
            assert (running is not None) == (0 < place < digits - 1)
            assert running is None or number(running) == total
        assert total == number(row["answer"]) == a * b
        assert len(row["answer"].split()) == 2 * digits
