"""A step of the Trainer, around the model's: batches that come, sums of losses, and what divides them."""

import pytest
import torch
from gpu_cases import DEVICES
from test_training_step import no_waiting, on_meta

pytest.importorskip("datasets", reason="needs datasets")
pytest.importorskip("accelerate", reason="needs accelerate")

from transformers import TrainerCallback

from benchmarks.speed.workload import ROOT
from latent_cot import tasks
from latent_cot.training import CoTTrainingArguments, ModelArguments, PCCoTTrainer


class ErrorsWhileTraining(TrainerCallback):
    """From the third step on, whatever waits for the device is an error."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_end(self, args, state, control, **kwargs):
        torch.cuda.set_sync_debug_mode("default")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps - 1:
            torch.cuda.set_sync_debug_mode("default")


def make_trainer(folder, device: str) -> PCCoTTrainer:
    args = CoTTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=8, use_cpu=device == "cpu", report_to="none",
        bf16=device == "cuda", logging_strategy="no", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    source = ModelArguments(config_name=str(ROOT / "configs" / "pccot_gpt2_tiny.json"), tokenizer_name="characters")
    rows = tasks.generate("chain", "train=40,validation=1,test=1")["train"]
    return PCCoTTrainer(source, args, train_dataset=rows)


@pytest.mark.parametrize("device", DEVICES)
def test_a_trainers_step_never_waits(device, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, device)
    if device == "cuda":
        trainer.add_callback(ErrorsWhileTraining())
        try:
            trainer.train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    batch = on_meta(next(iter(trainer.get_train_dataloader())))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # not to be asked about the device `meta`
    trainer.model.to("meta").train()
    for _ in range(2):
        with no_waiting("meta"):
            (inputs,), sizes = trainer.get_batch_samples(iter([batch]), 1, torch.device("meta"))
            trainer.compute_loss(trainer.model, inputs, num_items_in_batch=sizes).backward()


def test_a_batch_is_copied_without_a_wait(tmp_path, monkeypatch):
    """From pinned memory, while the device is still busy with the last step."""
    for there in (True, False):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda there=there: there)
        args = CoTTrainingArguments(output_dir=str(tmp_path), report_to="none")
        assert (args.dataloader_pin_memory, args.accelerator_config.non_blocking) == (there, there)
        for asked in ({"non_blocking": False}, '{"non_blocking": false}'):
            args = CoTTrainingArguments(output_dir=str(tmp_path), report_to="none", accelerator_config=asked)
            assert not args.accelerator_config.non_blocking
