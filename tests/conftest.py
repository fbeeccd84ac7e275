"""Tiny models on every backbone, and helpers that several test files share."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist already runs one process a core
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import AutoModelForCausalLM

import models
from training.small_tokenizers import character_tokenizer
from training.tokenization import prepare_tokenizer, tokenize_answer_prompt

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = Path(__file__).resolve().parent / "fixtures"
SMALL = {"vocab_size": 40, "initializer_range": 0.12, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
THOUGHT = {
    "bot_token_id": 36,
    "eot_token_id": 37,
    "latent_token_id": 38,
    "answer_prompt_ids": [5, 6],
    "num_latent_tokens": 6,
    "num_iterations": 3,
}
ROPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
LEARNED = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128}
LEARNED |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
CONFIGS = {
    "gpt2": lambda **kw: models.PCCoTGPT2Config(**(SMALL | LEARNED | THOUGHT | kw)),
    "llama": lambda **kw: models.PCCoTLlamaConfig(**(SMALL | ROPE | THOUGHT | kw)),
    "mistral": lambda **kw: models.PCCoTMistralConfig(**(SMALL | ROPE | THOUGHT | {"sliding_window": 9} | kw)),
    "qwen3": lambda **kw: models.PCCoTQwen3Config(**(SMALL | ROPE | THOUGHT | kw)),
}


def pytest_addoption(parser):
    parser.addoption(
        "--parity-dir",
        default=str(FIXTURES / "parity"),
        help="folder of golden cases from the original implementation (see tests/test_parity.py)",
    )


def make_model(backbone: str, seed: int = 0, **changes):
    """A small random causal language model that thinks."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[backbone](**changes)).eval()


@pytest.fixture(params=CONFIGS)
def backbone(request) -> str:
    return request.param


@pytest.fixture
def model(backbone):
    return make_model(backbone)


@pytest.fixture
def gpt2():
    return make_model("gpt2")


def question_batch(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded random questions: ids and attention mask, `(batch, longest)`."""
    source = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids, mask = torch.zeros(len(lengths), longest, dtype=torch.long), torch.zeros(len(lengths), longest).long()
    for row, length in enumerate(lengths):
        ids[row, longest - length :] = torch.randint(7, 36, (length,), generator=source)
        mask[row, longest - length :] = 1
    return ids, mask


def with_span(model, ids, mask, tail: int = 4, seed: int = 1):
    """Append the thought span, the answer prompt and `tail` random tokens to questions."""
    source = torch.Generator().manual_seed(seed)
    span = torch.tensor(model.thought_ids()).expand(ids.shape[0], -1)
    answer = torch.randint(7, 36, (ids.shape[0], tail), generator=source)
    ids = torch.cat([ids, span, answer], dim=1)
    return ids, torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)


@pytest.fixture(scope="session")
def characters():
    """A character tokenizer with the tokens of the thought span."""
    tokenizer = character_tokenizer(["0123456789+-*=# abcdefghijklmnopqrstuvwxyz<>.|?"])
    prepare_tokenizer(tokenizer, models.PCCoTConfigMixin.special_tokens)
    return tokenizer


def chain_model(tokenizer, **changes):
    """A small random model that fits a tokenizer."""
    ids = {
        "vocab_size": len(tokenizer),
        "bot_token_id": tokenizer.convert_tokens_to_ids("<pcot.bot>"),
        "eot_token_id": tokenizer.convert_tokens_to_ids("<pcot.eot>"),
        "latent_token_id": tokenizer.convert_tokens_to_ids("<pcot.latent>"),
        "answer_prompt_ids": tokenize_answer_prompt("#", tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return make_model("gpt2", **(ids | changes))
