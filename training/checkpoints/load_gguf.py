"""Read a backbone from a GGUF file, dequantised: configuration, tokenizer and weights (`--gguf_file`).

transformers reads such files too, but leaves out what answers depend on: the length of GPT-2's table of positions, scaled
rotary positions, biases, and how a tokenizer splits numbers.
"""

import importlib.util
from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from latent_cot.complete_weights import NEW_PARTS
from latent_cot.training.data.tokenization import SENTENCEPIECE_SPACE
from latent_cot.training.errors import InputError

from .checks import check_finite, find_file, one_clear_error
from .gguf_tokenizer import CONTROL, LLAMA3_SPLIT, NORMAL, QWEN_SPLIT, UNKNOWN, USER_DEFINED
from .gguf_weights import ARCHITECTURES, ROPE_FACTORS, from_gguf, gguf_names, rope_factors

# Fields of a configuration, by the end of GGUF's names for them.
SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
}
GPT2_FIELDS = {"feed_forward_length": "n_inner", "attention.layer_norm_epsilon": "layer_norm_epsilon"}
ROTARY_FIELDS = {
    "feed_forward_length": "intermediate_size",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
SCALING = ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear")
LLAMA3_ORIGINAL = 8192  # positions that Llama 3 was trained on before they were scaled


class GGUFFile:
    """What a GGUF file holds: `fields` by name, and tensors by name, read when they are asked for.

    Raises:
        InputError: for a file that is damaged, or of a backbone that we do not have.
    """

    def __init__(self, path: Path):
        import gguf

        self.path = path
        with one_clear_error(str(path), "GGUF file"):
            reader = gguf.GGUFReader(path)
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.arch = self.fields.get("general.architecture")
        if self.arch not in ARCHITECTURES.values():
            known = ", ".join(sorted(set(ARCHITECTURES.values())))
            raise InputError(f"{path}: a GGUF file of the architecture {self.arch!r}; here are {known}")

    def size(self, name: str):
        """A number that describes the model.

        Raises:
            InputError: if the file does not hold it.
        """
        if (value := self.fields.get(f"{self.arch}.{name}")) is None:
            raise InputError(f"{self.path}: no {self.arch}.{name} in it")
        return value

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, dequantised, in float32.

        Raises:
            InputError: if the file does not hold it, or in a format that cannot be read.
        """
        import gguf

        if (tensor := self.tensors.get(name)) is None:
            raise InputError(f"{self.path}: no tensor {name} in it")
        with one_clear_error(str(self.path), f"tensor {name}"):
            return torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))


@lru_cache(maxsize=1)  # a run asks for the configuration, the tokenizer and the weights
def read(path: Path) -> GGUFFile:
    return GGUFFile(path)


def open_gguf(name: str, gguf_file: str, revision: str = "main") -> GGUFFile:
    """A GGUF file of a folder or of a repository on the Hub.

    Raises:
        InputError: without the package, or if there is no such file.
    """
    if importlib.util.find_spec("gguf") is None:
        raise InputError("--gguf_file needs: pip install '.[gguf]'")
    if (path := find_file(name, gguf_file, revision)) is None:
        raise InputError(f"{name}: no {gguf_file} in it (--gguf_file)")
    return read(path)


def gguf_config(file: GGUFFile) -> PreTrainedConfig:
    """The backbone's configuration.

    Raises:
        InputError: for a size that is missing, or scaled positions that the file does not describe.
    """
    fields = {ours: file.size(name) for name, ours in SIZES.items()}
    vocabulary, _ = file.tensors["token_embd.weight"].shape[::-1]
    fields |= {"vocab_size": int(vocabulary), "tie_word_embeddings": "output.weight" not in file.tensors}
    for token, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        fields[f"{token}_token_id"] = file.fields.get(f"tokenizer.ggml.{name}_token_id")
    if file.arch == "gpt2":
        return CONFIG_MAPPING["gpt2"](**fields, **{ours: file.size(name) for name, ours in GPT2_FIELDS.items()})
    heads = fields["num_attention_heads"]
    fields["num_key_value_heads"] = file.fields.get(f"{file.arch}.attention.head_count_kv", heads)
    fields |= {ours: file.size(name) for name, ours in ROTARY_FIELDS.items() if ours not in fields}
    fields["head_dim"] = file.fields.get(f"{file.arch}.attention.key_length", fields["hidden_size"] // heads)
    fields["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    if file.arch == "llama":
        fields["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    fields["rope_parameters"] = rope_parameters(file)
    return CONFIG_MAPPING[file.arch](**fields)


def rope_parameters(file: GGUFFile) -> dict:
    """How positions rotate. Only the factors of a scaling are in a file; what made them is known of Llama 3 and of linear ones.

    Raises:
        InputError: for another scaling.
    """
    rope = {"rope_type": "default", "rope_theta": float(file.fields.get(f"{file.arch}.rope.freq_base", 10000.0))}
    scaled = [name for name in SCALING if file.fields.get(f"{file.arch}.{name}") not in (None, "none")]
    if scaled or ROPE_FACTORS not in file.tensors:
        if scaled:
            raise InputError(
                f"{file.path}: {file.arch}.{scaled[0]} is set; name the scaling in a --config_name of its own"
            )
        return rope
    factors = file.tensor(ROPE_FACTORS)
    if bool((factors == factors[0]).all()):
        return rope | {"rope_type": "linear", "factor": float(factors[0])}
    original = file.fields.get(f"{file.arch}.rope.scaling.original_context_length", LLAMA3_ORIGINAL)
    rope |= {"rope_type": "llama3", "factor": round(float(factors.max()), 4), "low_freq_factor": 1.0}
    return rope | {"high_freq_factor": 4.0, "original_max_position_embeddings": original}


def fill(model: PreTrainedModel, file: GGUFFile) -> None:
    """Put a file's weights into a model, which may be of one of our families.

    Raises:
        InputError: for a tensor that is missing, left over, of another shape or not finite.
    """
    weights = model.state_dict()
    own = [name for name in weights if not set(NEW_PARTS.values()).isdisjoint(name.split("."))]  # which no backbone has
    names = gguf_names(model, leave_out=own)
    for name, named in names.items():
        tensor = from_gguf(name, file.tensor(named), model.config)
        if tensor.shape != weights[name].shape:
            shape = list(weights[name].shape)
            raise InputError(
                f"{file.path}: {named} has the shape {list(tensor.shape)}, the configuration makes it {shape}"
            )
        weights[name].copy_(tensor)
    for left in sorted(file.tensors.keys() - set(names.values()) - {ROPE_FACTORS, "output.weight"}):
        raise InputError(f"{file.path}: the tensor {left} has no place in a {model.config.model_type}")
    factors = rope_factors(model)
    held = file.tensor(ROPE_FACTORS) if ROPE_FACTORS in file.tensors else None
    if (factors is None) != (held is None) or (held is not None and not torch.allclose(factors, held, rtol=1e-3)):
        raise InputError(
            f"{file.path}: its positions are scaled otherwise than the configuration says; use --config_name"
        )
    check_finite(model, str(file.path))


def load_gguf(file: GGUFFile, config: PreTrainedConfig, **options) -> PreTrainedModel:
    """The model of a configuration with a file's weights.

    Args:
        config: the backbone's own, or its counterpart of one of our families.
        **options: `dtype`, `attn_implementation`.
    """
    model = AutoModelForCausalLM.from_config(config, **options)
    with torch.no_grad():
        fill(model, file)
    return model


def load_gguf_tokenizer(file: GGUFFile) -> PreTrainedTokenizerBase:
    """The file's tokenizer.

    Raises:
        InputError: for a kind that cannot be read exactly.
    """
    kind, pre = file.fields.get("tokenizer.ggml.model"), file.fields.get("tokenizer.ggml.pre")
    if kind != "llama" and (kind != "gpt2" or pre not in PRE_TOKENIZERS):
        raise InputError(
            f"{file.path}: its tokenizer ({kind}, {pre}) cannot be read; pass --tokenizer_name with the model's own"
        )
    with one_clear_error(str(file.path), "tokenizer"):
        tokenizer = with_special_tokens(file, sentencepiece(file) if kind == "llama" else byte_level(file, pre))
    tokenizer.chat_template = file.fields.get("tokenizer.chat_template")
    return tokenizer


def split(pattern: str) -> list:
    parts = pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)
    return list(parts)


# What llama.cpp's names of pre-tokenizers stand for.
PRE_TOKENIZERS = {
    "gpt-2": lambda: [pre_tokenizers.ByteLevel(False)],
    "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)],
    "llama-bpe": lambda: split(LLAMA3_SPLIT),
    "qwen2": lambda: split(QWEN_SPLIT),
}


def byte_level(file: GGUFFile, pre: str) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(file.fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in file.fields["tokenizer.ggml.merges"]]
    merges = [pair for pair in merges if vocabulary.keys() >= {*pair, "".join(pair)}]
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    parts = PRE_TOKENIZERS[pre]()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts) if len(parts) > 1 else parts[0]
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece(file: GGUFFile) -> Tokenizer:
    """Llama's kind: two neighbours are merged where that gives a token, the one that scores highest first."""
    fields, name = file.fields, "tokenizer.ggml."
    vocabulary = {token: index for index, token in enumerate(fields[f"{name}tokens"])}
    scores, types = fields[f"{name}scores"], fields[f"{name}token_type"]
    merges = []
    for token, index in vocabulary.items():
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))] if types[index] == NORMAL else []
        merges += [(-scores[index], pair) for pair in halves if vocabulary.keys() >= set(pair)]
    pairs = [pair for _, pair in sorted(merges)]
    unknown = {"unk_token": next(token for token, index in vocabulary.items() if types[index] == UNKNOWN)}
    tokenizer = Tokenizer(BPE(vocabulary, pairs, byte_fallback=True, fuse_unk=True, **unknown))
    prefix = fields.get(f"{name}add_space_prefix", True)
    spaces = [normalizers.Prepend(SENTENCEPIECE_SPACE)] * prefix + [normalizers.Replace(" ", SENTENCEPIECE_SPACE)]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    steps = [decoders.Replace(SENTENCEPIECE_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * prefix)
    return tokenizer


def with_special_tokens(file: GGUFFile, tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer with the tokens that are not text, and the BOS that llama.cpp puts before a text."""
    fields, name = file.fields, "tokenizer.ggml."
    tokens, types = fields[f"{name}tokens"], fields[f"{name}token_type"]
    added = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL) for token, kind in added])
    roles = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    ids = {role: fields.get(f"{name}{key}_token_id") for role, key in roles.items()}
    named = {f"{role}_token": tokens[index] for role, index in ids.items() if index is not None}
    by_default = fields[f"{name}model"] == "llama" or fields.get(f"{name}pre") == "llama-bpe"
    if fields.get(f"{name}add_bos_token", by_default) and "bos_token" in named:
        bos = named["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, ids["bos"])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
