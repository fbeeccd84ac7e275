"""Models of a few thousand parameters in folders of their own, and what a fuzzed call may end in."""

import resource
import warnings
from pathlib import Path

import torch
from conftest import GONE, LEARNED, ROPE, SMALL, THOUGHT
from hypothesis import HealthCheck
from transformers import AutoConfig, AutoModelForCausalLM

from latent_cot.training.checkpoints import example
from latent_cot.training.checkpoints.read import load
from latent_cot.training.checkpoints.write import write_model_files
from latent_cot.training.data.small_tokenizers import character_tokenizer
from latent_cot.training.data.tokenization import prepare_tokenizer

KINDS = ("pccot-gpt2", "pccot-llama", "icot-gpt2")
DOCUMENTED = (ValueError, OSError)  # docs/training.md; InputError is a ValueError
QUESTION = "1+2*3="
QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


def make(kind: str):
    """A random model of one layer and its tokenizer."""
    family, _, backbone = kind.partition("-")
    shape = LEARNED | {"n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 48}
    if backbone != "gpt2":
        shape = ROPE | {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        shape |= {"num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 48}
    tokenizer = character_tokenizer(["0123456789+-*=#"])
    fields = {"num_latent_tokens": 2, "num_iterations": 2} if family == "pccot" else GONE | {"num_fillers": 1}
    fields = SMALL | shape | (THOUGHT if family == "pccot" else {}) | fields | {"answer_prompt_ids": [5]}
    config = AutoConfig.for_model(kind, **fields)
    prepare_tokenizer(tokenizer, config.special_tokens)
    for name, token in config.special_tokens.items():
        setattr(config, name, tokenizer.convert_tokens_to_ids(token))
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    config.eos_token_id = config.bos_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval(), tokenizer


def save(kind: str, folder: Path) -> Path:
    write_model_files(*make(kind), folder)
    return folder


def ask(folder: Path, by_example: bool = False) -> str | None:
    """The answer of a folder's model, or None where it is refused with an error of a documented type in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, tokenizer = example.load(str(folder), "main", False) if by_example else load(str(folder))
            (answer,) = example.answer(model, tokenizer, [QUESTION], 3)
        except DOCUMENTED as error:
            assert str(error).strip()
            return None
    return answer


def check_memory() -> None:
    """This process has never held 4 GB."""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 2**20  # KiB
