"""Tiny models on every backbone, and helpers that several test files share.

What takes seconds to import is imported where it is needed: with `-n` one more process reads this file, to hand out tests.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist already runs one process a core
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(
    prefix="datasets-"
)  # of this process, so that no test finds rows of another run

import pytest

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = Path(__file__).resolve().parent / "fixtures"
SHIPPED = ROOT / "checkpoints" / "pccot-gpt2-chain"
SMALL = {"vocab_size": 40, "initializer_range": 0.12, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
THOUGHT = {"bot_token_id": 36, "eot_token_id": 37, "latent_token_id": 38, "answer_prompt_ids": [5, 6]}
THOUGHT |= {"num_latent_tokens": 6, "num_iterations": 3}
ROPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ROPE |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}
LEARNED = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128}
LEARNED |= {"initializer_range": 0.24}  # GPT-2 halves it in the residual projections of two layers
LEARNED |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)


def config_of(name: str, fields: dict):
    return getattr(import_module("latent_cot"), name)(**fields)


CONFIGS = {
    "gpt2": lambda **kw: config_of("PCCoTGPT2Config", SMALL | LEARNED | THOUGHT | kw),
    "llama": lambda **kw: config_of("PCCoTLlamaConfig", SMALL | ROPE | THOUGHT | kw),
    "mistral": lambda **kw: config_of("PCCoTMistralConfig", SMALL | ROPE | THOUGHT | {"sliding_window": 9} | kw),
    "qwen3": lambda **kw: config_of("PCCoTQwen3Config", SMALL | ROPE | THOUGHT | kw),
}
# A chain that is gone, with three fillers in its place.
GONE = {"start_token_id": 36, "pause_token_id": 37, "ready_token_id": 38, "answer_prompt_ids": [5]}
GONE |= {"filler_mode": "prefilled", "num_fillers": 3, "num_internalized_tokens": -1}


def pytest_addoption(parser):
    parser.addoption(
        "--parity-dir",
        default=str(FIXTURES / "parity"),
        help="folder of golden cases from the original implementation (see tests/product/test_parity.py)",
    )


def pytest_collection_finish():
    """Whatever is imported stays, so no search for garbage need look at it: the Trainer asks for one in every run."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config):
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


# What these files set up once (a server, trained checkpoints) is shared by many of their tests: one process runs all of
# a file. (`--dist loadgroup` is meant for that; pytest-xdist 3.8 under pytest 9 groups nothing.)
TOGETHER = (
    "test_example.py",
    "test_hub.py",
    "test_hub_runs.py",
    "test_published.py",
    "test_serving.py",
    "test_sharding.py",
    "test_tokenizer_worlds.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Distributes tests one by one, but those of some files together."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file.endswith(TOGETHER) else nodeid

    return Scheduler(config, log) if config.getvalue("dist") == "load" else None


def make_model(backbone: str, seed: int = 0, **changes):
    """A small random causal language model that thinks."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[backbone](**changes)).eval()


def plain_adapter(folder):
    """An adapter as transformers itself loads it; None of 5.17, which is refused, since it loses trained rows."""
    from transformers import AutoModelForCausalLM, __version__

    if __version__.startswith("5.17."):
        with pytest.raises(ValueError, match="loses trained rows"):
            AutoModelForCausalLM.from_pretrained(folder)
        return None
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def make_any(kind: str, **changes):
    """A small random model of any registered type."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family, _, backbone = kind.partition("-")
    if family == "pccot":
        return make_model(backbone, **changes)
    fields = {name: value for name, value in CONFIGS[backbone]().to_dict().items() if name != "model_type"}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(fields | GONE | changes))).eval()


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """The shipped checkpoint as its Hub page would hold it: with the code that reads it. No test may change it."""
    from latent_cot.converters.export import export

    folder = tmp_path_factory.mktemp("exported") / SHIPPED.name
    export(str(SHIPPED), folder)
    return folder


@pytest.fixture(scope="session")
def shipped():
    """Model and tokenizer of the shipped checkpoint. No test may change them."""
    import_module("latent_cot")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(SHIPPED).eval(), AutoTokenizer.from_pretrained(SHIPPED)


@pytest.fixture(params=CONFIGS)
def backbone(request) -> str:
    return request.param


@pytest.fixture
def model(backbone):
    return make_model(backbone)


@pytest.fixture
def gpt2():
    return make_model("gpt2")


def ask_example(monkeypatch, capsys, *argv: str) -> list[str]:
    """The lines that `python example.py ...` prints, in this process."""
    import example

    monkeypatch.setattr(sys, "argv", ["example.py", *argv])
    capsys.readouterr()
    example.main()
    return capsys.readouterr().out.splitlines()


def question_batch(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded random questions: ids and attention mask, `(batch, longest)`."""
    import torch

    source = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids, mask = torch.zeros(len(lengths), longest, dtype=torch.long), torch.zeros(len(lengths), longest).long()
    for row, length in enumerate(lengths):
        ids[row, longest - length :] = torch.randint(7, 36, (length,), generator=source)
        mask[row, longest - length :] = 1
    return ids, mask


def with_span(model, ids, mask, tail: int = 4, seed: int = 1):
    """Append the thought span, the answer prompt and `tail` random tokens to questions."""
    import torch

    source = torch.Generator().manual_seed(seed)
    span = torch.tensor(model.thought_ids()).expand(ids.shape[0], -1)
    answer = torch.randint(7, 36, (ids.shape[0], tail), generator=source)
    ids = torch.cat([ids, span, answer], dim=1)
    return ids, torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)


@pytest.fixture(scope="session")
def characters():
    """A character tokenizer with the tokens of the thought span."""
    from latent_cot import PCCoTConfigMixin
    from latent_cot.training.data.small_tokenizers import character_tokenizer
    from latent_cot.training.data.tokenization import prepare_tokenizer

    tokenizer = character_tokenizer(["0123456789+-*=# abcdefghijklmnopqrstuvwxyz<>.|?"])
    prepare_tokenizer(tokenizer, PCCoTConfigMixin.special_tokens)
    return tokenizer


def chain_model(tokenizer, **changes):
    """A small random model that fits a tokenizer."""
    from latent_cot.training.data.tokenization import tokenize_answer_prompt

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
