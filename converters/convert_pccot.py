"""Turn a checkpoint as the original PCCoT code publishes it into one that loads by itself.

    python -m training.convert_pccot whynlp/pccot-gpt2 OUT

The result is a merged safetensors checkpoint with every setting in its `config.json`.
"""

import argparse
from pathlib import Path

from latent_cot.training.cli import run

from .export import export


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.convert_pccot", description=__doc__)
    parser.add_argument("name", help="a folder or a name on the Hub")
    parser.add_argument("out", type=Path)
    parser.add_argument("--revision", default="main", help="branch, tag or commit")
    parser.add_argument("--base_model", help="folder or name of the base model, if not the one the checkpoint names")
    args = parser.parse_args(argv)
    export(args.name, args.out, args.revision, args.base_model)


if __name__ == "__main__":
    run(main)
