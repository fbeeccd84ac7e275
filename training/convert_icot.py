"""Turn a checkpoint of the original iCoT code into an `icot-*` one.

    python -m training.convert_icot FOLDER OUT

FOLDER holds `config.json` (`base_model`, `tokenizer_name`) and `state_dict.bin`. The original writes a question as
` question <eos>`, the chain and the answer each as ` text <eos>`, and an answer as `#### 42`; the converted tokenizer
and configuration do the same, so that the model answers what it answered.
"""

import argparse
import json
import logging
from pathlib import Path

import torch
from tokenizers import normalizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

import models  # noqa: F401  registers the model types

from .checkpoint import save_checkpoint
from .cli import run
from .errors import InputError
from .loading import family_config
from .tokenization import prepare_tokenizer

logger = logging.getLogger(__name__)

PREFIXES = ("base_model.", "model.module.", "model.")
SPACE = " "


def convert(folder: Path, out: Path, num_internalized_tokens: int = -1) -> None:
    """Write the converted checkpoint.

    Args:
        folder: of the original checkpoint.
        out: a new or empty folder.
        num_internalized_tokens: how many tokens of the chain the model does without; -1 for all.

    Raises:
        InputError: for a missing file, a folder that is in use, or weights that do not fit.
    """
    for name in ("config.json", "state_dict.bin"):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder / name}: no such file; an original checkpoint has config.json and state_dict.bin"
            )
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; choose another folder")
    original = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    base = original.get("base_model") or original.get("model")
    if base is None:
        raise InputError(f"{folder / 'config.json'}: no 'base_model' in it")
    tokenizer = AutoTokenizer.from_pretrained(original.get("tokenizer_name", base))
    # weights_only: a pickle from elsewhere must not run code
    weights = torch.load(folder / "state_dict.bin", map_location="cpu", weights_only=True)
    weights = {strip_prefix(name): value for name, value in weights.items()}

    config = family_config(AutoConfig.from_pretrained(base), "icot")
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    embeddings = f"{model_class.base_model_prefix}.wte.weight"
    if embeddings in weights:  # GPT-2, whose tables may have been extended
        config.vocab_size = weights[embeddings].shape[0]
        config.n_positions = weights[embeddings.replace("wte", "wpe")].shape[0]
    config.start_token_id = config.ready_token_id = config.eos_token_id = tokenizer.eos_token_id
    config.answer_prompt_ids = tokenizer(" ####", add_special_tokens=False)["input_ids"]
    config.num_internalized_tokens = num_internalized_tokens
    model = AutoModelForCausalLM.from_config(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if name != "lm_head.weight" or not config.tie_word_embeddings]
    unexpected = [name for name in unexpected if not name.endswith((".attn.bias", ".attn.masked_bias"))]
    if missing or unexpected:
        raise InputError(f"{folder / 'state_dict.bin'}: missing {missing[:3]}, unknown {unexpected[:3]}")

    write_like_the_original(tokenizer)
    prepare_tokenizer(tokenizer)
    if len(tokenizer) > config.vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    save_checkpoint(model, tokenizer, out)
    logger.info("wrote %s", out)


def strip_prefix(name: str) -> str:
    """A weight's name in the backbone."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def write_like_the_original(tokenizer: PreTrainedTokenizerBase) -> None:
    """A question gets a space before and after it."""
    backend = tokenizer.backend_tokenizer
    space = tokenizer(SPACE, add_special_tokens=False)["input_ids"]
    if len(space) != 1:
        raise InputError("the tokenizer has no token for a single space, as the original's format needs")
    backend.normalizer = normalizers.Prepend(SPACE)
    name = tokenizer.convert_ids_to_tokens(space[0])
    backend.post_processor = processors.TemplateProcessing(single=f"$A {name}", special_tokens=[(name, space[0])])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.convert_icot", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--num_internalized_tokens", type=int, default=-1)
    args = parser.parse_args(argv)
    convert(args.folder, args.out, args.num_internalized_tokens)


if __name__ == "__main__":
    run(main)
