"""Turn a checkpoint as the original PCCoT code publishes it into one that loads by itself.

    python -m training.convert_pccot whynlp/pccot-gpt2 OUT

The result is a merged safetensors checkpoint with every setting in its `config.json`.
"""

import argparse
import logging
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import models  # noqa: F401  registers the model types

from .cli import run
from .errors import InputError
from .loading import check_reachable, set_special_ids
from .pipeline import save_checkpoint
from .published import SETTINGS, find_file, load_weights, read_config
from .tokenization import prepare_tokenizer, starts_with_bos

logger = logging.getLogger(__name__)


def load(
    name: str, revision: str = "main", base_model: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of any checkpoint, ready for `generate()`; adapters are merged.

    Args:
        name: a folder or a name on the Hub.
        revision: branch, tag or commit.
        base_model: of an adapter, instead of the one that the checkpoint names.
        trust_remote_code: run code that the checkpoint brings along.

    Raises:
        InputError: if something is missing or does not fit.
    """
    check_reachable(name, "model")
    config = read_config(name, revision, trust_remote_code)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    model = load_weights(name, config, revision, trust_remote_code, base_model)
    if find_file(name, SETTINGS, revision) is not None:
        prepare_tokenizer(tokenizer, family="pccot")
        set_special_ids(model, tokenizer)
        model.config.questions_start_with_bos = starts_with_bos(tokenizer)
    return model.eval(), tokenizer


def convert(name: str, out: Path, revision: str = "main", base_model: str | None = None) -> None:
    """Write the converted checkpoint into a new or empty folder; see `load`."""
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; choose another folder")
    model, tokenizer = load(name, revision, base_model)
    save_checkpoint(model, tokenizer, out)
    logger.info("wrote %s", out)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.convert_pccot", description=__doc__)
    parser.add_argument("name", help="a folder or a name on the Hub")
    parser.add_argument("out", type=Path)
    parser.add_argument("--revision", default="main", help="branch, tag or commit")
    parser.add_argument("--base_model", help="folder or name of the base model, if not the one the checkpoint names")
    args = parser.parse_args(argv)
    convert(args.name, args.out, args.revision, args.base_model)


if __name__ == "__main__":
    run(main)
