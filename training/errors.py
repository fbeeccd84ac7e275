"""What ends a run early: input that a user can fix, and a signal; each is shown as one line."""

import signal


class InputError(ValueError):
    """Bad input: one line that says what, where and what to do."""


class Interrupted(KeyboardInterrupt):
    """A run was asked to end; its text says where it can go on.

    Args:
        signum: the signal's number; a script exits with 128 + it.
    """

    def __init__(self, signum: int, text: str = ""):
        super().__init__(f"{signal.Signals(signum).name}: {text or 'stopped'}")
        self.signum = signum
