"""Plain twins of what is fast: runners for `latent_cot.jacobi_pccot` that compute everything anew."""

import torch

from latent_cot.jacobi_pccot import jacobi
from latent_cot.positions import positions_from_mask


class Recompute:
    """A `run` without any cache: every pass reads the whole sequence up to its last column again."""

    def __init__(self, backbone, attention_mask: torch.Tensor):
        self.backbone, self.mask = backbone, attention_mask
        self.positions, self.inputs = positions_from_mask(attention_mask), None

    def __call__(self, inputs: torch.Tensor, start: int) -> torch.Tensor:
        before = inputs[:, :0] if start == 0 else self.inputs[:, :start]
        self.inputs = torch.cat([before, inputs], dim=1)
        end = self.inputs.shape[1]
        hidden = self.backbone.plain_forward(
            inputs_embeds=self.inputs,
            attention_mask=self.mask[:, :end],
            position_ids=self.positions[:, :end],
            use_cache=False,
        ).last_hidden_state
        return hidden[:, start:]


def think_plainly(backbone, input_ids, attention_mask, iterations: int | None = None, method=jacobi):
    """Last hidden states `(batch, length, hidden)` after thinking, every pass recomputed.

    Args:
        backbone: a base model that thinks.
        input_ids: `(batch, length)` with one thought span, in the same columns in each row.
        iterations: T; the configuration's if absent.
        method: `jacobi`, or another function with its arguments.
    """
    config = backbone.config
    iterations = config.num_iterations if iterations is None else iterations
    is_latent = (input_ids[0] == config.latent_token_id).nonzero().flatten()
    embeds, bot, latents = backbone.get_input_embeddings()(input_ids), int(is_latent[0]) - 1, len(is_latent)
    return method(Recompute(backbone, attention_mask), embeds, bot, latents, iterations, backbone.project)


def one_after_the_other(run, embeds, bot, latents, iterations, project):
    """Sequential continuous thought: each latent is filled in once the one before it is there."""
    states = [run(embeds[:, : bot + 1], 0)]
    for place in range(latents):
        states.append(run(project(states[-1][:, -1:]), bot + 1 + place))
    return torch.cat([*states, run(embeds[:, bot + 1 + latents :], bot + 1 + latents)], dim=1)
