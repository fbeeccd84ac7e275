"""SIM-CoT on Coconut (github.com/InternLM/SIM-CoT: Coconut/coconut.py, run.py), and Coconut's own layout.

A question and a newline are followed by `<|start-latent|>`; each of ten latents (two for each of five stages) is the state
before it, as it is; then comes `<|end-latent|>`, and the model writes `### N`. The published configuration of the
evaluation, read by the letter, would ask with two latents; the last stage was trained with ten.

    copied      `base_causallm.*`
    filled      the row of padding, if the source has none
    left out    `expainable_llm.*` (their spelling), which explains latents in training
"""

import torch

from latent_cot.training.checkpoints.read import read_config, read_tokenizer
from latent_cot.training.errors import InputError

from .foreign import Source, take
from .plain import Converted, check_rows, newline_after_questions, thinking_config

COPIED = {"base_causallm.": ""}
LEFT_OUT = ("expainable_llm.",)
BASE, LATENTS, MOST_TOKENS = "openai-community/gpt2", 10, 64
TOKENS = ("<|start-latent|>", "<|end-latent|>", "<|latent|>")


def convert_coconut(source: Source, base_model: str | None = None) -> Converted:
    """Read a checkpoint of Coconut, or of SIM-CoT on Coconut, as one of ours. Raises InputError for one that does not
    fit.
    """
    weights, ledger = take(source, "Coconut", COPIED, LEFT_OUT)
    check_head(source, weights)
    base_model = base_model or BASE
    base = read_config(base_model)
    tokenizer = read_tokenizer(base_model)
    config = thinking_config(
        base,
        tokenizer,
        TOKENS,
        base.vocab_size + 3,
        "hashes",
        num_latent_tokens=LATENTS,
        num_iterations=LATENTS,
        question_suffix_ids=newline_after_questions(tokenizer),
    )
    check_rows(source, weights, config)
    return Converted(
        *(weights, ledger, config, tokenizer),
        family="SIM-CoT on Coconut (arXiv 2509.20317)" if source.has(*LEFT_OUT) else "Coconut (arXiv 2412.06769)",
        max_new_tokens=MOST_TOKENS,
        base_model=base_model,
    )


def check_head(source: Source, weights: dict[str, torch.Tensor]) -> None:
    """Raises InputError for a head that should be GPT-2's embeddings and is not: it would win where its code loads it."""
    head, embeddings = weights.get("lm_head.weight"), weights.get("transformer.wte.weight")
    if head is not None and embeddings is not None and not torch.equal(head, embeddings):
        raise InputError(f"{source.name}: lm_head.weight differs from transformer.wte.weight, and GPT-2 has one matrix")
