"""Turn a checkpoint of other code into one that loads by itself. Whose it is, is seen from its files.

latent-cot convert --model whynlp/pccot-gpt2 outputs/pccot-gpt2
latent-cot convert --model path/of/an/original/icot outputs/icot
latent-cot convert --model zen-E/CODI-gpt2 outputs/codi-gpt2

Read are: PCCoT and iCoT (and its fork with filler tokens) as the original codes save them; CODI; SIM-CoT on Coconut and on
CODI; LatentTTS and SVP on Coconut and on CODI; LOTUS.
"""

import argparse
from pathlib import Path

from latent_cot.converters.detect import FAMILIES, convert

from .asked_model import add_model


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("out", type=Path, help="a new or empty folder")
    parser.add_argument(
        "--base_model", help="folder or name of the base model, if not the one that the checkpoint names"
    )
    parser.add_argument("--family", choices=FAMILIES, help="where the files alone do not tell")
    parser.add_argument(
        "--num_internalized_tokens", type=int, help="of iCoT: how much of the chain it does without, -1 for all"
    )
    args = parser.parse_args(argv)
    convert(args.model, args.out, args.revision, args.base_model, args.family, args.num_internalized_tokens)
