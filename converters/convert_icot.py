"""A checkpoint of the original iCoT code, or of its fork with filler tokens, as an `icot-*` one (`latent-cot convert`).

Its folder holds `config.json` (`base_model`, `tokenizer_name`) and `state_dict.bin`, as the original saves them, or a model and
a tokenizer with `<|start|>`, `<|pause|>` and `<|ready|>`, as the fork does. The converted tokenizer and configuration write
a question and an answer as the other code did (`text_format.py`), so that the model answers what it answered.
"""

import json
import logging
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import latent_cot  # noqa: F401  registers the model types
from latent_cot.training.checkpoints.checks import find_file
from latent_cot.training.checkpoints.loading import family_config, set_up, set_up_text_format
from latent_cot.training.checkpoints.read import load_weights, read_object, read_tokenizer
from latent_cot.training.checkpoints.write import write_model_files
from latent_cot.training.data.text_format import is_of_the_fork
from latent_cot.training.data.tokenization import set_special_ids
from latent_cot.training.errors import InputError
from latent_cot.training.families import ICOT, family_in

from .foreign import read_tensors

logger = logging.getLogger(__name__)

WEIGHTS = "state_dict.bin"
PREFIXES = ("base_model.", "model.module.", "model.")


def recognizes(name: str) -> bool:
    """A folder with the original's two files, or with a model of transformers and a tokenizer that has the fork's tokens."""
    path = find_file(name, "config.json") if Path(name).is_dir() else None
    if path is None:
        return False
    fields = read_object(path)
    if "base_model" in fields or (path.parent / WEIGHTS).is_file():
        return True
    ours = family_in(fields.get("model_type"))
    return ours is None and (path.parent / "tokenizer_config.json").is_file() and is_of_the_fork(read_tokenizer(name))


def convert(name: str | Path, out: Path, num_internalized_tokens: int | None = None) -> None:
    """Write the converted checkpoint. Raises InputError for a missing file, a folder that is in use, or weights that do
    not fit.

    Args:
        num_internalized_tokens: how many tokens of the chain the model does without, -1 for all. By default all for the
            original's, whose models are asked for the answer; and none for the fork's, whose models write what is left.
    """
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder / 'config.json'}: no such file; a checkpoint has one")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; choose another folder")
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    base = fields.get("base_model") or fields.get("model")
    model, tokenizer = (
        load_fork(folder) if base is None else load_original(folder, base, fields.get("tokenizer_name", base))
    )
    default = 0 if model.config.text_format == "fork" else -1
    model.config.num_internalized_tokens = default if num_internalized_tokens is None else num_internalized_tokens
    set_up(model.config, tokenizer, model.config.default_answer_prompt)
    if len(tokenizer) > model.config.vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    set_special_ids(model, tokenizer)
    write_model_files(model, tokenizer, out)
    logger.info("wrote %s", out)


def load_fork(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a checkpoint of the fork, which is one of transformers'."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not is_of_the_fork(tokenizer):
        raise InputError(f"{folder}: no 'base_model' in config.json, and no tokens <|start|>, <|pause|>, <|ready|>")
    config = family_config(AutoConfig.from_pretrained(folder), ICOT.name)
    set_up_text_format(config, tokenizer, "fork")
    config.filler_mode = "written"
    return load_weights(str(folder), config), tokenizer


def load_original(folder: Path, base: str, tokenizer_name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a checkpoint of the original."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"{path}: no such file; an original checkpoint has config.json and state_dict.bin")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    weights = {strip_prefix(name): value for name, value in read_tensors(path).items()}

    config = family_config(AutoConfig.from_pretrained(base), ICOT.name)
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    embeddings = f"{model_class.base_model_prefix}.wte.weight"
    if embeddings in weights:  # GPT-2, whose tables may have been extended
        config.vocab_size = weights[embeddings].shape[0]
        config.n_positions = weights[embeddings.replace("wte", "wpe")].shape[0]
    set_up_text_format(config, tokenizer, "original")
    model = AutoModelForCausalLM.from_config(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if name != "lm_head.weight" or not config.tie_word_embeddings]
    unexpected = [name for name in unexpected if not name.endswith((".attn.bias", ".attn.masked_bias"))]
    if missing or unexpected:
        raise InputError(f"{path}: missing {missing[:3]}, unknown {unexpected[:3]}")
    return model, tokenizer


def strip_prefix(name: str) -> str:
    """A weight's name in the backbone."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name
