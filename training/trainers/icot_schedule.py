"""Stepwise internalisation: how much of the chain is gone at a training step (arXiv 2405.14838), from the flags.

Which tokens go is in `icot_removal.py`. Steps are the optimiser's, counted from 0.
"""

import logging
import math
from dataclasses import dataclass

from latent_cot.training.arguments import CoTTrainingArguments
from latent_cot.training.errors import InputError
from latent_cot.training.flags import check_least
from latent_cot.training.method_arguments import ICoTArguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemovalSchedule:
    """How many tokens of the chain are taken away at a step.

    By epochs: `start_from` during `pretrain_epochs`, then `per_epoch` more tokens per epoch, evenly. By steps, if
    `every_n_step` is given: none before `from_n_steps`, then `start_from` and one more token every so many steps. All of
    them as soon as `all_beyond` is reached.
    """

    per_epoch: float = 8.0
    all_beyond: float = math.inf
    pretrain_epochs: float = 0.0
    start_from: int = 0
    from_n_steps: int = 0
    every_n_step: int | None = None

    def tokens(self, step: int, steps_per_epoch: int) -> float:
        """Scheduled tokens (a whole number, or infinity for all) at an optimiser step, counted from 0."""
        steps = step - self.waiting_steps(steps_per_epoch)
        if steps < 0:
            return self.start_from if self.every_n_step is None else 0
        interval = self.every_n_step
        if interval is None:
            interval = round(steps_per_epoch / self.per_epoch) if self.per_epoch else math.inf
        # More than one token per step cannot be: it is one in every step then, from the first one of the run on.
        scheduled = self.start_from + (step + 1 if interval == 0 else int(steps // interval))
        return math.inf if scheduled >= self.all_beyond else scheduled

    def waiting_steps(self, steps_per_epoch: int) -> int:
        """Steps before anything is taken away by the schedule; rows draw no offsets there either."""
        if self.every_n_step is not None:
            return self.from_n_steps
        return round(self.pretrain_epochs * steps_per_epoch)


@dataclass(frozen=True)
class FillerSchedule:
    """Which share of the chain is fillers at a step: none before `from_n_steps`; then it rises from `from_rate` evenly, to
    1 at the last of `steps` (as in the filler-token fork), or by one percent every `every_n_step` steps."""

    steps: int
    from_n_steps: int = 0
    from_rate: float = 0.0
    every_n_step: int | None = None

    def rate(self, step: int) -> float:
        passed = step - self.from_n_steps
        if passed < 0:
            return 0.0
        if self.every_n_step is not None:
            return min(1.0, self.from_rate + 0.01 * (passed // self.every_n_step))
        return min(1.0, self.from_rate + (1 - self.from_rate) * (passed + 1) / (self.steps - self.from_n_steps))


def removal_schedule(method: ICoTArguments, args: CoTTrainingArguments) -> RemovalSchedule:
    """The removal schedule of the arguments. Raises InputError for a limit that is no number, a gate without
    evaluation, or a flag that the schedule would not read.
    """
    check_least(method, pretrain_epochs=0, remove_start_from=0, remove_from_n_steps=0, remove_from_n_tokens=0)
    check_least(method, remove_per_epoch=0, remove_every_n_step=1)
    try:
        beyond = float(method.remove_all_when_remove_beyond)
        if math.isnan(beyond):
            raise ValueError
    except ValueError:
        raise InputError(
            f"--remove_all_when_remove_beyond must be a number or inf, got {method.remove_all_when_remove_beyond!r}"
        ) from None
    if method.removal_gate is not None and args.eval_strategy == "no":
        raise InputError("--removal_gate needs --eval_strategy steps (or epoch): it waits for validation accuracy")
    by_steps = method.remove_every_n_step is not None
    of_epochs, of_steps = ("pretrain_epochs", "remove_start_from"), ("remove_from_n_steps", "remove_from_n_tokens")
    for name in of_epochs if by_steps else of_steps:
        if getattr(method, name):
            raise InputError(f"--{name} is for schedules {'without' if by_steps else 'with'} --remove_every_n_step")
    per_epoch = (0.0 if method.switch_tokens else 8.0) if method.remove_per_epoch is None else method.remove_per_epoch
    return RemovalSchedule(
        per_epoch=per_epoch,
        all_beyond=beyond,
        pretrain_epochs=method.pretrain_epochs,
        start_from=method.remove_from_n_tokens if by_steps else method.remove_start_from,
        from_n_steps=method.remove_from_n_steps,
        every_n_step=method.remove_every_n_step,
    )


def filler_schedule(method: ICoTArguments, steps: int) -> FillerSchedule:
    """The filler schedule of the arguments, for a run of `steps`. Raises InputError for a rate or ratio that cannot be."""
    if not 0 <= method.switch_from_n_rate <= 100:
        raise InputError(f"--switch_from_n_rate must be a percentage, 0 to 100, got {method.switch_from_n_rate}")
    if not method.switch_token_ratio > 0:
        raise InputError(f"--switch_token_ratio must be above 0, got {method.switch_token_ratio}")
    check_least(method, switch_every_n_step=1)
    if method.switch_from_n_steps >= steps:
        logger.warning(
            "--switch_from_n_steps %d: no fillers, since they would start after the last of %d steps",
            *(method.switch_from_n_steps, steps),
        )
    return FillerSchedule(
        steps, method.switch_from_n_steps, method.switch_from_n_rate / 100, method.switch_every_n_step
    )


def check_schedule(schedule: RemovalSchedule, smoothing: float, steps: int, steps_per_epoch: int, longest: int) -> None:
    """Raises InputError for a smoothing of at most 0, or a schedule that does not take the longest chain away in the run."""
    if not smoothing > 0:
        raise InputError(f"--removal_smoothing_lambda must be above 0 (inf for none), got {smoothing}")
    last = schedule.tokens(steps - 1, steps_per_epoch)
    if last < longest:
        raise InputError(
            f"the removal schedule can never finish: by the last of {steps} steps {last:g} tokens are removed, and the "
            f"longest chain has {longest}; train longer, remove faster, or pass --partial_removal"
        )
