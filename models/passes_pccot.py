"""Runners: what performs the passes that `jacobi_pccot.py` asks for, and puts their outputs together.

`Passes` is the plain one. `FastPasses` holds what is only fast, or only there because a library needs it: remove it, and
the numbers stay.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.generation.configuration_utils import CompileConfig
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions as ThoughtOutput

from .prefix_cache import PrefixCache, take_columns, truncate_to
from .transformers_versions import CACHE


class Passes:
    """Passes of a backbone over columns of one sequence: a `run` for the functions of `jacobi_pccot.py`.

    Args:
        backbone: a base model with a `plain_forward`.
        attention_mask: `(batch, past + length)`, or None where nothing is padded.
        position_ids: `(batch or 1, length)`.
        cache: what the first pass attends to; each later pass goes on from a cut of the latest pass's cache.
        options: arguments of every pass.
        last_options: further arguments of the pass that reaches the last column.
    """

    def __init__(
        self,
        backbone: nn.Module,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        cache: Cache,
        options: dict | None = None,
        last_options: dict | None = None,
    ):
        self.backbone, self.attention_mask, self.position_ids = backbone, attention_mask, position_ids
        self.cache, self.past = cache, int(cache.get_seq_length())
        self.options, self.last_options = options or {}, last_options or {}
        self.first_cache = cache
        self.outputs: list[tuple[int, ThoughtOutput]] = []  # (first column, output) of every pass

    def __call__(self, inputs: torch.Tensor, start: int) -> torch.Tensor:
        """One pass over `inputs` `(batch, n, hidden)` in columns `start` to `start + n`; its last hidden states."""
        end = start + inputs.shape[1]
        if self.outputs:
            self.cache = truncate_to(self.cache, self.past + start)
        mask = None if self.attention_mask is None else self.attention_mask[:, : self.past + end]
        options = self.options
        if self.last_options and end == self.position_ids.shape[1]:
            options = options | self.last_options
        output: Any = self.forward(inputs, mask, self.position_ids[:, start:end], options)
        self.outputs.append((start, output))
        return output.last_hidden_state

    def forward(self, inputs, attention_mask, position_ids, options: dict) -> ThoughtOutput:
        """One pass; `attention_mask` and `position_ids` reach up to its last column."""
        return self.backbone.plain_forward(
            inputs_embeds=inputs,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=True,
            **{CACHE: self.cache},
            **options,
        )

    @property
    def last_output(self) -> ThoughtOutput:
        return self.outputs[-1][1]

    def output(self, last_hidden_state: torch.Tensor) -> ThoughtOutput:
        """One output for all columns: of each pass, those columns that no later pass computed again.

        Args:
            last_hidden_state: `(batch, length, hidden)`, what the method returned.
        """
        if not self.outputs[0][1].hidden_states and not self.outputs[0][1].attentions:
            return ThoughtOutput(last_hidden_state=last_hidden_state)
        starts = [start for start, _ in self.outputs] + [last_hidden_state.shape[1]]
        pieces = [
            first_columns(output, end - start) for (start, output), end in zip(self.outputs, starts[1:], strict=True)
        ]
        return join_columns(pieces)


class FastPasses(Passes):
    """`Passes` for training without a wait for the device, and for answering in a static cache that is compiled.

    Args:
        compiled_forward: `static_forward` compiled. Used after the first pass, where the last states are all that is
            asked for: the passes after the question have one shape.
        **as `Passes`**.
    """

    def __init__(self, backbone, *args, compiled_forward: Callable | None = None, **kwargs):
        super().__init__(backbone, *args, **kwargs)
        device, attention = self.position_ids.device.type, backbone.config._attn_implementation
        # Flash attention takes the mask of the queries from the end of the mask, which a compiled pass would lengthen.
        in_prefix, flashes = isinstance(self.cache, PrefixCache), "flash" in (attention or "")
        self.compiled_forward = None if in_prefix or flashes else compiled_forward
        # On a CPU there is no device to wait for, and a mask that hides nothing is better left out.
        self.makes_masks = backbone.training and attention == "sdpa" and device != "cpu"

    def forward(self, inputs, attention_mask, position_ids, options):
        if self.compiled_forward is not None and self.outputs:
            first = self.outputs[0][1]
            if first.hidden_states is None and first.attentions is None:
                return self.forward_compiled(inputs, attention_mask, position_ids, options)
        if self.makes_masks and attention_mask is not None:
            attention_mask = masks_without_sync(self.backbone.config, inputs, self.cache, attention_mask, position_ids)
        return Passes.forward(self, inputs, attention_mask, position_ids, options)

    def forward_compiled(self, inputs, attention_mask, position_ids, options) -> ThoughtOutput:
        # Of one shape and layout in every pass, or it would be compiled anew.
        if attention_mask is not None:
            missing = self.cache.layers[0].max_cache_len - attention_mask.shape[1]
            attention_mask = nn.functional.pad(attention_mask, (0, missing))
        inputs, position_ids = (
            tensor.clone(memory_format=torch.contiguous_format) for tensor in (inputs, position_ids)
        )
        states = self.compiled_forward(self.backbone, inputs, self.cache, attention_mask, position_ids, options)
        # A CUDA graph hands out the same memory in every run.
        return ThoughtOutput(last_hidden_state=states.clone())


def compiled_forward(options: CompileConfig):
    """`static_forward` compiled, as `generate()` compiles decoding."""
    return torch.compile(static_forward, **options.to_dict())


def static_forward(backbone, inputs_embeds, cache, attention_mask, position_ids, options: dict) -> torch.Tensor:
    """The last hidden states of one pass over a static cache: what is compiled."""
    return backbone.plain_forward(
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=True,
        **{CACHE: cache},
        **options,
    ).last_hidden_state


def masks_without_sync(config, inputs_embeds, cache, attention_mask, position_ids):
    """What transformers makes of a 2-dimensional mask for sdpa, without a look whether it hides anything.

    That look saves the mask where nothing is padded, but makes the host wait for the device in every pass.
    """

    def always_true(batch, head, query, key):  # a condition beside the usual ones means that the mask is needed
        return query.new_ones((), dtype=torch.bool)

    return create_masks_for_generate(
        config, inputs_embeds, attention_mask, cache, position_ids, and_mask_function=always_true
    )


def first_columns(output, count: int) -> ThoughtOutput:
    """The first `count` columns of a backbone's output."""
    return ThoughtOutput(
        last_hidden_state=output.last_hidden_state[:, :count],
        hidden_states=output.hidden_states and tuple(layer[:, :count] for layer in output.hidden_states),
        attentions=output.attentions and tuple(layer[:, :, :count] for layer in output.attentions),
    )


def join_columns(pieces: list[ThoughtOutput]) -> ThoughtOutput:
    """One output from those of successive columns; attention to keys that a pass did not see yet is 0."""
    if len(pieces) == 1:
        return pieces[0]

    def join(name: str, merge):
        if getattr(pieces[0], name) is None:
            return None
        return tuple(merge(layer) for layer in zip(*(getattr(piece, name) for piece in pieces), strict=True))

    def join_attention(layer):
        keys = max(piece.shape[-1] for piece in layer)
        return torch.cat([nn.functional.pad(piece, (0, keys - piece.shape[-1])) for piece in layer], dim=2)

    return ThoughtOutput(
        last_hidden_state=torch.cat([piece.last_hidden_state for piece in pieces], dim=1),
        hidden_states=join("hidden_states", lambda layer: torch.cat(layer, dim=1)),
        attentions=join("attentions", join_attention),
    )


def gather_columns(output: Any, columns: torch.Tensor, past: int) -> ThoughtOutput:
    """Reorder an output row by row: column j comes from `columns[:, j]`, `(batch, length)`."""

    def gather_attention(states):  # (batch, heads, queries, past + keys)
        states = take_columns(states, columns, dim=2)
        return torch.cat([states[..., :past], take_columns(states[..., past:], columns, dim=3)], dim=-1)

    return ThoughtOutput(
        last_hidden_state=take_columns(output.last_hidden_state, columns, dim=1),
        hidden_states=output.hidden_states
        and tuple(take_columns(layer, columns, dim=1) for layer in output.hidden_states),
        attentions=output.attentions and tuple(gather_attention(layer) for layer in output.attentions),
    )
