"""The checkpoints in checkpoints/: what they answer, and what an export holds."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, SHIPPED
from transformers import AutoModelForCausalLM, AutoTokenizer

import latent_cot  # noqa: F401
from latent_cot import tasks
from latent_cot.analysis.evaluation import answer_questions, same_answer
from latent_cot.converters.export import export
from latent_cot.training.checkpoints.write import EXAMPLE
from latent_cot.training.cli import read_recipe
from latent_cot.training.errors import InputError

WORDS = ROOT / "checkpoints" / "pccot-gpt2-words"


@pytest.fixture(scope="module")
def unseen() -> list[dict]:
    """2,000 questions from another seed, none of which was trained on."""
    recipe = read_recipe(ROOT / "configs" / "recipes" / "chain_pccot_gpt2-2x64.yaml")
    trained = {row["question"] for row in tasks.generate("chain", recipe["task_args"])["train"]}
    fresh = tasks.generate("chain", "operations=4,train=1,validation=1,test=2200,seed=77")["test"]
    return [row for row in fresh if row["question"] not in trained][:2000]


@pytest.fixture(scope="module")
def words_of_the_test_split() -> list[dict]:
    """The first 1,000 questions of the recipe's test split, which is the same whatever the size of the others."""
    settings = read_recipe(ROOT / "configs" / "recipes" / "word-problems_pccot_gpt2-3x128.yaml")["task_args"]
    return tasks.generate("word_problems", settings.replace("train=120000", "train=1"))["test"][:1000]


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [({"mode": "cot"}, 0.99, 1), ({}, 0.97, 1), ({"num_iterations": 0}, 0, 0.40)],
    ids=["explicit chain", "latent thought", "T = 0"],
)
def test_accuracy(shipped, unseen, options, least, most):
    model, tokenizer = shipped
    assert len(unseen) == 2000 and model.config.num_iterations == 3
    questions = [row["question"] for row in unseen]
    answers = answer_questions(model, tokenizer, questions, batch_size=500, max_new_tokens=12, **options).answers
    right = sum(same_answer(given, row["answer"]) for given, row in zip(answers, unseen, strict=True))
    assert least <= right / len(unseen) <= most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "least", "most"), [({}, 0.98, 1), ({"mode": "cot"}, 0.95, 1), ({"num_iterations": 0}, 0, 0.40)]
)
def test_accuracy_in_words(words_of_the_test_split, options, least, most):
    assert len(words_of_the_test_split) == 1000
    model, tokenizer = AutoModelForCausalLM.from_pretrained(WORDS).eval(), AutoTokenizer.from_pretrained(WORDS)
    questions = [row["question"] for row in words_of_the_test_split]
    answers = answer_questions(model, tokenizer, questions, batch_size=250, max_new_tokens=20, **options).answers
    right = sum(same_answer(given, row["answer"]) for given, row in zip(answers, words_of_the_test_split, strict=True))
    assert least <= right / len(words_of_the_test_split) <= most


def test_one_step_in_words():
    """The README's question among them; such questions are a training of their own (benchmarks/results/words_checkpoint.py)."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(WORDS).eval(), AutoTokenizer.from_pretrained(WORDS)
    questions = [
        "Tom has 3 apples. Ann has twice as many apples as Tom. How many apples does Ann have?",
        "Mia has 4 more pencils than Sam. Sam has 2 pencils. How many pencils does Mia have?",
        "Ben has 12 books. Lea has half as many books as Ben. How many books does Lea have?",
        "Eva has 9 coins. Max has 5 fewer coins than Eva. How many coins does Max have?",
    ]
    answers = answer_questions(model, tokenizer, questions, batch_size=4, max_new_tokens=4).answers
    assert answers == ["6", "6", "6", "4"]


def test_an_export_is_a_whole_page(exported):
    """Into an empty folder go weights, tokenizer, card, `example.py` and the present code."""
    names = {path.name for path in exported.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "modeling_pccot.py"} <= names
    for path in exported.glob("*.py"):
        source = EXAMPLE if path.name == "example.py" else ROOT / "models" / path.name
        assert path.read_text() == source.read_text(), path.name
    with pytest.raises(InputError, match="not empty"):
        export(str(SHIPPED), exported)


def run_example(exported, cache, *flags: str) -> subprocess.CompletedProcess:
    """`example.py` of an exported folder, there, with nothing of this repository to import."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    without_package = "import runpy, sys; sys.modules['latent_cot'] = None; sys.argv[0] = 'example.py'; "
    command = [sys.executable, "-c", f"{without_package}runpy.run_path('example.py', run_name='__main__')", *flags]
    return subprocess.run(command, cwd=exported, env=env, capture_output=True, text=True)


@pytest.mark.slow  # tests/training/checkpoints/test_damaged_checkpoints.py::test_the_copy_beside_a_checkpoint
def test_an_export_answers_by_itself(exported, tmp_path):
    done = run_example(exported, tmp_path, "--trust_remote_code", "7+3*4-2+9=", "1+1*2-3+4=")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["7+3*4-2+9=  ->  7", "1+1*2-3+4=  ->  5"]


@pytest.mark.slow
def test_an_export_says_what_it_needs(exported, tmp_path):
    refused = run_example(exported, tmp_path, "1=")
    assert refused.returncode == 1 and "--trust_remote_code" in refused.stderr


@pytest.mark.parametrize(("folder", "most"), [(SHIPPED, 2_000_000), (WORDS, 10_000_000)])
def test_it_is_small_and_safe(folder, most):
    files = list(folder.iterdir())
    assert sum(path.stat().st_size for path in files) < most
    assert {path.suffix for path in files} <= {".json", ".jinja", ".md", ".safetensors"}
