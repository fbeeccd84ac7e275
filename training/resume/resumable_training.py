"""A Trainer whose runs can be interrupted at any moment and go on exactly: whole checkpoints, and what they must hold."""

import logging
import math
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import rotate_checkpoints

from latent_cot.training.errors import Interrupted
from latent_cot.training.step_decoder import STEP_DECODER, StepDecoder, load_step_decoder, save_step_decoder

from .checkpoint_fit import check_fit
from .early_stopping import EarlyStopping
from .find_checkpoint import checkpoint_to_resume, fault_of, newest_first
from .interruption import StopOnSignal
from .whole_folders import UNFINISHED, one_line_disk_errors, put_in_place, remove_unfinished

logger = logging.getLogger(__name__)

LOSSES = ("loss", "train_loss", "eval_loss")


class ResumableTrainingMixin:
    """For any Trainer, before it in the order of classes: checkpoints that are whole or not there, exact resuming, signals, and losses that are no numbers.

    It needs nothing else; a trainer that draws by epoch overrides `start_epoch`, one with figures of its own `figures_to_log`.

    Attributes:
        weights_step: the step that the present weights come from, where it is not the last one: `--load_best_model_at_end`.
        step_decoder: what reads the latents in training; its weights are in the checkpoints, in a file of their own.
    """

    step_decoder: StepDecoder | None = None

    def __init__(self, *args, **kwargs):
        self.weights_step: int | None = None
        self._checkpoint_parent: str | None = None  # where a checkpoint is being written
        self._trained = False  # any step in the present call of `train`
        super().__init__(*args, **kwargs)
        self.stop_on_signal = StopOnSignal()
        self.add_callback(self.stop_on_signal)
        if (patience := getattr(self.args, "early_stopping_patience", None)) is not None:
            warm_up = getattr(getattr(self, "method", None), "teacher_warmup_steps", 0)
            self.add_callback(EarlyStopping(patience, warm_up))

    # --- resuming ---

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args, **kwargs):
        """As of transformers' Trainer, but it resumes only from a whole checkpoint, and trains no step beyond the last.

        Raises:
            InputError: where there is no such checkpoint.
            FloatingPointError: at the first logged loss that is no number.
            Interrupted: after SIGTERM or Ctrl-C, when a checkpoint is saved.
        """
        folder, self.weights_step, self._trained = Path(self.args.output_dir), None, False
        if self.args.should_save:
            remove_unfinished(folder)
        if resume_from_checkpoint:
            resume_from_checkpoint = self.agree_on_checkpoint(resume_from_checkpoint)
            if self.step_decoder is not None:
                load_step_decoder(self.step_decoder, Path(resume_from_checkpoint))
        with self.stop_on_signal.listening():
            result = super().train(resume_from_checkpoint or None, *args, **kwargs)
        if self.stop_on_signal.saved:
            place = folder / f"checkpoint-{self.state.global_step}"
            hint = "--resume_from_checkpoint true goes on from there"
            raise Interrupted(self.stop_on_signal.agreed, f"saved {place} after step {self.state.global_step}; {hint}")
        if not self._trained:
            logger.warning(
                "nothing is left to train: %s is at its last step, %d", resume_from_checkpoint, self.state.global_step
            )
        return result

    def agree_on_checkpoint(self, asked: str | Path | bool) -> str:
        """One choice for all processes, made by the first."""
        found: list = [None]
        if self.is_world_process_zero():
            try:
                decodes = self.step_decoder is not None
                checkpoint = checkpoint_to_resume(str(asked), Path(self.args.output_dir), decodes)
                check_fit(checkpoint, self.accelerator.unwrap_model(self.model), self.processing_class)
                found = [str(checkpoint)]
            except ValueError as error:
                found = [error]
        broadcast_object_list(found)
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        rates = getattr(self.lr_scheduler, "base_lrs", None)
        if checkpoint and rates and not math.isclose(rates[0], self.args.learning_rate):
            logger.warning(
                "--learning_rate %g is not used: a resumed run goes on with its own, %g",
                self.args.learning_rate,
                rates[0],
            )

    def _run_epoch(self, *args, **kwargs):
        over = self.control.should_training_stop or self.state.global_step >= self.state.max_steps
        if over:  # transformers looks only after a further step
            self.control.should_training_stop = True
            return
        self._trained = True
        self.start_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def start_epoch(self, epoch: int) -> None:
        """Called before each epoch of a training, for what a trainer draws by random: it is to go by the epoch."""

    def _get_train_sampler(self, *args, **kwargs):
        sampler = super()._get_train_sampler(*args, **kwargs)
        if isinstance(sampler, LengthGroupedSampler):
            # Its order would come from random numbers that a resumed run has not drawn.
            sampler = OrderByEpoch(sampler, self.args.seed if self.args.data_seed is None else self.args.data_seed)
        return sampler

    def _load_best_model(self):
        super()._load_best_model()
        self.weights_step, best = self.state.best_global_step, self.state.best_model_checkpoint
        if self.step_decoder is None or best is None:
            return
        if (Path(best) / STEP_DECODER).is_file():
            load_step_decoder(self.step_decoder, Path(best))
        else:
            logger.warning("%s holds no decoder of steps (--save_only_model): eval_loss is with the last one's", best)

    # --- saving ---

    def _get_output_dir(self, *args, **kwargs) -> str:
        return self._checkpoint_parent or super()._get_output_dir(*args, **kwargs)

    def _save_checkpoint(self, model, trial):
        """Write a checkpoint under another name, and rename it when it is whole."""
        run, name = Path(self._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        unfinished, best = run / UNFINISHED, self.state.best_global_step
        if self.args.should_save:
            remove_unfinished(run)
        self.accelerator.wait_for_everyone()
        if best and (run / f"checkpoint-{best}").is_dir():
            self.state.best_model_checkpoint = str(run / f"checkpoint-{best}")
        self._checkpoint_parent = str(unfinished)
        try:
            with one_line_disk_errors(unfinished):
                super()._save_checkpoint(model, trial)
                if self.step_decoder is not None and self.args.should_save and not self.args.save_only_model:
                    save_step_decoder(self.step_decoder, unfinished / name)
                if best == self.state.global_step:  # it was written with the name that it has for now
                    self.state.best_model_checkpoint = str(run / name)
                    if self.args.should_save:
                        self.state.save_to_json(str(unfinished / name / "trainer_state.json"))
        except BaseException:
            remove_unfinished(run)
            raise
        finally:
            self._checkpoint_parent = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            decodes = self.step_decoder is not None
            fault = None if self.args.save_only_model else fault_of(unfinished / name, decodes, thorough=False)
            if fault is not None:
                raise OSError(f"{run / name} could not be saved: {fault}")
            put_in_place(unfinished / name, run / name)
            remove_unfinished(run)
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()

    # --- losses that are no numbers ---

    def figures_to_log(self, logs: dict[str, float]) -> dict[str, float]:
        """What a trainer adds to a log, such as the means of its losses since the last one."""
        return {}

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "train_loss" in logs and not self._trained:
            logs.clear()  # a finished run was resumed: there is no loss, of 0 or other
            return
        logs |= self.figures_to_log(logs)
        self.check_finite(logs)
        super().log(logs, *args, **kwargs)

    def check_finite(self, logs: dict[str, float]) -> None:
        """Stop at the first logged loss that is no number: what came after would look trained and be nothing. Raises
        FloatingPointError, naming the step, the loss and its parts, and the last checkpoint.
        """
        broken = [name for name in LOSSES if not math.isfinite(logs.get(name, 0.0))]
        if broken:
            parts = ", ".join(
                f"{name} {value}" for name, value in logs.items() if name in broken or name.endswith("_loss")
            )
            last = next(iter(newest_first(Path(self.args.output_dir))), "none")
            raise FloatingPointError(
                f"step {self.state.global_step}: {parts}; training stopped and saved nothing more; last checkpoint: "
                f"{last}; a smaller --learning_rate or --max_grad_norm 1 may help"
            )


class OrderByEpoch(torch.utils.data.Sampler):
    """A sampler whose order is a function of the seed and the epoch alone."""

    def __init__(self, sampler: LengthGroupedSampler, seed: int):
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self):
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.sampler)
