"""Write a model for others: the folder that a Hub page would hold, or a GGUF file for llama.cpp.

latent-cot export --model checkpoints/pccot-gpt2-chain outputs/export/pccot-gpt2-chain
latent-cot export --model outputs/icot outputs/icot.gguf

A checkpoint inside a clone comes without code; the folder has it. A GGUF file is written where OUT ends so; its prompt is
printed.
"""

import argparse
import json
import logging
from pathlib import Path

from latent_cot.converters.export import export
from latent_cot.engines.gguf.export import export_gguf

from .asked_model import add_model

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("out", type=Path, help="a new or empty folder, or a new file that ends with .gguf")
    args = parser.parse_args(argv)
    if args.out.suffix != ".gguf":
        export(args.model, args.out, args.revision)
        return
    prompt = export_gguf(args.model, args.out, args.revision)
    logger.info("wrote %s", args.out)
    print("prompt:", json.dumps(prompt, ensure_ascii=False))
