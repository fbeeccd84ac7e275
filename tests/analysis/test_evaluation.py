"""Which answers are right, and what is counted."""

import pytest
import torch

from latent_cot.analysis.evaluation import Answers, count_new_tokens, same_answer, wilson_interval


@pytest.mark.parametrize(
    "given, gold",
    [
        ("4", "4"),
        ("1,450,000", "1450000"),
        ("1450000", "1,450,000"),
        ("-1,000.50", "-1000.5"),
        ("18.0", "18"),
        (".5", "0.50"),
        ("007", "7"),
        ("+3", "3"),
        ("-0", "0"),
        ("$5", "5"),
        ("$1,450,000.", "1450000"),
        ("50%", "50"),
        ("18.", "18"),
        (" 18\n", "18"),
        ("5 5 6 0", "5 5 6 0"),
        ("5  5\n6 0 ", "5 5 6 0"),
        ("Tom is a lempus.", "Tom is a lempus."),
        ("12,34", "12,34"),
        ("nan", "nan"),
        ("123456789012345678901", "123456789012345678901.0"),
    ],
)
def test_right(given, gold):
    assert same_answer(given, gold)


@pytest.mark.parametrize(
    "given, gold",
    [
        (None, "None"),
        (None, "4"),
        ("", "0"),
        ("-4", "4"),
        ("4", "4.01"),
        ("5 5 6 0", "5560"),
        ("5 5 6 0", "0 6 5 5"),
        ("12,34", "1234"),
        ("1,4500", "14500"),
        ("1234,567", "1234567"),
        ("4 apples", "4"),
        ("44", "4"),
        ("4/2", "2"),
        ("nan", "NaN"),
        ("Infinity", "inf"),
        ("Tom is a lempus.", "Tom is a scrompus."),
        ("tom", "Tom"),
        ("123456789012345678901", "123456789012345678902"),
    ],
)
def test_wrong(given, gold):
    assert not same_answer(given, gold)


@pytest.mark.parametrize(
    "right, total, low, high",
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(right, total, low, high):
    assert wilson_interval(right, total) == pytest.approx((low, high), abs=5e-5)


def test_count_new_tokens():
    """The first end of sequence counts, nothing after it does; a row may not end at all."""
    tokens = torch.tensor([[5, 6, 1, 0], [1, 1, 1, 1], [5, 6, 7, 8], [5, 1, 6, 1], [5, 6, 7, 1]])
    assert count_new_tokens(tokens, eos_token_id=1).tolist() == [3, 1, 4, 2, 4]


def test_metrics():
    answers = Answers(texts=["a", "b", "c", "d"], answers=["1,000", "2", None, "3"], new_tokens=10, seconds=0.5)
    assert answers.metrics("cot", ["1000", "2.0", "4", "4"]) == {
        "cot_exact_match": 0.5,
        "cot_exact_match_low": pytest.approx(0.1500, abs=5e-5),
        "cot_exact_match_high": pytest.approx(0.8500, abs=5e-5),
        "cot_examples_per_second": 8.0,
        "cot_ms_per_answer": 125.0,
        "cot_new_tokens": 2.5,
    }


def test_metrics_want_an_answer_for_every_row():
    with pytest.raises(ValueError):
        Answers(answers=["1"]).metrics("cot", ["1", "2"])
