"""Step supervision through a small decoder that exists only in training (after SIM-CoT, arXiv 2509.20317).

As in the paper: the states of a step's latents are the prefix of a causal decoder, which learns by teacher forcing to write
that step; its loss trains the latents too; when training is over, the decoder is thrown away.

What differs. The paper's decoder is a whole pretrained language model, a copy of the base model, with an output head of its own; ours has
a few layers of the same kind from random weights, and embeddings and head are the model's. Ours reads the state that
*becomes* a latent, before the projection, as all step supervision here does. The mean is over the tokens of all steps,
where the authors' code averages over steps. Steps beyond the latents are not read (for Coconut, the authors' last latents
stand for all that is left).
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from latent_cot.chunked_cross_entropy import select_labelled

from .errors import InputError
from .families import stock_config

NAME = "step_decoder"  # of the module in the model


STEP_DECODER = "step_decoder.safetensors"  # its file in a checkpoint


class StepDecoder(nn.Module):
    """Writes each step from the states of its latents.

    It is a part of the model while that is trained, so that it has its gradients averaged, clipped and applied, but no part
    of the model's `state_dict()`: whatever saves the model leaves it out. Its weights are in float32.
    """

    def __init__(self, config: PreTrainedConfig, layers: int):
        super().__init__()
        self.backbone = AutoModel.from_config(backbone_config(config, layers), dtype=torch.float32)
        self.backbone.set_input_embeddings(nn.Identity())  # it is given embeddings, the model's
        self.register_state_dict_post_hook(leave_out)
        self.register_load_state_dict_post_hook(expect_none)

    def forward(
        self, states: torch.Tensor, labels: torch.Tensor, embed: nn.Module
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the output head is to read, by teacher forcing.

        Args:
            states: `(batch, c, hidden)`: the states that become the latents.
            labels: `(batch, steps, tokens)`: of each step its tokens and the end of sequence, then -100; -100 alone where
                there is no step. Each step has c / steps latents.
            embed: the model's input embeddings.

        Returns:
            States `(n, hidden)` and the tokens that they predict `(n,)`, -100 for none.
        """
        prefix = states.unflatten(1, (labels.shape[1], -1)).flatten(0, 1)
        labels = labels.flatten(0, 1)
        tokens = embed(labels[:, :-1].clamp(min=0))  # what stands for -100 comes last, so no labelled token sees it
        inputs = torch.cat([prefix, tokens.to(prefix.dtype)], dim=1).float()
        outputs = self.backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return select_labelled(outputs[:, prefix.shape[1] - 1 :].to(states.dtype), labels, 0, None)


def backbone_config(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The stock configuration of a `pccot-*` model's backbone, with so many layers and without a vocabulary."""
    kind = stock_config(config)
    known = kind().to_dict().keys() - {"model_type", "layer_types"}  # the second lists the model's own layers
    fields = {name: value for name, value in config.to_dict().items() if name in known}
    fields |= {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    fields[kind.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = layers
    return kind(**fields)


def leave_out(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    """Take the decoder's weights out of the state of a model that it is in; asked by itself, it gives them."""
    for name in [name for name in state if prefix and name.startswith(prefix)]:
        del state[name]


def expect_none(module: nn.Module, incompatible) -> None:
    """A model's state that is loaded does not lack the decoder's weights."""
    missing = incompatible.missing_keys
    missing[:] = [name for name in missing if NAME not in name.split(".")]


def attach_step_decoder(model: PreTrainedModel, layers: int) -> StepDecoder:
    """Make a decoder and a part of a model, which may have adapters. Raises InputError for a configuration that gives
    it no loss, or steps without latents of their own.
    """
    config = model.config
    if not config.loss_delta:
        raise InputError(
            f"--step_decoder_layers {layers}: the decoder's loss is weighed by loss_delta, which is 0; pass --config_overrides "
            "loss_delta=1, or leave the flag out"
        )
    if config.num_latent_tokens % config.latents_per_step:
        raise InputError(
            f"--step_decoder_layers {layers}: {config.num_latent_tokens} latents are no whole steps of "
            f"{config.latents_per_step}; change --num_latent_tokens or --latents_per_step"
        )
    decoder = StepDecoder(config, layers)
    causal_model(model).add_module(NAME, decoder)
    return decoder


def detach_step_decoder(model: PreTrainedModel) -> None:
    """Take the decoder, if there is one, out of a model."""
    holder = causal_model(model)
    if hasattr(holder, NAME):
        delattr(holder, NAME)


def causal_model(model) -> PreTrainedModel:
    """A model without the adapters around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def save_step_decoder(decoder: StepDecoder, checkpoint: Path) -> None:
    """Write what resuming needs, and a finished model does not have."""
    save_file(decoder.state_dict(), checkpoint / STEP_DECODER, metadata={"format": "pt"})


def load_step_decoder(decoder: StepDecoder, checkpoint: Path) -> None:
    """Read the weights of a checkpoint. Raises InputError where they are damaged, or those of another decoder."""
    path = checkpoint / STEP_DECODER
    try:
        decoder.load_state_dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or missing ({' '.join(str(error).split())})") from error
    except RuntimeError as error:
        raise InputError(f"{path}: not a decoder of this run's --step_decoder_layers and model") from error
