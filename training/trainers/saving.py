"""How a Trainer saves: complete checkpoints, and one push to the Hub when the model is complete (see stages.py)."""

import copy
from pathlib import Path

from transformers import PreTrainedModel

from latent_cot.training.checkpoints.hub import check_access
from latent_cot.training.checkpoints.sharding import gather_model, is_sharded, names_of_broken_weights
from latent_cot.training.checkpoints.write import write_final_model
from latent_cot.training.step_decoder import detach_step_decoder


class ModelSavingMixin:
    """For a Trainer with `replacing_model` (`ResumableTrainingMixin`) and `lora` (`LoraArguments`)."""

    @property
    def unwrapped(self) -> PreTrainedModel:
        """The model without what distributes it."""
        return self.accelerator.unwrap_model(self.model)

    def record_progress(self) -> None:
        """Write what training has changed about how to ask the model into `model.config`, where `generate()` reads it."""

    def plot(self, folder: Path) -> None:
        """Plots of the run, where a method has one."""

    def save_model(self, output_dir: str | Path | None = None, _internal_call: bool = False) -> None:
        """Write a complete checkpoint: weights, configuration, code, tokenizer, `example.py` (`write_final_model`).

        What transformers itself saves on the way (`_internal_call`) is what resuming needs; of sharded weights it saves that
        elsewhere.
        """
        self.check_weights()
        if not _internal_call:
            with self.replacing_model(Path(output_dir or self.args.output_dir)) as new:
                self.write_model(new)
            return
        if not is_sharded(self.unwrapped):
            super().save_model(output_dir, _internal_call=True)

    def write_model(self, folder: Path) -> None:
        """What `save_model` writes, into a folder as it is; `check_weights` first."""
        if is_sharded(self.unwrapped):
            model = gather_model(self.unwrapped, self.model_wrapped, self.accelerator, self.lora)
        elif self.is_world_process_zero():
            # The adapters of a LoRA model are taken out to save it: of a copy, since training may go on.
            model = copy.deepcopy(self.unwrapped) if self.lora.use_peft else self.unwrapped
            if self.lora.use_peft:
                detach_step_decoder(model)  # its layers are none that adapters belong to
        if self.is_world_process_zero():
            write_final_model(model, self.processing_class, folder, self.lora)

    def check_weights(self) -> None:
        """Raises FloatingPointError for a weight that is not finite, so that none is saved."""
        broken = names_of_broken_weights(self.unwrapped, self.accelerator)
        if broken:
            raise FloatingPointError(
                f"step {self.state.global_step}: {broken[0]} (of {len(broken)} such weights) is not finite, so it is not saved"
            )

    # --- the Hub: a checkpoint is pushed once, when it is complete (see stages.py) ---

    def init_hf_repo(self, token=None):
        if self.is_world_process_zero() and not self.args.dry_run:
            self.hub_model_id = check_access(self.args)

    def _push_from_checkpoint(self, checkpoint_folder):
        pass
