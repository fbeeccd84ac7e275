"""`--early_stopping_patience`: stops a run that gets no better, the same one when it is resumed, and says what it needs."""

import json
import shutil

import pytest
from conftest import ROOT

import run_ccot
import run_cot
import run_icot
from latent_cot.training import CoTTrainingArguments
from latent_cot.training.errors import InputError

RUN = ["--config_name", "configs/pccot_gpt2_tiny.json", "--tokenizer_name", "characters", "--use_cpu", "--do_train"]
RUN += ["--dataset_name", "chain", "--task_args", "train=16,validation=4,test=4", "--answer_prompt", "#"]
RUN += ["--max_steps", "8", "--per_device_train_batch_size", "8", "--disable_tqdm", "true", "--max_cot_tokens", "4"]
RUN += ["--learning_rate", "0", "--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "1"]
RUN += ["--save_steps", "1"]
BEST = ["--load_best_model_at_end", "--early_stopping_patience", "2", "--metric_for_best_model"]


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)


def stopped_at(folder) -> int:
    return json.loads((folder / "trainer_state.json").read_text())["global_step"]


def test_a_run_stops_and_stops_there_when_resumed(tmp_path):
    """The first evaluation is the best; two that are no better end the run, whatever the run was cut after."""
    whole = tmp_path / "whole"
    argv = [*RUN, *BEST, "loss"]
    run_cot.main([*argv, "--output_dir", str(whole)])
    assert stopped_at(whole) == 3
    for cut, steps in ((2, 3), (3, 3)):  # within its patience, and when that was over
        part = tmp_path / f"cut-{cut}"
        for step in range(1, cut + 1):
            shutil.copytree(whole / f"checkpoint-{step}", part / f"checkpoint-{step}")
        run_cot.main([*argv, "--output_dir", str(part), "--resume_from_checkpoint", "true", "--do_predict"])
        assert stopped_at(part) == steps and not (part / "checkpoint-4").exists()
        assert "test_cot_exact_match" in json.loads((part / "all_results.json").read_text())


def test_a_warm_up_counts_for_nothing(tmp_path):
    """What the student answers while only the teacher is trained."""
    run_ccot.main([*RUN, *BEST, "eval_ccot_exact_match", "--teacher_warmup_steps", "4", "--output_dir", str(tmp_path)])
    assert stopped_at(tmp_path) == 6


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "pass --eval_strategy steps .or epoch. and --load_best_model_at_end and --metric_for_best_model too"),
        ({"eval_strategy": "epoch", "load_best_model_at_end": True}, "pass --metric_for_best_model too"),
        ({"early_stopping_patience": 0}, "must be at least 1, got 0"),
    ],
)
def test_what_is_missing_is_said(settings, said, tmp_path):
    with pytest.raises(InputError, match=said):
        CoTTrainingArguments(str(tmp_path), **({"early_stopping_patience": 2} | settings))


def test_a_chain_that_is_taken_away_does_not_wait_for_the_best(tmp_path):
    icot = [*RUN, "--config_name", "configs/icot_gpt2_2x2.json", *BEST, "loss"]
    with pytest.raises(InputError, match="answers get worse whenever tokens are removed"):
        run_icot.main([*icot, "--output_dir", str(tmp_path)])


def test_the_test_split_chooses_nothing(tmp_path):
    with pytest.raises(
        InputError, match="--metric_for_best_model test_cot_exact_match: there are loss, cot_exact_match"
    ):
        run_cot.main([*RUN, *BEST, "test_cot_exact_match", "--output_dir", str(tmp_path)])
