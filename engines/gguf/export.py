"""A checkpoint as a GGUF file, which llama.cpp and what is built on it answer with (`latent-cot export`).

iCoT models and stock backbones are plain graphs. What an iCoT model answers after (fillers, the answer prompt) is in
the file as its chat template, and the command prints the prompt to send where no template is used. Needs:
pip install '.[gguf]'
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latent_cot.configuration_prompt import LATENTS, WORDS
from latent_cot.training.checkpoints.gguf_file import ROPE_FACTORS
from latent_cot.training.checkpoints.read import load
from latent_cot.training.data.tokenization import CHAT_TEMPLATE, SYSTEM_TEMPLATE, starts_with_bos
from latent_cot.training.errors import InputError, check_installed

from .tokenizer import gguf_tokenizer
from .weights import ARCHITECTURES, backbone_of, gguf_names, rope_factors, to_gguf

# The activations and the kinds of rotary positions that llama.cpp computes for a backbone.
ACTIVATIONS = {"gpt2": ("gelu_new", "gelu_pytorch_tanh")}
SCALED = ("default", "linear", "llama3")
ROPES = {"llama": SCALED, "mistral": SCALED}


def export_gguf(name: str, out: Path, revision: str = "main") -> str:
    """Write the file, its numbers as exact as the checkpoint's; adapters are merged.

    Returns:
        The prompt to send, with `{question}` in it; llama.cpp itself adds a BOS where the model has one.

    Raises:
        InputError: for a model or tokenizer that llama.cpp would answer otherwise with, or a file that is there already.
    """
    check_installed("gguf", "a GGUF file", "'.[gguf]'")
    if out.exists():
        raise InputError(f"{out} is there already; choose another file")
    model, tokenizer = load(name, revision)
    check_model(model, name)
    before, after = prompt_around(model, tokenizer)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    try:
        write(model, tokenizer, part, (before, after), Path(name).name)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return before + "{question}" + after


def check_model(model: PreTrainedModel, name: str) -> None:
    """Raises InputError for what llama.cpp does not compute."""
    config = model.config
    between = getattr(config, "between", WORDS)  # a stock model's too
    if between == LATENTS:
        raise InputError(f"{name}: a {config.model_type} iterates over its latent tokens, which no GGUF graph can say")
    if between != WORDS or backbone_of(config) not in ARCHITECTURES:
        raise InputError(f"{name}: no GGUF for a {config.model_type}; there is for {', '.join(ARCHITECTURES)}")
    backbone = backbone_of(config)
    activation = getattr(config, "hidden_act", None) or config.activation_function
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    refused = {
        f"the activation {activation}": activation not in ACTIVATIONS.get(backbone, ("silu",)),
        "scale_attn_by_inverse_layer_idx": getattr(config, "scale_attn_by_inverse_layer_idx", False),
        "scale_attn_weights: false": not getattr(config, "scale_attn_weights", True),
        "add_cross_attention": getattr(config, "add_cross_attention", False),
        f"rotary positions of the type {rope}": rope not in ROPES.get(backbone, ("default",)),
        "attention_bias": config.model_type == "qwen3" and config.attention_bias,
        "a sliding window in some layers": config.model_type == "qwen3" and config.use_sliding_window,
        "keep_position": hasattr(model, "gap_of") and model.gap_of() > 0,
    }
    for what, is_so in refused.items():
        if is_so:
            raise InputError(f"{name}: llama.cpp has no {what}, so it would give other answers")
    if hasattr(model, "writes_chain") and model.writes_chain() and config.eos_token_id == config.ready_token_id:
        raise InputError(f"{name}: llama.cpp would end an answer at the end of its chain, which is the same token here")


def prompt_around(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The texts before and after a question that make llama.cpp see what `generate()` makes the model see. Raises
    InputError for an answer prompt whose text is not its tokens.
    """
    config = model.config
    if not hasattr(model, "suffix_ids"):
        return "", ""
    ids, prompt = model.suffix_ids(), list(config.answer_prompt_ids or [])
    spaced = " " if config.text_format != "plain" else ""  # as `text_format.write_spaces` has the tokenizer write it
    prompt = prompt if prompt and ids[-len(prompt) :] == prompt else []
    special = ids[: len(ids) - len(prompt)]
    text = tokenizer.decode(prompt, clean_up_tokenization_spaces=False) if prompt else ""
    backend, normalizer = tokenizer.backend_tokenizer, tokenizer.backend_tokenizer.normalizer
    if spaced:
        backend.normalizer = None
    again = backend.encode(text, add_special_tokens=False).ids
    if spaced:
        backend.normalizer = normalizer
    if again != prompt:
        raise InputError(f"the answer prompt {text!r} is not the tokens {prompt} in GGUF; train with another")
    return spaced, spaced + "".join(tokenizer.convert_ids_to_tokens(special)) + text


def write(model, tokenizer, path: Path, around: tuple[str, str], title: str) -> None:
    """The GGUF file: what the model is, its tokenizer, its prompt, its weights."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, ARCHITECTURES[backbone_of(config)])
    writer.add_name(title)
    describe_model(writer, config)
    describe_tokenizer(writer, tokenizer, config)
    ours = getattr(config, "answer_prompt_ids", None) is not None  # a stock model of run_cot.py is asked alike
    kept = tokenizer.chat_template == SYSTEM_TEMPLATE or not ours
    template = (tokenizer.chat_template if kept else None) or CHAT_TEMPLATE
    before, after = ("{{- " + json.dumps(text, ensure_ascii=False) + " -}}" if text else "" for text in around)
    writer.add_chat_template(before + template + after)
    dtype = model.dtype
    types = {torch.float16: gguf.GGMLQuantizationType.F16, torch.bfloat16: gguf.GGMLQuantizationType.BF16}
    for name, tensor in gguf_tensors(model):
        array = tensor.detach().to(torch.float32).contiguous().numpy()
        if tensor.ndim > 1 and dtype in types:  # llama.cpp wants vectors in full precision
            writer.add_tensor(name, gguf.quants.quantize(array, types[dtype]), raw_dtype=types[dtype])
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe_model(writer, config) -> None:
    """The backbone's sizes, under GGUF's names."""
    positions = config.max_position_embeddings
    window = getattr(config, "sliding_window", None) if backbone_of(config) == "mistral" else None
    # llama.cpp has no sliding window there, and none is needed up to the window's length.
    writer.add_context_length(min(positions, window or positions))
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if backbone_of(config) == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if original := config.rope_parameters.get("original_max_position_embeddings"):
        writer.add_rope_scaling_orig_ctx_len(original)  # the rest of the scaling is in a tensor


def describe_tokenizer(writer, tokenizer: PreTrainedTokenizerBase, config) -> None:
    described = gguf_tokenizer(tokenizer, config.vocab_size)
    writer.add_tokenizer_model(described.model)
    writer.add_tokenizer_pre(described.pre)
    writer.add_token_list(described.tokens)
    writer.add_token_types(described.types)
    if described.scores is None:
        writer.add_token_merges(described.merges)
    else:
        writer.add_token_scores(described.scores)
    writer.add_add_space_prefix(described.space_prefix)
    writer.add_remove_extra_whitespaces(described.single_spaces)
    for name in ("bos", "eos", "pad", "unk"):
        if (index := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    with_bos = getattr(config, "questions_start_with_bos", None)
    writer.add_add_bos_token(starts_with_bos(tokenizer) if with_bos is None else with_bos)
    writer.add_add_eos_token(False)


def gguf_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights under GGUF's names and in its layout."""
    weights = model.state_dict()
    for name, named in gguf_names(model).items():
        yield named, to_gguf(name, weights[name], model.config)
    if (factors := rope_factors(model)) is not None:
        yield ROPE_FACTORS, factors
