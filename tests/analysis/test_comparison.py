"""How answers are read (`--answer_from`) and compared (`--compare`)."""

import math
import sys
import threading

import pytest
from conftest import chain_model, make_any

from latent_cot import PCCoTGPT2Config, tasks
from latent_cot.analysis.comparison import COMPARISONS, comparison, same_text
from latent_cot.analysis.evaluation import Answers
from latent_cot.analysis.faithfulness import measure
from latent_cot.analysis.inspection import read_data
from latent_cot.analysis.sampled_answers import sample_metrics
from latent_cot.answer_modes import DIRECT, EXPLICIT, INTERNALIZED, LATENT
from latent_cot.training import CoTArguments, CoTTrainer, CoTTrainingArguments, EvaluationArguments, PCCoTTrainer
from latent_cot.training.errors import InputError

PROMPT = " The answer is:"


@pytest.mark.parametrize(
    "text, prompt, hashes, last_number",
    [
        ("so 2 The answer is: 4", "4", None, "4"),
        ("<<4-2=2>> The answer is: 4", "4", None, "4"),
        ("The answer is:4 ", "4", None, "4"),
        ("The answer is: 3. No, The answer is: 4", "4", None, "4"),
        ("The answer is:", "", None, None),
        ("so 2 #### 1,200", None, "1,200", "1,200"),
        ("10-4=-6.", None, None, "-6"),
        ("10-4", None, None, "4"),
        ("about $3.50, or 12,345.5 cents", None, None, "12,345.5"),
        ("### -3 of 4", None, "-3 of 4", "4"),
        ("none", None, None, None),
        ("", None, None, None),
    ],
)
def test_read_answer(text, prompt, hashes, last_number):
    for mode, wanted in ((EXPLICIT, prompt), (DIRECT, prompt), (LATENT, text.strip()), (INTERNALIZED, text.strip())):
        assert mode.read(text, PROMPT) == wanted  # after a thought or fillers, all that it writes
        assert mode.read(text, PROMPT, "hashes") == hashes
        assert mode.read(text, PROMPT, "last_number") == last_number
        assert mode.read(f" {text} ", PROMPT, "all") == text.strip()
    with pytest.raises(ValueError, match="answer_from must be one of prompt, hashes, last_number, all, got 'end'"):
        PCCoTGPT2Config(answer_from="end")


SAME = [
    ("4 apples", "4"),
    ("4", "4 apples"),
    ("−4", "-4"),
    ("+3", "3"),
    ("0.5", "1/2"),
    (r"\frac{1}{2}", "0.5"),
    (r"$-\frac{1}{2}$", "-.5"),
    (r"\boxed{5}", "5"),
    (r"so \boxed{\frac12}", "1/2"),
    ("1,450 dollars", "$1450"),
    ("50%", "50"),
    ("Yes.", "yes"),
    ("(A)", "A"),
    ("b", "B"),
    ("5 km", "5"),
    ("5 5 6 0", "5  5 6 0"),
    ("Tom is a lempus", "Tom is a lempus."),
    ("True", "true"),
]
OTHERS = [
    (None, "None"),
    ("", "0"),
    ("-4", "4"),
    ("4", "4.01"),
    ("no", "yes"),
    ("A", "B"),
    ("5 km", "5 miles"),
    ("7 7 7 0", "5 5 6 0"),
    ("1", "1 1/2"),
    ("7 or 8", "7"),
    ("3/2", "2/3"),
    ("Tom is a scrompus.", "Tom is a lempus."),
    ("(2, 1)", "(1, 2)"),
    ("ten", "10"),
]


@pytest.mark.parametrize("given, gold, wanted", [(*pair, True) for pair in SAME] + [(*pair, False) for pair in OTHERS])
def test_math(given, gold, wanted):
    pytest.importorskip("math_verify")
    assert comparison("math")(given, gold) is wanted


def test_math_in_another_thread():
    """Where there are no signals to end what takes too long."""
    pytest.importorskip("math_verify")
    found = []
    thread = threading.Thread(target=lambda: found.append(comparison("math")("0.5", "1/2")))
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.slow
def test_math_ends_what_takes_too_long():
    pytest.importorskip("math_verify")
    assert not comparison("math")("9**9**9**9", "2")


def test_math_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(InputError, match=r"--compare math needs math-verify: pip install 'latent-cot\[math\]'"):
        comparison("math")


def test_text():
    assert comparison("text") is same_text and comparison() is comparison("number")
    assert same_text(" a  b\n", "a b") and not same_text("18.0", "18") and not same_text(None, "None")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the current folder, which is not on the path of modules."""
    (tmp_path / "my_comparison.py").write_text(
        "import numpy\ndef first(given, gold):\n    return given[:1] == gold[:1]\n"
        "def array(given, gold):\n    return numpy.bool_(True)\ndef score(given, gold):\n    return 0.5\nname = 'x'\n"
        "def always(given, gold):\n    return True\n"
    )
    (tmp_path / "broken_comparison.py").write_text("import not_there_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    yield
    sys.modules.pop("my_comparison", None)


def test_a_function_of_ones_own(module):
    before = list(sys.path)
    same = comparison("my_comparison:first")
    assert same("ab", "ac") is True and same("b", "a") is False and same(None, "a") is False
    assert comparison("my_comparison:array")("a", "b") is True
    assert comparison("operator:eq")("a", "a")
    assert sys.path == before
    with pytest.raises(InputError, match=r"my_comparison:score: expected true or false, got 0.5 for 'a' and 'b'"):
        comparison("my_comparison:score")("a", "b")


@pytest.mark.parametrize(
    "name, message",
    [
        ("maths", "--compare must be one of number, text, math, or module:function, got 'maths'"),
        ("not_there:f", "--compare not_there:f: No module named 'not_there'"),
        ("broken_comparison:f", "No module named 'not_there_at_all'"),
        ("my_comparison:none", "has no attribute 'none'"),
        ("my_comparison:name", "'name' is no function"),
        (":f", "--compare :f: Empty module name"),
    ],
)
def test_functions_that_are_none(name, message, module):
    with pytest.raises(InputError, match=message):
        comparison(name)


def test_metrics_go_by_the_comparison():
    assert set(COMPARISONS) == {"number", "text", "math"}
    answers = Answers(texts=["18.0", "2"], answers=["18.0", "2"], new_tokens=2, seconds=1.0)
    assert answers.metrics("cot", ["18", "2"])["cot_exact_match"] == 1.0
    assert answers.metrics("cot", ["18", "2"], same_text)["cot_exact_match"] == 0.5
    samples = [["18.0", "18.0"], ["2", "3"]]
    assert sample_metrics("ccot", samples, ["18", "2"])["ccot_pass_at_2"] == 1.0
    assert sample_metrics("ccot", samples, ["18", "2"], same_text)["ccot_pass_at_2"] == 0.5


def test_evaluation_goes_by_the_comparison(characters, tmp_path, module):
    """Metrics and predictions of a trainer; and the comparison is looked up before anything is loaded."""
    rows = tasks.generate("chain", "train=2,validation=1,test=4")["test"]

    def trainer(model, **evaluation):
        return PCCoTTrainer(
            model,
            CoTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, report_to="none"),
            test_dataset=[{"question": row["question"], "answer": row["answer"]} for row in rows],
            processing_class=characters,
            evaluation=EvaluationArguments(max_new_tokens=2, max_cot_tokens=4, **evaluation),
        )

    made = trainer(chain_model(characters), compare="my_comparison:always", answer_from="all")
    assert made.model.config.answer_from == "all"  # where the harness reads it too
    metrics = made.predict(made.splits["test"], metric_key_prefix="test").metrics
    assert metrics["test_ccot_exact_match"] == metrics["test_cot_exact_match"] == 1.0  # a chain without a prompt too
    predictions = made.predictions("test", made.splits["test"])
    assert all(row["ccot_right"] is True and row["cot_answer"] == row["cot_text"] for row in predictions)
    made.write_card(tmp_path, "chains")
    said = "Answers are read from the texts: all of it. Answers are compared by `my_comparison:always`. Trained"
    assert said in (tmp_path / "README.md").read_text()
    with pytest.raises(InputError, match="--compare must be one of"):
        trainer("not/there", compare="maths")
    with pytest.raises(InputError, match="--answer_from must be one of"):
        trainer("not/there", answer_from="end")


def test_faithfulness_and_inspection_go_by_the_comparison(characters, module):
    rows, model = tasks.generate("chain", "train=2,validation=1,test=3")["test"], chain_model(characters).eval()
    given = {"data": "chains", "max_new_tokens": 1, "same": comparison("my_comparison:always")}
    assert {row.rate for row in measure(model, characters, rows, **given).interventions} == {1.0}
    assert set(read_data(model, characters, list(rows), **given).answers) == {1.0}
    fillers = make_any("icot-gpt2", vocab_size=len(characters))
    assert {row.rate for row in measure(fillers, characters, rows, **given).interventions} == {1.0}


def test_rows_without_a_chain_train_without_one(characters, tmp_path):
    rows = [{"question": f"{i}+{i}=", "answer": str(2 * i)} for i in range(8)]
    args = CoTTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=1, report_to="none", save_strategy="no"
    )
    options = {"train_dataset": rows, "eval_dataset": rows, "processing_class": characters}
    trainer = CoTTrainer(chain_model(characters), args, method=CoTArguments(no_cot=True), **options)
    assert math.isfinite(trainer.train().training_loss)
    with pytest.raises(InputError, match=r"row 0: no column 'steps'; there are: question, answer"):
        PCCoTTrainer(chain_model(characters), args, **options)
