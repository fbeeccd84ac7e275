"""An error that the user can fix; shown as one line."""


class InputError(ValueError):
    """Bad input: one line that says what, where and what to do."""
