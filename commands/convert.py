"""Turn a checkpoint of other code into one that loads by itself. Whose it is, is seen from its files.

latent-cot convert --model whynlp/pccot-gpt2 outputs/pccot-gpt2
latent-cot convert --model path/of/an/original/icot outputs/icot
"""

import argparse
from pathlib import Path

from latent_cot.converters.detect import LAYOUTS, converter_of, converters
from latent_cot.training.errors import InputError

from .asked_model import add_model


def main(argv: list[str]) -> None:
    known = "\n".join(f"  {layout}" for layout in LAYOUTS)
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nRecognized:\n{known}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model(parser)
    parser.add_argument("out", type=Path, help="a new or empty folder")
    options = {name: keywords for converter in converters() for name, keywords in converter.OPTIONS.items()}
    for name, keywords in options.items():
        parser.add_argument(f"--{name}", **keywords)
    args = parser.parse_args(argv)
    layout, converter = converter_of(args.model, args.revision)
    given = {name: getattr(args, name) for name in options if getattr(args, name) is not None}
    for name in given:
        if name not in converter.OPTIONS:
            raise InputError(f"--{name} is not for {args.model}, which is recognized as: {layout}")
    converter.convert(args.model, args.out, args.revision, **given)
