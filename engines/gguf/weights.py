"""The weights of a backbone under GGUF's names and in its layout."""

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from latent_cot.training.errors import InputError
from latent_cot.training.families import stock_config

# llama.cpp's architecture of a backbone.
ARCHITECTURES = {"gpt2": "gpt2", "llama": "llama", "mistral": "llama", "qwen3": "qwen3"}
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # stored (in, out) by GPT-2
ROTATED = ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")


def backbone_of(config: PreTrainedConfig) -> str:
    """`gpt2` of `icot-gpt2` and of `gpt2`."""
    return stock_config(config).model_type


def gguf_names(model: PreTrainedModel) -> dict[str, str]:
    """GGUF's name of each of a model's weights, but for an output head that is the embeddings. Raises InputError for a
    weight that GGUF has no name for.
    """
    import gguf

    config = model.config
    arch = ARCHITECTURES[backbone_of(config)]
    key = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names, found = gguf.get_tensor_name_map(key, config.num_hidden_layers), {}
    for name in model.state_dict():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if (named := names.get_name(name, try_suffixes=(".weight", ".bias"))) is None:
            raise InputError(f"GGUF has no name for the weight {name}")
        found[name] = named
    return found


def to_gguf(name: str, tensor: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """A weight as llama.cpp wants it: `(out, in)`, and with the two halves of each rotated head interleaved."""
    if backbone_of(config) == "gpt2" and name.endswith(CONV1D):
        return tensor.T
    if (heads := rotated_heads(name, config)) is None:
        return tensor
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def rotated_heads(name: str, config: PreTrainedConfig) -> int | None:
    """How many heads of this weight llama.cpp rotates by neighbours; None where it rotates by halves, as transformers does."""
    if ARCHITECTURES[backbone_of(config)] != "llama" or not name.endswith(ROTATED):
        return None
    return config.num_attention_heads if "q_proj" in name else config.num_key_value_heads


def rope_factors(model: PreTrainedModel) -> torch.Tensor | None:
    """What each rotary frequency is divided by, `(head size / 2,)`; None for unscaled positions."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") == "default":
        return None
    scaled = model.base_model.rotary_emb.inv_freq.float().cpu()
    usual = rope["rope_theta"] ** -(torch.arange(len(scaled)) / len(scaled))
    return usual / scaled
