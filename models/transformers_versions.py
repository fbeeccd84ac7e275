"""What differs between the releases of transformers that this code was tested with, and a word about all others."""

import inspect

from transformers import GPT2Model, __version__
from transformers.utils import logging

OLDEST, NEWEST = (5, 17), (5, 24)

# What a backbone's `forward` and its output call the key-value cache: `past_key_values` before 5.24.
CACHE = "cache" if "cache" in inspect.signature(GPT2Model.forward).parameters else "past_key_values"


def check_version(version: str) -> None:
    """Says once, where transformers is newer than what was tested, which releases this code knows.

    Raises:
        ImportError: for an older one.
    """
    release = tuple(int(part) for part in version.split(".")[:2])
    known = f"{'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST))}"
    if release < OLDEST:
        raise ImportError(
            f"these models were tested with transformers {known}, and this is {version}: install one of them"
        )
    if release > NEWEST:
        logging.get_logger(__name__).warning_once(
            f"these models were tested with transformers {known}, and this is {version}: compare their answers with those "
            "of a tested release, or install one"
        )


check_version(__version__)
