"""Latent chain-of-thought models for transformers. Importing this package registers them with the Auto classes."""

from .pccot import *  # noqa: F403
from .pccot import __all__  # noqa: F401
