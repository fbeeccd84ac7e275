"""The plain twin of the pruned iteration: every pass recomputes everything, without a cache."""

import torch

from models.positions import positions_from_mask
from models.thinking_pccot import ThinkingModelMixin


def think_plainly(backbone, input_ids, attention_mask, iterations: int | None = None, sequential: bool = False):
    """Last hidden states `(batch, length, hidden)` after thinking, as the paper's text has it.

    Args:
        backbone: a base model that thinks; only its layers are used.
        input_ids: `(batch, length)` with one thought span, in the same columns in each row.
        iterations: T; the configuration's if absent.
        sequential: fill in one latent after the other instead of iterating.
    """
    config = backbone.config
    iterations = config.num_iterations if iterations is None else iterations
    embeds = backbone.get_input_embeddings()(input_ids)
    is_latent = (input_ids[0] == config.latent_token_id).nonzero().flatten()
    first, last = int(is_latent[0]), int(is_latent[-1])
    positions = positions_from_mask(attention_mask)

    def hidden_states(embeds):
        return super(ThinkingModelMixin, backbone).forward(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=positions, use_cache=False
        ).last_hidden_state  # fmt: skip

    def thoughts(hidden, columns):
        previous = hidden[:, columns.start - 1 : columns.stop - 1]
        return backbone.prj(previous) if config.use_projection else previous

    hidden = hidden_states(embeds)
    rounds = [slice(i, i + 1) for i in range(first, last + 1)] if sequential else [slice(first, last + 1)] * iterations
    for columns in rounds:
        new = thoughts(hidden, columns)
        embeds = torch.cat([embeds[:, : columns.start], new, embeds[:, columns.stop :]], dim=1)
        hidden = hidden_states(embeds)
    return hidden
