"""Latent chain-of-thought models for transformers. Importing this package registers them with the Auto classes.

A family is `configuration_*.py` and `modeling_*.py`, and what these import. The folder is flat because a checkpoint on
the Hub takes its code along as files of one folder.

The package is `latent_cot`; `models`, the folder's name, is the same package in a clone.
"""

import sys
from importlib import import_module
from pathlib import Path

# `latent-cot --help` needs no model, which would take seconds to import.
only_help = Path(next(iter(sys.argv), "")).stem == "latent-cot" and set(sys.argv[1:]) <= {"-h", "--help", "train"}

if __name__ == "models":
    import_module("latent_cot")
    for name in [name for name in sys.modules if name.partition(".")[0] == "latent_cot"]:
        sys.modules["models" + name.removeprefix("latent_cot")] = sys.modules[name]
elif not only_help:
    from .registry import *  # noqa: F403
    from .registry import __all__  # noqa: F401
