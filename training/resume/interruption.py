"""SIGTERM and Ctrl-C: a training finishes its step, saves a checkpoint, and ends."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed
from transformers import TrainerCallback, TrainingArguments

from latent_cot.training.errors import InputError, Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_SIGNAL = 1.0  # seconds: within them a terminal's Ctrl-C comes again from a launcher, which passes it on


def refuse_other_handler(args: TrainingArguments) -> None:
    """Raises InputError for transformers' own checkpoint on SIGTERM: of two handlers of a signal one is never called."""
    if getattr(args, "enable_jit_checkpoint", False):
        raise InputError("--enable_jit_checkpoint is not supported: leave it out, SIGTERM saves a checkpoint anyway")


class StopOnSignal(TrainerCallback):
    """Ends a training after the step in which a signal came, and after a checkpoint was saved.

    A second Ctrl-C ends it at once. All processes end after the same step.
    """

    def __init__(self):
        self.received = self.agreed = 0  # number of a signal: of this process, and of any process at the end of a step
        self.received_at = 0.0
        self.ending = self.saved = False  # the next checkpoint is the last one; it is there
        self.group = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While this lasts, signals are answered here."""
        self.received = self.agreed = 0
        self.ending = self.saved = False
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            self.group = distributed.new_group(backend="gloo")  # of numbers on the host: no device is waited for
        if threading.current_thread() is not threading.main_thread():
            yield  # Python gives signals to the main thread alone
            return
        before = {number: signal.signal(number, self.receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def receive(self, signum: int, frame) -> None:
        """The signal handler: takes notice, and leaves the step alone."""
        if self.received and signum == signal.SIGINT and time.monotonic() - self.received_at > SAME_SIGNAL:
            raise Interrupted(signum, "stopped at once; the last checkpoint is the one to resume from")
        if not self.received:
            self.received, self.received_at = signum, time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        self.agreed = self.received
        if self.group is not None:
            number = torch.tensor(self.received)
            distributed.all_reduce(number, op=distributed.ReduceOp.MAX, group=self.group)
            self.agreed = int(number)
        # After the last step of an epoch an evaluation may be due, which a resumed run would not make up for.
        last = state.epoch == int(state.epoch) or control.should_training_stop
        if self.agreed and not last:
            self.ending = control.should_save = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.saved:  # in the middle of an epoch, so nothing of its end is due
            control.should_log = control.should_evaluate = control.should_save = False
        elif self.agreed:
            self.ending = control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        if self.ending:
            self.saved = control.should_training_stop = True  # not before the save: a checkpoint keeps this flag
