"""`--on_nan skip`: optimiser steps whose gradients are not finite are dropped, and counted."""

import torch
from transformers import Trainer, TrainerCallback


class SkipNonfiniteSteps(TrainerCallback):
    """Leaves weights, moments and the logged losses as they were before a step whose gradient norm is not finite.

    All of it happens on the device: the fused optimisers take a flag for it, as they do for mixed precision. Other
    optimisers are called or not by the host, which waits for the device once a step.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.skipped = torch.zeros((), device=trainer.args.device)
        self.steps = 0  # since the last log
        self.all_steps = self.all_skipped = 0
        self.loss_before = self.skipped
        self.before: dict[str, torch.Tensor] = {}
        self.counts_before: dict[str, torch.Tensor | float] = {}

    def on_step_begin(self, args, state, control, **kwargs):
        self.steps += 1
        self.loss_before = self.trainer._tr_loss.clone()
        self.before = dict(self.trainer._part_sums)
        self.counts_before = dict(self.trainer._part_counts)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        trainer = self.trainer
        norm = torch.as_tensor(trainer.gradient_norm, device=args.device)
        dropped = ~torch.isfinite(norm)
        self.skipped += dropped
        trainer._tr_loss.copy_(torch.where(dropped, self.loss_before, trainer._tr_loss))
        for values, before in ((trainer._part_sums, self.before), (trainer._part_counts, self.counts_before)):
            for name, value in values.items():
                values[name] = torch.where(dropped, before.get(name, 0.0), value)
        if trainer.accelerator.scaler is not None:
            return  # which does the same by itself
        if fused(trainer.optimizer):
            innermost(trainer.optimizer).found_inf = dropped.float()
        elif dropped.item():
            trainer.model.zero_grad(set_to_none=True)  # an optimiser leaves alone what has no gradient

    def on_optimizer_step(self, args, state, control, **kwargs):
        vars(innermost(self.trainer.optimizer)).pop("found_inf", None)

    def correct(self, logs: dict[str, float], step: int) -> None:
        """Make a logged loss the mean over the steps that count, and add how many were dropped; waits for the device.

        Raises:
            FloatingPointError: if all of them were dropped.
        """
        steps, skipped = self.steps, int(self.skipped)
        self.steps = 0
        self.skipped.zero_()
        self.all_steps, self.all_skipped = self.all_steps + steps, self.all_skipped + skipped
        name = "loss"
        if "train_loss" in logs:
            name, steps, skipped = "train_loss", self.all_steps, self.all_skipped
        if steps == skipped > 0:
            raise FloatingPointError(
                f"step {step}: the gradients of all {steps} steps since the last log were not finite; training stopped "
                "and saved nothing more"
            )
        logs["skipped_steps"] = skipped
        logs[name] *= steps / max(1, steps - skipped)


def innermost(optimizer) -> torch.optim.Optimizer:
    """The optimizer within what accelerate puts around it."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def fused(optimizer) -> bool:
    """Whether an optimizer's step takes `found_inf`."""
    inner = innermost(optimizer)
    return getattr(inner, "_step_supports_amp_scaling", False) and all(
        group.get("fused") for group in inner.param_groups
    )
