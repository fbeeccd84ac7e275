"""Runs that were interrupted end as if they had not been: which checkpoint they go on from, and how exactly."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from safetensors.torch import load_file, save_file

import run_ccot
import run_cot
import run_icot
from latent_cot.training.errors import InputError
from latent_cot.training.resume.find_checkpoint import checkpoint_to_resume

SIZES = ["--dataset_name", "chain", "--task_args", "train=36,validation=6,test=2"]
RUN = ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--per_device_train_batch_size", "8", "--do_train"]
RUN += ["--max_steps", "8", "--save_steps", "2", "--max_cot_tokens", "8", "--max_new_tokens", "4", *SIZES]
NEW = ["--tokenizer_name", "characters", "--config_name"]
PCCOT, ICOT = [*NEW, "configs/pccot_gpt2_tiny.json"], [*NEW, "configs/icot_gpt2_2x2.json"]
LORA = ["--use_peft", "--lora_r", "4", "--lora_target_modules", "c_attn-c_fc-c_proj"]
GATE = ["--removal_gate", "0", "--eval_strategy", "steps", "--eval_steps", "2", "--partial_removal"]
SMOOTH = ["--removal_smoothing_lambda", "2", "--remove_per_epoch", "6", "--reset_optimizer", "--partial_removal"]
FILLERS = ["--switch_tokens", "--switch_from_n_steps", "0"]
CONFIGURATIONS = {  # five steps an epoch: checkpoints 2, 4, 6, 8 lie within the first epoch and the second
    "pccot": (run_ccot, PCCOT),
    "pccot, mixed curriculum": (run_ccot, [*PCCOT, "--latent_curriculum", "mixed", "--latents_per_step", "2"]),
    "pccot, by length": (run_ccot, [*PCCOT, "--train_sampling_strategy", "group_by_length"]),
    "pccot, streaming": (run_ccot, [*PCCOT, "--streaming"]),
    "pccot, accumulation": (run_ccot, [*PCCOT, "--gradient_accumulation_steps", "2"]),
    "pccot, warm-up, end of an epoch": (run_ccot, [*PCCOT, "--teacher_warmup_steps", "3", "--save_steps", "5"]),
    "pccot, bf16, two data loading processes": (run_ccot, [*PCCOT, "--bf16", "--dataloader_num_workers", "2"]),
    "pccot, LoRA": (run_ccot, ["--model_name_or_path", "BASE", *LORA]),
    "cot, LoRA": (run_cot, ["--model_name_or_path", "BASE", *LORA]),
    "no cot, checkpointing": (run_cot, [*PCCOT, "--no_cot", "--gradient_checkpointing"]),
    "icot, gate": (run_icot, [*ICOT, *GATE]),
    "icot, smoothing, reset": (run_icot, [*ICOT, *SMOOTH]),
    "icot, fillers": (run_icot, [*ICOT, *FILLERS]),
}
FAST = ("pccot, mixed curriculum", "pccot, by length")  # tests/models/test_icot.py resumes one of iCoT


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """What adapters are added to."""
    folder = tmp_path_factory.mktemp("base") / "model"
    run_ccot.main([*PCCOT, *RUN, "--max_steps", "1", "--save_strategy", "no", "--output_dir", str(folder)])
    return folder


def assert_same(folder: Path, other: Path) -> None:
    one, two = ({p.name: p.read_bytes() for p in place.glob("*.safetensors")} for place in (folder, other))
    assert one and one == two


@pytest.mark.parametrize(
    ("name", "least"),
    [*((name, 6) for name in FAST), *(pytest.param(n, 0, marks=pytest.mark.slow) for n in CONFIGURATIONS)],
)
def test_every_checkpoint_leads_to_the_same_weights(name, least, base, tmp_path):
    """In a quick form, of some runs those from step `least` on."""
    script, flags = CONFIGURATIONS[name]
    argv = [*RUN, *(str(base) if flag == "BASE" else flag for flag in flags)]
    whole = tmp_path / "whole"
    script.main([*argv, "--output_dir", str(whole)])
    checkpoints = [path for path in sorted(whole.glob("checkpoint-*")) if int(path.name[11:]) >= least]
    assert checkpoints
    for checkpoint in checkpoints:
        resumed = tmp_path / checkpoint.name
        script.main([*argv, "--output_dir", str(resumed), "--resume_from_checkpoint", str(checkpoint)])
        assert_same(whole, resumed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with four checkpoints."""
    folder = tmp_path_factory.mktemp("run") / "model"
    run_ccot.main([*RUN, *PCCOT, "--output_dir", str(folder)])
    return folder


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def with_nan(path: Path) -> None:
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, path, {"format": "pt"})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "optimizer.pt is missing": lambda folder: (folder / "optimizer.pt").unlink(),
    "scheduler.pt is missing": lambda folder: (folder / "scheduler.pt").unlink(),
    "rng_state*.pth is missing": lambda folder: (folder / "rng_state.pth").unlink(),
    "trainer_state.json is missing": lambda folder: (folder / "trainer_state.json").unlink(),
    "model.safetensors is missing": lambda folder: (folder / "model.safetensors").unlink(),
    "trainer_state.json is damaged": lambda folder: cut(folder / "trainer_state.json"),
    "optimizer.pt is damaged": lambda folder: cut(folder / "optimizer.pt"),
    "model.safetensors is damaged": lambda folder: cut(folder / "model.safetensors"),
    "in model.safetensors is not finite": lambda folder: with_nan(folder / "model.safetensors"),
}


@pytest.mark.parametrize("why", DAMAGES)
def test_a_checkpoint_that_is_not_whole_is_passed_over_by_name(why, copied, caplog):
    DAMAGES[why](copied / "checkpoint-8")
    assert checkpoint_to_resume("true", copied) == copied / "checkpoint-6"
    assert "checkpoint-8 is passed over" in caplog.text and why in caplog.text
    with pytest.raises(InputError, match=re.escape(why)):
        checkpoint_to_resume(str(copied / "checkpoint-8"), copied)


def test_where_no_checkpoint_is_whole_each_is_named(copied):
    for checkpoint in copied.glob("checkpoint-*"):
        cut(checkpoint / "optimizer.pt")
    with pytest.raises(InputError, match=r"no whole checkpoint .*checkpoint-8: optimizer.pt is damaged.*checkpoint-2"):
        checkpoint_to_resume("true", copied)


OTHER_RUNS = {
    "its tokenizer has other ids": ["--dataset_name", "parity"],
    "it was made with num_iterations=3, and this run has 1": ["--config_overrides", "num_iterations=1"],
    "it was made with n_head=4, and this run has 1": ["--config_overrides", "n_head=1"],
    "it was made with loss_alpha=1.0, and this run has 2.0": ["--config_overrides", "loss_alpha=2"],
    "it holds a whole model, and this run trains adapters": LORA,
}


@pytest.mark.parametrize("why", OTHER_RUNS)
def test_a_checkpoint_of_another_model_is_refused(why, copied, run):
    """Its weights have the shape of this run's, and would be trained on as something else."""
    argv = [*RUN, *PCCOT, "--output_dir", str(copied), "--max_steps", "9", "--resume_from_checkpoint", "true"]
    with pytest.raises(InputError, match=re.escape(why)):
        run_ccot.main([*argv, *OTHER_RUNS[why]])
    assert_same(run, copied)


def test_a_learning_rate_that_is_not_used_is_named(copied, caplog):
    argv = [*RUN, *PCCOT, "--output_dir", str(copied), "--max_steps", "9", "--resume_from_checkpoint", "true"]
    run_ccot.main(argv)
    assert "is not used" not in caplog.text
    shutil.rmtree(copied / "checkpoint-9", ignore_errors=True)
    run_ccot.main([*argv, "--learning_rate", "0.01"])
    assert "--learning_rate 0.01 is not used: a resumed run goes on with its own, 5e-05" in caplog.text


def test_a_finished_run_trains_no_further_step(copied, run, caplog):
    """Also within an epoch; its results hold no loss of a training that did not take place."""
    (copied / "model.safetensors").unlink()
    (copied / ".unfinished" / "checkpoint-9").mkdir(parents=True)
    argv = [*RUN, *PCCOT, "--output_dir", str(copied), "--resume_from_checkpoint", "true", "--do_eval"]
    run_ccot.main(argv)
    assert_same(run, copied)
    assert "nothing is left to train" in caplog.text and not (copied / ".unfinished").exists()
    assert "train_loss" not in json.loads((copied / "all_results.json").read_text())


@pytest.mark.slow
def test_killed_runs():
    """A few of the runs of `tests/faults/kill_and_resume.py`."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "faults" / "kill_and_resume.py", "--kills", "6", "--seed", "2"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
