"""A backbone from a GGUF file (`--gguf_file`), which transformers' own `from_pretrained(..., gguf_file=)` reads and dequantizes.

That reader leaves out some of what answers depend on, without a word. What the file says in plain fields is put right here;
anything else is refused.
"""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    __version__,
)

from latent_cot.complete_weights import NEW_PARTS
from latent_cot.training.data.tokenization import starts_with_bos
from latent_cot.training.errors import InputError, check_installed

from .checks import check_finite, find_file, one_clear_error

ROPE_FACTORS = "rope_freqs.weight"
SCALING = ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear")
ARCHITECTURES = ("gpt2", "llama", "qwen3")
# Architecture, kind of tokenizer and llama.cpp's name of its pre-tokenizer, where transformers' reader gives the same tokens.
# Not among them: sentencepiece, of which it loses a space at the beginning, and Llama's with SmolLM's or GPT-2's splitting.
TOKENIZERS = {("gpt2", "gpt2", "gpt-2"), ("llama", "gpt2", "llama-bpe"), ("qwen3", "gpt2", "qwen2")}


class GGUFFile:
    """A GGUF file of a folder or of a repository on the Hub. Raises InputError without the package, for no such file, a
    damaged one, or a backbone that we do not have.
    """

    def __init__(self, name: str, gguf_file: str, revision: str = "main"):
        check_installed("gguf", "--gguf_file", "'.[gguf]'")
        if __version__.startswith("5.17."):
            raise InputError(f"--gguf_file needs transformers 5.18 or newer: the reader of {__version__} loses tokens")
        import gguf

        path = find_file(name, gguf_file, revision)
        if path is None:
            raise InputError(f"{name}: no {gguf_file} in it (--gguf_file)")
        self.path: Path = path
        self.source = {"pretrained_model_name_or_path": name, "gguf_file": gguf_file, "revision": revision}
        with one_clear_error(str(path), "GGUF file"):
            self.reader = gguf.GGUFReader(path)
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        self.arch = self.field("general.architecture")
        if self.arch not in ARCHITECTURES:
            raise InputError(f"{path}: the architecture {self.arch!r}; here are {', '.join(ARCHITECTURES)}")

    def field(self, name: str, default=None):
        field = self.reader.get_field(name)
        return default if field is None else field.contents()

    def size(self, name: str, default=None):
        """A number that describes the model."""
        return self.field(f"{self.arch}.{name}", default)

    def rope_factors(self) -> torch.Tensor | None:
        """What each rotary frequency is divided by, `(head size / 2,)`; None where the file has no such tensor."""
        return torch.tensor(self.tensors[ROPE_FACTORS].data) if ROPE_FACTORS in self.tensors else None

    def scaling(self) -> str | None:
        """What says that positions are scaled."""
        named = [f"{self.arch}.{name}" for name in SCALING if self.size(name) not in (None, "none")]
        return next(iter(named), ROPE_FACTORS if ROPE_FACTORS in self.tensors else None)

    def config(self) -> PreTrainedConfig:
        """The backbone's configuration, as if its positions were not scaled. Raises InputError for a file that
        transformers cannot read.
        """
        with one_clear_error(str(self.path), "GGUF file"):
            config = AutoConfig.from_pretrained(**self.source)
        if self.arch == "gpt2":
            config.n_positions = self.size("context_length", config.n_positions)
            config.n_inner = self.size("feed_forward_length")
            return config
        config.head_dim = self.size("attention.key_length", config.hidden_size // config.num_attention_heads)
        config.rope_parameters = {"rope_type": "default", "rope_theta": float(self.size("rope.freq_base", 10_000.0))}
        config.attention_bias = "blk.0.attn_q.bias" in self.tensors
        if self.arch == "llama":
            config.mlp_bias = "blk.0.ffn_up.bias" in self.tensors
        if config.model_type == "mistral":  # as transformers calls a file whose title says so
            config.sliding_window = None  # which llama.cpp has not
        return config

    def check_tensors(self, model: PreTrainedModel) -> None:
        """Raises InputError for a tensor that transformers' reader passes over."""
        import gguf

        key = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.arch)
        names = gguf.get_tensor_name_map(key, model.config.num_hidden_layers)
        read = {names.get_name(name, try_suffixes=(".weight", ".bias")) for name in model.state_dict()}
        for left in sorted(self.tensors.keys() - read - {ROPE_FACTORS, "output.weight"}):
            raise InputError(f"{self.path}: the tensor {left} has no place in a {model.config.model_type}")


def gguf_config(file: GGUFFile) -> PreTrainedConfig:
    """The backbone's configuration. Raises InputError for scaled positions, of which a file holds only the factors."""
    if scaling := file.scaling():
        raise InputError(
            f"{file.path}: its positions are scaled ({scaling}), which a GGUF file does not describe; pass the model's own "
            "configuration with --config_name"
        )
    return file.config()


def load_gguf(file: GGUFFile, config: PreTrainedConfig, **options) -> PreTrainedModel:
    """The model of a configuration with a file's weights. Raises InputError for a tensor that is missing, left over, of
    another shape or not finite, or positions that are scaled otherwise.

    Args:
        config: the backbone's own, or its counterpart of one of our families.
    """
    with one_clear_error(str(file.path), "GGUF file"):
        stock, info = AutoModelForCausalLM.from_pretrained(
            **file.source,
            config=file.config(),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named here
        )
    for name, there, wanted in sorted(info["mismatched_keys"]):
        raise InputError(
            f"{file.path}: its tensor {name} is of size {list(there)}, and the file describes a model with {list(wanted)}"
        )
    for missing in sorted(info["missing_keys"]):
        raise InputError(f"{file.path}: the file lacks the tensor {missing}")
    file.check_tensors(stock)
    if config.tie_word_embeddings and not stock.config.tie_word_embeddings:
        raise InputError(f"{file.path}: it has an output head, and in the configuration the embeddings are the head")
    # A fresh model: the one that was read refuses to be saved, because its configuration says that it is quantized.
    model = AutoModelForCausalLM.from_config(config, **options)
    try:
        lacking = model.load_state_dict(stock.state_dict(), strict=False)
    except RuntimeError as error:
        raise InputError(
            f"{file.path}: the configuration is of another model: {str(error).splitlines()[-1].strip()}"
        ) from error
    for name in (*lacking.missing_keys, *lacking.unexpected_keys):
        if set(NEW_PARTS.values()).isdisjoint(name.split(".")):
            raise InputError(f"{file.path}: the configuration is of another model: {name} is only in one of the two")
    check_positions(model, file)
    check_finite(model, str(file.path))
    return model


def check_positions(model: PreTrainedModel, file: GGUFFile) -> None:
    """Raises InputError where the configuration scales positions otherwise than the file."""
    if file.arch == "gpt2":
        return
    frequencies = model.base_model.rotary_emb.inv_freq.float().cpu()
    usual = model.config.rope_parameters["rope_theta"] ** -(torch.arange(len(frequencies)) / len(frequencies))
    factors = file.rope_factors()
    wanted = frequencies if factors is None and file.scaling() else usual / (1 if factors is None else factors)
    theta = model.config.rope_parameters["rope_theta"] == file.size("rope.freq_base", 10_000.0)
    if not theta or not torch.allclose(frequencies, wanted, rtol=1e-3):
        raise InputError(f"{file.path}: its positions are scaled otherwise than the configuration says")


def load_gguf_tokenizer(file: GGUFFile) -> PreTrainedTokenizerBase:
    """The file's tokenizer. Raises InputError for a kind that transformers would read as another."""
    kind, pre = file.field("tokenizer.ggml.model"), file.field("tokenizer.ggml.pre", "default")
    with_bos = file.field("tokenizer.ggml.add_bos_token", pre == "llama-bpe")
    advice = "pass --tokenizer_name with the model's own"
    if (file.arch, kind, pre) not in TOKENIZERS:
        raise InputError(f"{file.path}: its tokenizer ({kind}, {pre}) cannot be read exactly; {advice}")
    with one_clear_error(str(file.path), "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(**file.source)
    if starts_with_bos(tokenizer) != with_bos:
        raise InputError(
            f"{file.path}: its tokenizer would be read {'without' if with_bos else 'with'} a first token; {advice}"
        )
    return tokenizer
