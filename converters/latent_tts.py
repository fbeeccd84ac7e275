"""LatentTTS and SVP (github.com/ModalityDance/LatentTTS: src/models, src/generation_mixin.py): `COCONUTGPT2`, `CODIGPT2`.

Folders of transformers with class names of their own. A question (and a newline, for Coconut's) is followed by
`<|start-latent|>`; each of six latents is the state before it, through the projector where there is one; then comes
`<|end-latent|>` and what the model writes. The ids come from the tokenizer.

    copied      `transformer.*`, `lm_head.weight`, `projector.1`, `projector.3`, `projector.4`
    filled      the row of padding, if the source has none
    left out    nothing; a head that is tied to the embeddings is theirs
"""

from transformers import GPT2Config

from latent_cot.training.checkpoints.checks import one_clear_error
from latent_cot.training.checkpoints.read import read_tokenizer
from latent_cot.training.errors import InputError

from .coconut import TOKENS
from .foreign import Source, take
from .plain import Converted, check_rows, newline_after_questions, thinking_config

COPIED = {"transformer.": "transformer.", "lm_head.": "lm_head."}
PROJECTOR = {
    "projector.1.": "transformer.prj.0.",
    "projector.3.": "transformer.prj.2.",
    "projector.4.": "transformer.prj.3.",
}
CLASSES = ("COCONUTGPT2", "CODIGPT2")
OWN_FIELDS = ("latent_id", "latent_start_id", "latent_end_id", "target_id", "projector", "projector_dropout")
OWN_FIELDS += ("projector_hidden_size", "model_type", "architectures", "auto_map")
LATENTS, MOST_TOKENS = 6, 512 - 7  # its limit counts six latents and the token that ends them


def is_latent_tts(source: Source) -> bool:
    """Whether a folder's configuration is one of its classes'."""
    named = source.fields.get("architectures") or []
    return any(name in CLASSES for name in named) or "latent_start_id" in source.fields


def convert_latent_tts(source: Source, base_model: str | None = None) -> Converted:
    """Read a checkpoint of LatentTTS or SVP as one of ours. Raises InputError for one that does not fit."""
    if base_model is not None:
        raise InputError(f"{source.name}: holds its own configuration and tokenizer: leave --base_model out")
    projects = bool(source.fields.get("projector"))
    with one_clear_error(source.name, "configuration"):
        base = GPT2Config(**{name: value for name, value in source.fields.items() if name not in OWN_FIELDS})
    weights, ledger = take(source, "LatentTTS", COPIED | (PROJECTOR if projects else {}))
    tokenizer = read_tokenizer(str(source.folder))
    for token in TOKENS:
        if token not in tokenizer.get_vocab():
            raise InputError(f"{source.name}: the tokenizer lacks {token}, so the model's thoughts cannot be told")
    is_coconut = "COCONUTGPT2" in (source.fields.get("architectures") or ["CODIGPT2" if projects else "COCONUTGPT2"])
    config = thinking_config(
        base,
        tokenizer,
        TOKENS,
        base.vocab_size,
        "hashes" if is_coconut else "last_number",
        num_latent_tokens=LATENTS,
        num_iterations=LATENTS,
        use_projection=projects,
        question_suffix_ids=newline_after_questions(tokenizer) if is_coconut else None,
    )
    check_rows(source, weights, config)
    return Converted(
        *(weights, ledger, config, tokenizer),
        family=f"LatentTTS' {'Coconut' if is_coconut else 'CODI'} (arXiv 2510.07745)",
        max_new_tokens=MOST_TOKENS,
    )
