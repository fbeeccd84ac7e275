"""What ends a run early: input that a user can fix, and a signal; each is shown as one line."""

import importlib.util
import signal


class InputError(ValueError):
    """Bad input: one line that says what, where and what to do."""


def check_installed(package: str, asked: str, install: str | None = None) -> None:
    """Raises InputError where what is asked for needs a package that is not there."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{asked} needs: pip install {install or package}")


class Interrupted(KeyboardInterrupt):
    """A run was asked to end; its text says where it can go on.

    Args:
        signum: the signal's number; a script exits with 128 + it.
    """

    def __init__(self, signum: int, text: str = ""):
        super().__init__(f"{signal.Signals(signum).name}: {text or 'stopped'}")
        self.signum = signum
