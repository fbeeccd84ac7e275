"""Graph search: questions read back as graphs, searched by matrix powers, and of the published size."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from benchmarks.results import graph_search
from latent_cot import tasks
from latent_cot.tasks.graph import in_symbols
from latent_cot.training.arguments import DataArguments
from latent_cot.training.data.sources import load_splits

# Means of the 300 published validation questions: kinds and persons, facts, persons, steps.
PUBLISHED = {"nodes": (22.82, 0.5), "facts": (36.26, 1.2), "persons": (2.51, 0.2), "steps": (3.75, 0.15)}
SHARES = {3: 0.41, 4: 0.44, 5: 0.12, 6: 0.02}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    found = tasks.generate("graph", "train=400,validation=50,test=50")
    return [row for split in found.values() for row in split]


def read(question: str) -> tuple[list[tuple[str, str]], str, list[str]]:
    """Facts (who, what), whom is asked about, and the options."""
    *sentences, asked = question.split(". ")
    facts = [re.fullmatch(r"(?:Every )?(\w+) is a (\w+)", sentence).groups() for sentence in sentences]
    person, *options = re.fullmatch(r"Is (\w+) a (\w+) or (\w+)\?", asked).groups()
    for sentence, (who, what) in zip(sentences, facts, strict=True):
        assert sentence == f"{who if who[0].isupper() else f'Every {who}'} is a {what}"
    return facts, person, options


def distances(facts: list[tuple[str, str]], start: str) -> dict[str, int]:
    """How many facts lead to each word, by powers of the adjacency matrix."""
    words = sorted({word for fact in facts for word in fact})
    step = np.zeros((len(words), len(words)), dtype=bool)
    for who, what in facts:
        step[words.index(who), words.index(what)] = True
    reached, found = np.array([word == start for word in words]), {start: 0}
    for length in range(1, len(words)):
        reached = reached @ step
        found |= {word: length for word, there in zip(words, reached, strict=True) if there and word not in found}
    return found


def test_one_option_is_reached_by_a_shortest_path(rows):
    for row in rows:
        facts, person, options = read(row["question"])
        assert len(set(facts)) == len(facts)
        found = distances(facts, person)
        (right,) = [option for option in options if option in found]
        assert row["answer"] == f"{person} is a {right}."
        # The steps are facts of the question, each goes on where the one before ended, and there is no shorter way.
        path = [re.fullmatch(r"(?:Every )?(\w+) is a (\w+)\.", step).groups() for step in row["steps"]]
        assert set(path) <= set(facts) and all(f"{step} " in row["question"] for step in row["steps"])
        assert path[0][0] == person and path[-1][1] == right and len(path) == found[right]
        assert all(one[1] == other[0] for one, other in pairwise(path))


def test_nothing_but_the_graph_tells_the_answer(rows):
    """Both options are kinds of which nothing is, that follow from somebody; either comes first."""
    first = 0
    for row in rows:
        facts, person, options = read(row["question"])
        assert not {who for who, _ in facts} & set(options)
        persons = {who for who, _ in facts if who[0].isupper()} - {person}
        (wrong,) = [option for option in options if f" {option}." not in row["answer"]]
        assert any(wrong in distances(facts, other) for other in persons)
        first += wrong == options[1]
    assert 0.4 < first / len(rows) < 0.6


def test_questions_are_as_large_as_the_published_ones(rows):
    graphs = [read(row["question"])[0] for row in rows]
    words = [{word for fact in facts for word in fact} for facts in graphs]
    means = {
        "nodes": np.mean([len(found) for found in words]),
        "facts": np.mean([len(facts) for facts in graphs]),
        "persons": np.mean([sum(word[0].isupper() for word in found) for found in words]),
        "steps": np.mean([len(row["steps"]) for row in rows]),
    }
    for name, (published, tolerance) in PUBLISHED.items():
        assert abs(means[name] - published) < tolerance, name
    lengths = [len(row["steps"]) for row in rows]
    assert all(abs(lengths.count(length) / len(rows) - share) < 0.1 for length, share in SHARES.items())


def test_symbols_say_the_same():
    """Facts, person, options, steps and answer, one word each."""
    sizes = "train=0,validation=0,test=30"
    sentences, symbols = (tasks.generate("graph", f"symbols={kind},{sizes}")["test"] for kind in (0, 1))
    for row, short in zip(sentences, symbols, strict=True):
        assert short == in_symbols(row)
        facts, person, options = read(row["question"])
        *pairs, asked = short["question"].split(". ")
        assert [tuple(pair.split()) for pair in pairs] == facts and asked == f"{' '.join(options)}? {person}"
        assert short["steps"][-1] == short["answer"] and f"{person} is a {short['answer']}." == row["answer"]
        assert set(pairwise([person, *short["steps"]])) <= set(facts)


def test_settings_are_followed():
    rows = tasks.generate("graph", "nodes=12,min_steps=2,max_steps=2,train=0,validation=0,test=30")["test"]
    assert {len(row["steps"]) for row in rows} == {2}
    assert all(len({word for fact in read(row["question"])[0] for word in fact}) <= 12 for row in rows)


def test_graphs_of_mixed_size():
    """With `min_nodes` there are small graphs and large ones; without it, nothing changes."""
    few = "min_steps=1,train=0,validation=0,test=400"
    mixed = tasks.generate("graph", f"{few},nodes=16,min_nodes=6")["test"]
    sizes = [len({word for fact in read(row["question"])[0] for word in fact}) for row in mixed]
    assert min(sizes) <= 6 and max(sizes) >= 15 and 8 < np.mean(sizes) < 11.5
    assert {1, 2, 3} <= {len(row["steps"]) for row in mixed}
    assert tasks.generate("graph", few) == tasks.generate("graph", f"{few},min_nodes=0")


def test_the_published_file_is_read(rows, tmp_path, monkeypatch):
    """A JSON list whose rows hold the graph too."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    graph = {"idx_to_symbol": ["Tom", "terpus"], "edges": [[0, 1]], "root": 0, "target": 1, "neg_target": 1}
    path = tmp_path / "prosqa_valid.json"
    path.write_text(json.dumps([row | graph for row in rows[:5]]))
    args = replace(DataArguments(), validation_file=str(path))
    assert list(load_splits(args, ["validation"])["validation"]) == rows[:5]


def test_the_table_of_the_published_questions(tmp_path):
    """Right answers by T and by number of steps."""
    names = ("ccot_T0", "ccot_T1", "ccot", "cot")
    rights = [(0, 0, 1, 1), (0, 1, 1, 0), (0, 0, 1, 0)]
    predictions = [{f"{name}_right": bool(right) for name, right in zip(names, row, strict=True)} for row in rights]
    lines = graph_search.table(predictions, [3, 4, 4]).splitlines()
    assert lines[0] == "| answered after | all | 3 steps (1) | 4 steps (2) |"
    assert lines[2:] == [
        "| latent thought, T = 0 | 0.000 | 0.000 | 0.000 |",
        "| latent thought, T = 1 | 0.333 | 0.000 | 0.500 |",
        "| latent thought, T = 2 | 1.000 | 1.000 | 1.000 |",
        "| written chain | 0.333 | 1.000 | 0.000 |",
    ]
    graph_search.plot(predictions, [3, 4, 4], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
