"""CODI (github.com/zhenyi4/codi: src/model.py, test.py), and SIM-CoT on CODI (github.com/InternLM/SIM-CoT: CODI/).

The published files hold the state of one module, with its adapters unmerged, and neither a configuration nor a tokenizer
of its own: both are the base model's. A question is followed by `<bot>`; each of six latents is the projection of the
state before it; then comes `<eot>`, and the model writes "The answer is: N" until the base's end of sequence.

    copied      COPIED: the backbone, the projection
    merged      `.lora_A.default`, `.lora_B.default`: W + 32 / 128 B A, transposed in GPT-2
    filled      the row of `<latent>`, which T >= c never reads
    left out    LEFT_OUT: what explains latents in SIM-CoT's training, and a stray of CODI's
"""

from latent_cot.training.checkpoints.read import read_config, read_tokenizer
from latent_cot.training.data.tokenization import PAD
from latent_cot.training.errors import InputError

from .foreign import Source, merge_adapters, take
from .plain import Converted, thinking_config

BACKBONE = ("codi.base_model.model.", "codi.")  # with adapters, without
LEFT_OUT = ("decoder.", "pj_in.", "pj_out.", "dynamic_cls.")
RANK, ALPHA, LATENTS, MOST_TOKENS = 128, 32, 6, 256
TOKENS = ("<pcot.bot>", "<pcot.eot>", "<pcot.latent>")
# The base models of the published weights, by the width of the projection.
BASES = {
    768: "openai-community/gpt2",
    2048: "meta-llama/Llama-3.2-1B-Instruct",
    3072: "meta-llama/Llama-3.2-3B-Instruct",
    4096: "meta-llama/Llama-3.1-8B-Instruct",
}


def convert_codi(source: Source, base_model: str | None = None) -> Converted:
    """Read a checkpoint of CODI, or of SIM-CoT on CODI, as one of ours. Raises InputError for one that does not fit, or
    whose base model is not known.
    """
    family = "SIM-CoT on CODI (arXiv 2509.20317)" if source.has("decoder.") else "CODI (arXiv 2502.21074)"
    if "prj.3.weight" not in source.weights:
        raise InputError(f"{source.name}: the checkpoint lacks the tensor prj.3.weight")
    width = source.weights["prj.3.weight"].shape[0]
    base_model = base_model or BASES.get(width)
    if base_model is None:
        raise InputError(f"{source.name}: no base model of the width {width} is known; name it: --base_model")
    base = read_config(base_model)
    prefix = "transformer" if base.model_type == "gpt2" else "model"
    projection = {"prj.1.": "prj.0.", "prj.3.": "prj.2.", "prj.ln.": "prj.3."}
    copied = dict.fromkeys(BACKBONE, "") | {key: f"{prefix}.{ours}" for key, ours in projection.items()}
    weights, ledger = take(source, "CODI", copied, LEFT_OUT)
    weights = merge_adapters(source, weights, ledger, RANK, ALPHA / RANK, transposed=base.model_type == "gpt2")

    tokenizer = read_tokenizer(base_model)
    pad = base.vocab_size  # then <bot> and <eot>, whatever the tokenizer has for padding
    tokenizer.add_special_tokens({"pad_token": PAD})
    config = thinking_config(
        base,
        tokenizer,
        TOKENS,
        pad + 3,
        "last_number",
        num_latent_tokens=LATENTS,
        num_iterations=LATENTS,
        use_projection=True,
    )
    ids = (config.pad_token_id, config.bot_token_id, config.eot_token_id)
    if ids != (pad, pad + 1, pad + 2):
        raise InputError(f"{base_model}: CODI's tokens should get the ids from {pad} on, and get {ids}")
    for name in (f"{prefix}.wte.weight", f"{prefix}.embed_tokens.weight", "lm_head.weight"):
        if name in weights and len(weights[name]) != pad + 3:
            raise InputError(
                f"{source.name}: {name} has {len(weights[name])} rows, and {base_model} with three tokens more has {pad + 3}"
            )
    return Converted(
        *(weights, ledger, config, tokenizer),
        family=family,
        max_new_tokens=MOST_TOKENS,
        suppressed=(config.eot_token_id, config.latent_token_id),
        base_model=base_model,
    )
