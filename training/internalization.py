"""The Trainer of iCoT: takes the chain of thought away while it trains (arXiv 2405.14838)."""

import math

from transformers import TrainerCallback

from .curriculum import FillerSchedule, Internalizer, RemovalSchedule
from .evaluation import final_answer
from .trainer import CoTTrainer


class InternalizingTrainer(CoTTrainer):
    """Takes the chain of thought away while it trains (iCoT, arXiv 2405.14838).

    Kinds of answers: "icot" as the model was last trained to give them, "cot" with the whole chain written out.

    Args:
        removal: the removal schedule.
        fillers: the filler schedule, or None.
        internalizer: applies them to a batch.
        gate: None, or the validation accuracy at which the next token goes; the removal schedule is then not used.
        longest_chain: tokens of the longest chain in training.
        mean_chain: mean tokens of a chain in training: how many fillers a prompt gets.
        reset_optimizer: forget the optimiser's moments whenever one more token goes.
        **kwargs: of `CoTTrainer`.
    """

    def __init__(
        self,
        *,
        removal: RemovalSchedule,
        fillers: FillerSchedule | None,
        internalizer: Internalizer,
        gate: float | None,
        longest_chain: int,
        mean_chain: float,
        reset_optimizer: bool,
        **kwargs,
    ):
        super().__init__(kinds=["icot", "cot"] if kwargs["evaluation"].explicit_cot else ["icot"], **kwargs)
        self.removal, self.fillers, self.internalizer, self.gate = removal, fillers, internalizer, gate
        self.longest_chain, self.mean_chain = longest_chain, mean_chain
        if reset_optimizer:
            self.add_callback(OptimizerReset(self))

    @property
    def steps_per_epoch(self) -> int:
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return max(1, math.ceil(len(self.train_dataset) / batch)) if self.train_dataset is not None else 1

    def scheduled(self, step: int) -> float:
        """Tokens to remove at a step: from the schedule, or one for each evaluation that passed the gate."""
        if self.gate is None:
            return self.removal.tokens(step, self.steps_per_epoch)
        passed = [
            entry
            for entry in self.state.log_history
            if entry.get("eval_icot_exact_match", -1) >= self.gate and entry["step"] <= step
        ]
        return self.removal.start_from + len(passed)

    def filler_rate(self, step: int) -> float:
        return 0.0 if self.fillers is None else self.fillers.rate(step)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss on what this step leaves of the chain; whole tensors, chosen on the host without waiting."""
        step = self.state.global_step
        inputs = self.internalizer(inputs, step, self.scheduled(step), self.filler_rate(step), smooth=model.training)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs or "eval_loss" in logs:
            step = self.state.global_step
            logs["removed_tokens"] = min(self.scheduled(step), self.longest_chain)
            if self.fillers is not None:
                logs["filler_rate"] = self.filler_rate(step)
        super().log(logs, *args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        if self.train_dataset is not None:
            self.record_progress()
        return super().evaluation_loop(*args, **kwargs)

    def save_model(self, *args, **kwargs):
        self.record_progress()
        return super().save_model(*args, **kwargs)

    def record_progress(self) -> None:
        """Put how far the chain is internalised into the configuration, where generation reads it."""
        config, step = self.accelerator.unwrap_model(self.model).config, self.state.global_step
        scheduled, rate = self.scheduled(step), self.filler_rate(step)
        config.num_internalized_tokens = -1 if scheduled >= self.longest_chain else int(scheduled)
        config.filler_mode = "none"
        if rate > 0:
            config.filler_mode = "written" if self.internalizer.label_fillers else "prefilled"
            config.num_fillers = math.ceil(self.mean_chain * rate / self.internalizer.switch_ratio - 1e-9)

    def generation_options(self, kind: str, model, question_length: int) -> dict:
        config = model.config
        opening = model.opening_ids(explicit_steps=kind == "cot" or None)
        # Whatever of the chain is left has to be written first.
        most = self.evaluation.max_new_tokens if len(opening) > 1 else self.evaluation.max_cot_tokens
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None:
            most = max(1, min(most, limit - question_length - len(opening)))
        return {"max_new_tokens": most, "explicit_steps": kind == "cot" or None}

    def answer_of(self, kind: str, text: str, prompt: str) -> str | None:
        model = self.accelerator.unwrap_model(self.model)
        return text if kind == "icot" and model.answers_at_once else final_answer(text, prompt)


class OptimizerReset(TrainerCallback):
    """Forgets the optimiser's moments when one more token is removed, until no chain is left (as published)."""

    def __init__(self, trainer: InternalizingTrainer):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        before, now = (self.trainer.scheduled(step) for step in (state.global_step - 1, state.global_step))
        if before < now and before < self.trainer.longest_chain:
            self.trainer.optimizer.state.clear()
