"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """Bad input: one line that says what, where and what to do."""
