"""What can end a run early: signals, a full disk, losses that are no numbers. Nothing it leaves looks like a finished run."""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from several_processes import launch
from test_resuming import ICOT, PCCOT, RUN, assert_same

import run_ccot
import run_icot
from latent_cot.training import ICoTTrainer, PCCoTTrainer
from latent_cot.training.checkpoints import write
from latent_cot.training.errors import InputError
from latent_cot.training.trainers import saving


def contents(folder: Path) -> dict[str, str]:
    """Each file of a folder and a digest of it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- signals ---


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_a_checkpoint(number, tmp_path):
    """One line, exit code 128 + signal, and a checkpoint in the middle of the epoch that leads to the same weights."""
    argv = [*RUN, *PCCOT, "--max_steps", "60", "--save_steps", "1000"]
    run_ccot.main([*argv, "--output_dir", str(tmp_path / "whole")])
    stopped = tmp_path / "stopped"
    command = [sys.executable, "run_ccot.py", *argv, "--logging_steps", "1", "--output_dir", str(stopped)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "'loss'" in line:
            process.send_signal(number)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    line = err.splitlines()[-1]
    assert line.startswith(f"{number.name}: saved") and "--resume_from_checkpoint true" in line
    (saved,) = stopped.glob("checkpoint-*")
    assert 1 <= json.loads((saved / "trainer_state.json").read_text())["global_step"] < 60
    assert not (stopped / "config.json").exists() and not (stopped / "all_results.json").exists()
    run_ccot.main([*argv, "--output_dir", str(stopped), "--resume_from_checkpoint", "true"])
    assert_same(tmp_path / "whole", stopped)


@pytest.mark.slow
def test_all_processes_end_after_the_same_step(tmp_path):
    """A signal that only one of two processes gets."""
    script = """
import os, signal
import run_ccot
from latent_cot.training.cli import run
from latent_cot.training.resume.interruption import StopOnSignal
noticed = StopOnSignal.on_step_end
def on_step_end(self, args, state, control, **kwargs):
    if os.environ["RANK"] == "1" and state.global_step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    noticed(self, args, state, control, **kwargs)
StopOnSignal.on_step_end = on_step_end
run(run_ccot.main)
"""
    (tmp_path / "script.py").write_text(script)
    argv = [*RUN, *PCCOT, "--ddp_backend", "gloo", "--save_steps", "1000", "--output_dir", str(tmp_path / "out")]
    done = launch(tmp_path / "script.py", *argv, timeout=200)
    assert done.returncode != 0 and "SIGTERM: saved" in done.stderr, done.stderr[-3000:]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint-3"]


def test_a_second_ctrl_c_ends_at_once():
    from latent_cot.training.errors import Interrupted
    from latent_cot.training.resume.interruption import StopOnSignal

    stop = StopOnSignal()
    stop.receive(signal.SIGINT, None)
    stop.receive(signal.SIGINT, None)  # the same one, passed on by a launcher
    stop.received_at -= 5
    with pytest.raises(Interrupted, match="at once"):
        stop.receive(signal.SIGINT, None)


# --- writing that fails ---


@pytest.mark.slow
def test_a_full_disk_is_one_line(tmp_path):
    """Of the operating system's own making: no file may grow beyond a size that the first checkpoint's optimiser passes."""
    out = tmp_path / "out"
    argv = [*RUN, *PCCOT, "--output_dir", str(out)]
    limit = 150_000
    done = subprocess.run(
        [sys.executable, "run_ccot.py", *argv],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: could not write") and "MiB are free" in line and "checkpoint-2" in line, done.stderr
    assert not out.exists() or not any(out.iterdir())


def fails_at(count: int, function):
    """`function`, which finds a full disk when it is called for the n-th time, after it wrote."""
    calls = []

    def wrapper(*args, **kwargs):
        result = function(*args, **kwargs)
        calls.append(args)
        if len(calls) == count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return result

    return wrapper


# Optimizer and scheduler of the second checkpoint (arguments, optimizer, ...).
@pytest.mark.parametrize("count", [4, pytest.param(5, marks=pytest.mark.slow)])
def test_a_checkpoint_that_fails_leaves_the_older_ones(count, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", fails_at(4 + count - 3, torch.save))
    with pytest.raises(OSError, match=r"could not write .*checkpoint-4.*MiB are free"):
        run_ccot.main([*RUN, *PCCOT, "--output_dir", str(tmp_path)])
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    run_ccot.main([*RUN, *PCCOT, "--output_dir", str(tmp_path), "--resume_from_checkpoint", "true"])
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("where", ["weights", "card"])
def test_a_model_is_replaced_as_a_whole_or_not_at_all(where, tmp_path, monkeypatch):
    argv = [*RUN, *PCCOT, "--max_steps", "2", "--save_strategy", "no", "--do_eval", "--output_dir", str(tmp_path)]
    run_ccot.main(argv)
    before = contents(tmp_path)
    module, name = (write.shutil, "copy") if where == "weights" else (saving, "write_card")
    monkeypatch.setattr(module, name, fails_at(1, getattr(module, name)))
    with pytest.raises(OSError, match="could not write"):
        run_ccot.main([*argv, "--overwrite_output_dir", "--learning_rate", "1e-2"])
    assert contents(tmp_path) == before
    monkeypatch.undo()
    run_ccot.main([*argv, "--overwrite_output_dir", "--learning_rate", "1e-2"])
    after = contents(tmp_path)
    assert all(before[name] != after[name] for name in ("model.safetensors", "all_results.json", "README.md"))


# --- losses that are no numbers ---


class BrokenAt(PCCoTTrainer):
    """Its gradients are not finite at some steps."""

    broken = (1,)

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        if self.model.training and self.state.global_step in self.broken:
            return loss * torch.tensor(float("nan"))
        return loss


def test_a_loss_that_is_no_number_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(BrokenAt, "broken", (3,))
    with pytest.raises(FloatingPointError, match=r"step 4: loss nan, .*kd_loss .*last checkpoint: .*checkpoint-2"):
        run_ccot.main([*RUN, *PCCOT, "--logging_steps", "1", "--output_dir", str(tmp_path)], BrokenAt)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


# --- the best checkpoint ---


def test_the_state_of_removal_travels_with_the_best_checkpoint(tmp_path, monkeypatch):
    """What is saved and evaluated at the end is what had been removed at that step, not at the last one."""
    best = [0.9, 0.2, 0.1, 0.0]
    evaluate = ICoTTrainer.evaluate

    def with_metric(self, *args, **kwargs):
        metrics = evaluate(self, *args, **kwargs)
        return metrics | {"eval_icot_exact_match": best.pop(0)} if best else metrics

    monkeypatch.setattr(ICoTTrainer, "evaluate", with_metric)
    argv = [*RUN, *ICOT, "--remove_per_epoch", "10", "--partial_removal", "--eval_strategy", "steps"]
    argv += ["--eval_steps", "2", "--load_best_model_at_end", "--metric_for_best_model", "icot_exact_match"]
    argv += ["--do_eval", "--logging_steps", "1"]
    run_icot.main([*argv, "--output_dir", str(tmp_path)])
    early, late, final = (
        json.loads((tmp_path / name / "config.json").read_text())["num_internalized_tokens"]
        for name in ("checkpoint-2", "checkpoint-8", "")
    )
    assert early == final != late
    at_best, at_last = (load_file(tmp_path / name / "model.safetensors") for name in ("checkpoint-2", "checkpoint-8"))
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[name], at_best[name]) for name in saved)
    assert not all(torch.equal(saved[name], at_last[name]) for name in saved)
    assert json.loads((tmp_path / "eval_results.json").read_text())["removed_tokens"] == early


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--save_steps", "4"], "--save_steps 4 would not save what most evaluations"),
        (["--metric_for_best_model", "accuracy"], "--metric_for_best_model accuracy: there are loss, ccot_exact_match"),
    ],
)
def test_a_best_checkpoint_that_cannot_be_chosen_is_refused(flags, message, tmp_path):
    argv = [*RUN, *PCCOT, "--eval_strategy", "steps", "--eval_steps", "2", "--load_best_model_at_end", *flags]
    with pytest.raises(InputError, match=message):
        run_ccot.main([*argv, "--output_dir", str(tmp_path)])
    assert not any(tmp_path.iterdir())
