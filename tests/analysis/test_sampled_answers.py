"""`--num_samples`: what is estimated from several thoughts, and that evaluation asks for what `generate` gives."""

import itertools

import pytest
import torch
from test_resuming import PCCOT, RUN

import run_ccot
from latent_cot import tasks
from latent_cot.analysis.evaluation import answer_questions
from latent_cot.analysis.sampled_answers import pass_at, sample_metrics, vote
from latent_cot.training.checkpoints.read import load


@pytest.mark.parametrize("right", range(6))
@pytest.mark.parametrize("k", range(1, 6))
def test_pass_at_k_against_every_choice(k, right):
    choices = list(itertools.combinations([index < right for index in range(5)], k))
    assert pass_at(k, 5, right) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_metrics_of_samples():
    samples = [["7", "7.0", "3", None], ["1", "2", "2", "2"], [None, None, None, None]]
    metrics = sample_metrics("ccot", samples, ["7", "1", "5"])
    assert metrics["ccot_pass_at_1"] == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    assert metrics["ccot_pass_at_4"] == pytest.approx(2 / 3) and "ccot_pass_at_2" in metrics
    assert metrics["ccot_majority_vote"] == pytest.approx(1 / 3)
    assert metrics["ccot_distinct_answers"] == pytest.approx((3 + 2 + 1) / 3)
    assert metrics["ccot_pass_at_1_low"] < metrics["ccot_pass_at_1"] < metrics["ccot_pass_at_1_high"]
    certain = sample_metrics("ccot", [["7"] * 4] * 300, ["7"] * 300)
    assert certain["ccot_pass_at_4"] == 1 and certain["ccot_pass_at_4_low"] == pytest.approx(0.9874, abs=1e-4)
    assert vote([None, "4", "5", "5.0"]) == "5" and vote([None]) is None


def test_evaluation_asks_for_several_thoughts(tmp_path):
    """The samples are those of `generate`, whatever the batches; without samples the metrics are not there."""
    argv = [*RUN, *PCCOT, "--max_steps", "2", "--save_strategy", "no", "--do_eval", "--learning_rate", "1e-2"]
    argv += ["--config_overrides", "initializer_range=0.3"]  # so that answers depend on thoughts
    samples = ["--num_samples", "3", "--latent_noise", "2"]
    one = run_ccot.main([*argv, *samples, "--per_device_eval_batch_size", "1", "--output_dir", str(tmp_path / "one")])
    six = run_ccot.main([*argv, *samples, "--per_device_eval_batch_size", "6", "--output_dir", str(tmp_path / "six")])
    names = {name for name in six if "pass_at" in name or "vote" in name or "distinct" in name}
    assert {f"eval_ccot_pass_at_{k}" for k in (1, 2, 3)} < names
    assert all(one[name] == six[name] for name in names)
    assert not any("pass_at" in name for name in run_ccot.main([*argv, "--output_dir", str(tmp_path / "none")]))

    model, tokenizer = load(str(tmp_path / "six"))
    rows = tasks.generate("chain", "train=36,validation=6,test=2")["validation"]
    options = {"latent_noise": 2.0, "latent_seed": 42, "num_return_sequences": 3, "max_new_tokens": 4}
    with torch.inference_mode():
        asked = answer_questions(model, tokenizer, [row["question"] for row in rows], batch_size=4, **options)
    answers = [asked.answers[at : at + 3] for at in range(0, 18, 3)]
    wanted = sample_metrics("ccot", answers, [row["answer"] for row in rows])
    assert {f"eval_{name}": value for name, value in wanted.items()} == {name: six[name] for name in names}
    assert six["eval_ccot_distinct_answers"] > 1
