"""One model for every T: what is drawn in training, what is measured, and what is said of a T that was not trained."""

import json
import logging

import pytest
import torch
from conftest import chain_model
from test_resuming import PCCOT, RUN, assert_same
from transformers.utils.logging import warning_once

import run_ccot
from latent_cot import PCCoTGPT2Config
from latent_cot.training import LatentEvaluationArguments, PCCoTArguments, PCCoTTrainer
from latent_cot.training.errors import InputError

RANGE = [*PCCOT, "--num_iterations_range", "3,6"]


@pytest.fixture
def drawn(monkeypatch):
    """The T of every training forward."""
    numbers = []
    inputs = PCCoTTrainer.model_inputs

    def model_inputs(self, batch, training):
        result = inputs(self, batch, training)
        if training:
            numbers.append((self.state.global_step, result["num_iterations"]))
        return result

    monkeypatch.setattr(PCCoTTrainer, "model_inputs", model_inputs)
    return numbers


def test_a_number_is_drawn_for_each_step(drawn, tmp_path):
    """All numbers occur; batches of one step share theirs; the range is in the checkpoint."""
    argv = [*RUN, *RANGE, "--max_steps", "12", "--gradient_accumulation_steps", "2", "--save_strategy", "no"]
    run_ccot.main([*argv, "--output_dir", str(tmp_path)])
    assert len(set(drawn)) == 12 and {number for _, number in drawn} == {3, 4, 5, 6}
    assert json.loads((tmp_path / "config.json").read_text())["num_iterations_range"] == [3, 6]
    again = drawn[:]
    drawn.clear()
    run_ccot.main([*argv, "--seed", "7", "--max_steps", "5", "--output_dir", str(tmp_path / "other")])
    assert drawn != again[: len(drawn)]


def test_a_resumed_run_draws_the_same(tmp_path):
    argv = [*RUN, *RANGE, "--max_steps", "6"]
    run_ccot.main([*argv, "--output_dir", str(tmp_path / "whole")])
    checkpoint = str(tmp_path / "whole" / "checkpoint-4")
    run_ccot.main([*argv, "--output_dir", str(tmp_path / "again"), "--resume_from_checkpoint", checkpoint])
    assert_same(tmp_path / "whole", tmp_path / "again")


def test_evaluation_at_several_numbers(tmp_path):
    """Metrics, predictions and card have each of them, and each is what `generate` answers at that T."""
    argv = [*RUN, *RANGE, "--save_strategy", "no", "--eval_iterations", "1,4", "--do_eval"]
    metrics = run_ccot.main([*argv, "--output_dir", str(tmp_path)])
    assert {"eval_ccot_exact_match", "eval_ccot_T1_exact_match", "eval_ccot_T4_exact_match"} <= metrics.keys()
    card = (tmp_path / "README.md").read_text()
    assert "latent thought, T = 1 |" in card and "trained with 3 to 6" in card
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    from latent_cot.analysis.evaluation import answer_questions
    from latent_cot.training.checkpoints.read import load

    model, tokenizer = load(str(tmp_path))
    for number in (1, 4):
        asked = {"num_iterations": number, "max_new_tokens": 4}
        answers = answer_questions(model, tokenizer, [row["question"] for row in rows], batch_size=3, **asked)
        assert answers.texts == [row[f"ccot_T{number}_text"] for row in rows]


def test_a_number_that_was_not_trained_is_named_once(characters, caplog):
    logging.getLogger("transformers").propagate = True
    warning_once.cache_clear()  # what other tests of this process were told
    model = chain_model(characters, num_latent_tokens=4, num_iterations=3)
    ids = torch.tensor([[8, 9]])
    for number, named in ((3, False), (2, True), (2, False), (4, True)):
        caplog.clear()
        model.generate(ids, num_iterations=number, max_new_tokens=1)
        assert ("was trained with T = 3" in caplog.text) is named, number
    model.config.num_iterations_range = [2, 4]
    for number in (2, 3, 4, 9):  # 4 and more are the same computation: there are four latents
        model.generate(ids, num_iterations=number, max_new_tokens=1)
        assert "[2, 4]" not in caplog.text
    model.generate(ids, num_iterations=1, max_new_tokens=1)
    assert "was trained with T = [2, 4]" in caplog.text


@pytest.mark.parametrize("bounds", [[3], [6, 3], [3, 3], [-1, 6], [7, 9]])
def test_ranges_that_are_none(bounds):
    with pytest.raises(ValueError, match="num_iterations"):
        PCCoTGPT2Config(num_iterations=6, num_iterations_range=bounds)


@pytest.mark.parametrize("text", ["3", "3,x", "3,6,9", "", "3,3", "-1,2", "1.5,2"])
def test_flags_that_are_no_ranges(text):
    with pytest.raises(InputError, match="--num_iterations_range must be 2 different whole numbers"):
        PCCoTArguments(num_iterations_range=text)
    if text != "3" and text != "3,6,9":
        with pytest.raises(InputError, match="--eval_iterations must be different whole numbers"):
            LatentEvaluationArguments(eval_iterations=text)
