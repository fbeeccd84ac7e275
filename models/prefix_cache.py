"""A cache whose past is frozen, so that the passes of the Jacobi iteration can share it.

transformers' own caches grow in place. Here one object serves exactly one pass: what earlier passes left is a prefix
that never changes, and the next pass starts from `fork(length)`, which keeps the first `length` positions. Forks share
tensors instead of copying them, gradients flow through the prefix, and replaying a layer (gradient checkpointing)
gives the same keys and values again.

An answer into a static cache needs none of that: its passes overwrite each other's columns there (`truncate_to`).
"""

import copy
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer


class PrefixLayer(DynamicLayer):
    """Keys and values of one layer, each `(batch, heads, positions, head size)`: a frozen prefix, then one pass."""

    def __init__(self, keys: torch.Tensor | None = None, values: torch.Tensor | None = None):
        super().__init__()
        self.prefix = (keys, values)
        self.keys, self.values = keys, values
        self.is_initialized = keys is not None

    def update(self, key_states, value_states, *args, **kwargs):
        prefix_keys, prefix_values = self.prefix
        if prefix_keys is None:
            self.keys, self.values = key_states, value_states
        else:
            self.keys = torch.cat([prefix_keys, key_states], dim=-2)
            self.values = torch.cat([prefix_values, value_states], dim=-2)
        self.is_initialized = True
        return self.keys, self.values


class PrefixCache(Cache):
    """The cache of one pass; see the module's docstring."""

    layers: list[Any]

    def __init__(self, layers: list | None = None):
        if layers:
            super().__init__(layers=layers)
        else:
            super().__init__(layer_class_to_replicate=PrefixLayer)

    def fork(self, length: int) -> "PrefixCache":
        """A cache for another pass, whose prefix is the first `length` positions of this one."""
        return first_positions(self, length)

    @classmethod
    def from_cache(cls, cache: Cache | None) -> "PrefixCache":
        """A prefix cache that starts where any other cache ends.

        Raises:
            ValueError: if the cache has already dropped positions (a full sliding window).
        """
        if isinstance(cache, cls):
            return cache.fork(cache.get_seq_length())
        length = 0 if cache is None else int(cache.get_seq_length())
        if cache is None or length == 0:
            return cls()
        if any(layer.keys is None or layer.keys.shape[-2] < length for layer in cache.layers):
            raise ValueError(
                "this cache no longer holds every earlier position (its sliding window is full), so a thought span "
                "cannot be added to it; pass the whole prompt without a cache"
            )
        return first_positions(cache, length)

    def append_to(self, cache: Cache, start: int) -> Cache:
        """Append the positions from `start` on to `cache`, whatever its kind, and return it."""
        for index, layer in enumerate(self.layers):
            cache.update(layer.keys[..., start:, :], layer.values[..., start:, :], index)
        return cache

    def gather(self, columns: torch.Tensor, start: int) -> "PrefixCache":
        """Reorder the positions from `start` on, row by row: column j comes from `start + columns[:, j]`.

        Args:
            columns: `(batch, positions)`.
        """

        def reorder(states: torch.Tensor) -> torch.Tensor:
            return torch.cat([states[..., :start, :], take_columns(states[..., start:, :], columns, dim=2)], dim=2)

        return PrefixCache([PrefixLayer(reorder(layer.keys), reorder(layer.values)) for layer in self.layers])


def first_positions(cache: Any, length: int) -> PrefixCache:
    """The first `length` positions of a cache that holds all of them, as a prefix for another pass."""
    return PrefixCache(
        [PrefixLayer(layer.keys[..., :length, :], layer.values[..., :length, :]) for layer in cache.layers]
    )


def copy_of(cache: Cache) -> Cache:
    """A cache like this one, whatever its kind, with tensors of its own and without their graph."""
    tensors = [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    return copy.deepcopy(cache, {id(tensor): tensor.detach().clone() for tensor in tensors})


def is_static(cache: Cache | None) -> bool:
    """Whether passes may write into this cache itself, one over the other: a static one without a sliding window."""
    return cache is not None and len(cache.layers) > 0 and all(type(layer) is StaticLayer for layer in cache.layers)


def truncate_to(cache: Cache, length: int) -> Cache:
    """A cache for another pass, which goes on after the first `length` positions of the last one's.

    A static cache is rewound: what it holds further on stays there until it is overwritten, hidden by the causal mask.
    """
    if isinstance(cache, PrefixCache):
        return cache.fork(length)
    for layer in cache.layers:
        layer.cumulative_length.fill_(length)
    return cache


def take_columns(states: torch.Tensor, columns: torch.Tensor, dim: int) -> torch.Tensor:
    """Reorder one dimension of `states` row by row.

    Args:
        states: `(batch, ...)`.
        columns: `(batch, count)`; entry j of a row of the result comes from entry `columns[row, j]`.
        dim: the dimension of `states` to reorder.
    """
    shape = [columns.shape[0], *(columns.shape[1] if axis == dim else 1 for axis in range(1, states.ndim))]
    return torch.take_along_dim(states, columns.reshape(shape), dim=dim)
