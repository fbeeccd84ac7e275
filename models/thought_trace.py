"""A thought to look at, or to change before it is answered from: what the latents are fed in each pass, and how to feed them."""

from dataclasses import dataclass

import torch

from .passes_pccot import Passes
from .positions import positions_from_mask
from .prefix_cache import PrefixCache
from .spans_pccot import ThoughtSpan, find_thought_spans


@dataclass(frozen=True)
class ThoughtTrace:
    """What all latents are fed in passes 0 to T.

    Args:
        inputs: `(T + 1, batch, c, hidden)`. The last entry is the thought that an answer reads: `latent_embeds` of
            `generate()`. The first is the embedding of `<latent>`, as for T = 0.
        sources: `(T + 1, batch, c, hidden)`: the hidden states of the pass before in the positions before the latents, which the
            output head reads as the tokens that latents stand for (`loss_delta`); under the rule `shift` inputs are made of
            them. Those of pass 0 are its inputs, since nothing came before.
    """

    inputs: torch.Tensor
    sources: torch.Tensor


def trace_thought(backbone, input_ids: torch.Tensor, attention_mask: torch.Tensor, iterations: int) -> ThoughtTrace:
    """Think with nothing pruned, and keep what each pass is fed.

    Args:
        backbone: a base model that thinks.
        input_ids: `(batch, length)` with one thought span, in the same columns in each row.
        attention_mask: `(batch, length)`.
        iterations: T.

    Raises:
        ValueError: for anything but one thought span per row, in the same columns.
    """
    spans = find_thought_spans(input_ids, backbone.config)
    if len(spans) != 1 or not spans[0].is_aligned:
        raise ValueError("a thought can be traced in prompts with one thought span each, in the same columns")
    bot, latents, update = spans[0].bot, spans[0].num_latents, backbone.latent_rule
    embeds = backbone.get_input_embeddings()(input_ids)
    inputs = [embeds[:, bot + 1 : bot + 1 + latents]]

    def project(states: torch.Tensor, first: int) -> torch.Tensor:
        projected = backbone.project(states, first)
        inputs.append(update.inputs(projected, inputs[0], inputs[-1]))
        return projected

    run = Passes(backbone, attention_mask, positions_from_mask(attention_mask), PrefixCache())
    update.plain(run, embeds, bot, latents, iterations, project)
    # Of each pass its first column, and the last hidden states from there on.
    passes = [(start, output[0]) for start, output in run.outputs]
    opened = passes[0][1][:, bot : bot + 1]  # before the first latent, the same in every pass
    sources = [inputs[0]]
    for start, states in passes[: len(inputs) - 1]:
        sources.append(torch.cat([opened, states[:, bot + 1 - start :][:, : latents - 1]], dim=1))
    return ThoughtTrace(torch.stack(inputs), torch.stack(sources))


def put_latents(embeds: torch.Tensor, spans: list[ThoughtSpan], latents: torch.Tensor) -> torch.Tensor:
    """The embeddings of a prompt, `(batch, length, hidden)`, with a given thought in its thought span.

    Args:
        embeds: of the prompt as it is, `(batch, length, hidden)`.
        spans: of `find_thought_spans`.
        latents: `(batch, c, hidden)`.

    Raises:
        ValueError: unless each row has one span, with as many latents as are given.
    """
    if len(spans) != 1:
        raise ValueError(f"latent_embeds needs one thought span per row, and there are {len(spans)}")
    wanted = (len(embeds), spans[0].num_latents, embeds.shape[-1])
    if latents.shape != wanted:
        raise ValueError(f"latent_embeds must be (batch, c, hidden) = {wanted}, got {tuple(latents.shape)}")
    here = torch.arange(embeds.shape[1], device=embeds.device)[None]
    bots = torch.as_tensor(spans[0].columns, device=embeds.device).reshape(-1, 1)
    inside = (here > bots) & (here <= bots + spans[0].num_latents)  # (batch or 1, length)
    return embeds.masked_scatter(inside[:, :, None], latents.to(embeds.device, embeds.dtype))


def check_given(latents: torch.Tensor, latent_thought: bool, sampled: bool) -> None:
    """Raises ValueError for a given thought that is none, or that goes with no thought or a sampled one."""
    if latents.ndim != 3:
        raise ValueError(f"latent_embeds must be (batch, c, hidden), got {tuple(latents.shape)}")
    if not latent_thought or sampled:
        raise ValueError(
            "latent_embeds is the whole thought: leave latent_thought on, latent_noise, latent_dropout and value_noise 0"
        )
