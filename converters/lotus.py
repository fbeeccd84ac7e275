"""LOTUS (github.com/yingfan-bot/lotus: scripts/lotus.py, eval.py).

Published as plain causal language models, which do not think when they are loaded as such; a training checkpoint is the
state of one module. A question and a newline are followed by `<|start-latent|>`, six blocks of latents and
`<|end-latent|>`; in each of six passes a latent's input is the embedding of `<|latent|>` plus the state of its own place in
the pass before. The model writes `### N`.

    copied      all of a plain model, or `base_causallm.*`
    filled      the row of padding, if the source has none
    left out    `ia_decoder.*` and `teacher_model.*`, which training alone uses
"""

from latent_cot.training.checkpoints.read import read_config, read_tokenizer
from latent_cot.training.errors import InputError

from .coconut import TOKENS
from .foreign import Source, take
from .plain import Converted, check_rows, newline_after_questions, thinking_config

PLAIN = {"model.": "model.", "transformer.": "transformer.", "lm_head.": "lm_head."}
TRAINED = {"base_causallm.": ""}
LEFT_OUT = ("ia_decoder.", "teacher_model.")
PASSES, MOST_TOKENS = 6, 64
BLOCKS = {"gpt2": 13, "llama": 25}  # latents for each of six steps


def convert_lotus(source: Source, base_model: str | None = None) -> Converted:
    """Read a checkpoint of LOTUS as one of ours. Raises InputError for one that does not fit.

    Args:
        base_model: whose configuration and tokenizer a training checkpoint takes.
    """
    trained = source.has(*TRAINED)
    if trained and base_model is None:
        raise InputError(f"{source.name}: a training checkpoint; name its base model: --base_model")
    if not trained and base_model is not None:
        raise InputError(f"{source.name}: holds its own configuration and tokenizer: leave --base_model out")
    origin = base_model or str(source.folder)
    base = read_config(origin)
    if base.model_type not in BLOCKS:
        raise InputError(f"{source.name}: a {base.model_type}; LOTUS is published on {', '.join(BLOCKS)}")
    weights, ledger = take(source, "LOTUS", TRAINED if trained else PLAIN, LEFT_OUT)
    tokenizer = read_tokenizer(origin)
    name = "transformer.wte.weight" if base.model_type == "gpt2" else "model.embed_tokens.weight"
    rows = len(weights.get(name, weights.get("lm_head.weight", ())))
    config = thinking_config(
        base,
        tokenizer,
        TOKENS,
        rows,
        "last_number",  # after ###, and without one the last of all
        num_latent_tokens=6 * BLOCKS[base.model_type],
        num_iterations=PASSES,
        latent_update="add",
        latents_per_step=BLOCKS[base.model_type],
        question_suffix_ids=newline_after_questions(tokenizer),
    )
    check_rows(source, weights, config)
    return Converted(
        *(weights, ledger, config, tokenizer),
        family="LOTUS (arXiv 2606.31779)",
        max_new_tokens=MOST_TOKENS,
        base_model=base_model,
    )
