"""The Jacobi iteration over the packed batch of transformers' batch engine.

A packed batch is one row of many requests' tokens, whose keys and values go to slots of a paged cache. Here is a batch of
the end of one question with its span, and one token of another request's answer:

    input_ids      7 9 <bot> <latent> <latent> <eot> 5   4
    cu_seq_lens_q  0                                     7   8
    write_index    the slot of each token

Each pass runs the whole row and writes the same slots again, so what was final stays the same. (`jacobi_window` runs fewer
columns, but the engine's masks and indices are those of the whole row.)
"""

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from latent_cot.spans_pccot import latents_of_spans


class PackedThinker(nn.Module):
    """Stands for a causal language model in the batch engine, and thinks the spans of a packed batch through.

    A span must be in the batch as a whole, from `<bot>` to its last latent. Reads nothing on the host, so that a step can be
    captured as a CUDA graph. All that the engine asks of a model is the model's.

    Args:
        model: a causal language model whose base model has a `plain_forward`.
        iterations: T; as many passes follow the first one. More than a span has latents changes nothing there.
    """

    def __init__(self, model: nn.Module, iterations: int):
        super().__init__()
        self.model, self.iterations = model, iterations

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, input_ids, logits_to_keep=slice(None), **batch) -> CausalLMOutput:
        """Logits for the next tokens.

        Args:
            input_ids: `(1, tokens)`.
            logits_to_keep: `(requests,)`: for which tokens there are logits.
            **batch: what else the engine gives to a model: `cu_seq_lens_q` `(requests + 1,)`, where each request begins,
                `write_index`, `cache`, and the number of tokens of the longest request among them.
        """
        base = self.model.base_model
        embeds = base.get_input_embeddings()(input_ids)
        # Where every request has one token, no span can be: all are writing their answers.
        longest = (
            batch["max_length_q"] if "max_length_q" in batch else batch["max_seqlen_q"]
        )  # before transformers 5.23
        again = 0 if longest == 1 else self.iterations
        rewritten = batch | {"write_index": spare_indices(batch)} if again else batch
        states = base.plain_forward(inputs_embeds=embeds, **rewritten).last_hidden_state
        if again:
            latents = latents_of_spans(input_ids, self.model.config, batch["cu_seq_lens_q"])[..., None]
        inputs, rule = embeds, base.latent_rule
        for left in reversed(range(again)):
            thought = rule.inputs_in_rows(states, embeds, inputs, base.project)
            inputs = torch.where(latents, thought, embeds)
            states = base.plain_forward(inputs_embeds=inputs, **(rewritten if left else batch)).last_hidden_state
        return CausalLMOutput(logits=self.model.lm_head(states[:, logits_to_keep]))


def spare_indices(batch: dict) -> list[torch.Tensor]:
    """Where every pass but the last writes keys and values, `(tokens,)` for each kind of layer.

    A layer with a sliding window takes what lies before this batch from a ring that the batch's tokens overwrite. So there
    only the last pass may write; the others write to the slot of padding. Other layers read their own tokens back.
    """
    cache = batch["cache"]
    groups = getattr(cache, "cache_allocators", None)  # transformers 5.17 has a list of `group_cache_managers`
    groups = cache.group_cache_managers if groups is None else groups.values()
    return [
        torch.full_like(index, group.write_trash_index) if hasattr(group, "sliding_window") else index
        for group, index in zip(groups, batch["write_index"], strict=True)
    ]
