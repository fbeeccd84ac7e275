"""`generate()` for models that put tokens of their own behind a prompt: the caller sees question + answer."""

import torch


class HiddenPromptMixin:
    """Lets a family open its prompts (a thought span, a separator) and hides that again from what is returned.

    A class that mixes this in names its base model in `base_model_class`.
    """

    base_model_class: type

    def save_pretrained(self, *args, **kwargs):
        """As everywhere; the configuration also tells AutoModel where the base model's code is."""
        base = self.base_model_class
        auto_map = dict(getattr(self.config, "auto_map", None) or {})
        self.config.auto_map = auto_map | {"AutoModel": f"{base.__module__.rpartition('.')[2]}.{base.__name__}"}
        return super().save_pretrained(*args, **kwargs)

    def generate_behind(self, opening: list[int], inputs: torch.LongTensor, generation_config=None, **kwargs):
        """transformers' `generate()` with `opening` behind every row of the prompt.

        The opening is left out of what is returned, what a streamer sees, and `max_length` and `min_length`. A
        dictionary holds no cache: it would not fit the returned sequences.

        Args:
            opening: token ids.
            inputs: `(batch, length)`, left padded, with its `attention_mask` among the keyword arguments.
            generation_config, **kwargs: as everywhere.

        Raises:
            ValueError: if the prompt is too long for the model, or `prefill_chunk_size` would cut the opening.
        """
        length, added = inputs.shape[1], len(opening)
        end = torch.tensor(opening, device=inputs.device).expand(inputs.shape[0], -1)
        prompt = torch.cat([inputs, end], dim=1)
        limit = getattr(self.config, "max_position_embeddings", None)
        if limit is not None and prompt.shape[1] > limit:
            raise ValueError(
                f"the question has {length} tokens and what follows it {added}: more than the model's {limit} positions"
            )
        if self.training and any(getattr(module, "gradient_checkpointing", False) for module in self.modules()):
            kwargs["use_cache"] = False  # checkpointed layers keep no cache
        positions = kwargs.get("position_ids")
        if positions is not None and positions.shape[1] == length:
            behind = positions[:, -1:] + torch.arange(1, added + 1, device=positions.device)
            kwargs["position_ids"] = torch.cat([positions, behind], dim=1)
        for name, fill in (("attention_mask", 1), ("token_type_ids", 0)):
            if kwargs.get(name) is not None:
                kwargs[name] = torch.nn.functional.pad(kwargs[name], (0, added), value=fill)
        for name in ("max_length", "min_length"):
            given = [kwargs, vars(generation_config or {}) if generation_config else {}, vars(self.generation_config)]
            value = next((source[name] for source in given if source.get(name) is not None), None)
            if value is not None:
                kwargs[name] = value + added
        chunk = kwargs.get("prefill_chunk_size") or getattr(generation_config, "prefill_chunk_size", None)
        if chunk is not None and length // chunk != (prompt.shape[1] - 1) // chunk:
            raise ValueError(f"prefill_chunk_size={chunk} would cut what stands behind the question at column {length}")
        if kwargs.get("streamer") is not None:
            kwargs["streamer"] = HidingStreamer(kwargs["streamer"], length)

        output = super().generate(prompt, generation_config, **kwargs)
        if isinstance(output, torch.Tensor):
            return hide(output, length, added)
        output.sequences = hide(output.sequences, length, added)
        # It holds what is hidden, so it does not continue the sequences that the caller sees.
        output.past_key_values = None
        return output


class HidingStreamer:
    """Passes everything on to a streamer except what `generate_behind()` put behind the prompt."""

    def __init__(self, streamer, prompt_length: int):
        self.streamer, self.prompt_length = streamer, prompt_length

    def put(self, value: torch.Tensor):
        if self.prompt_length is not None:
            value, self.prompt_length = value[..., : self.prompt_length], None
        self.streamer.put(value)

    def end(self):
        self.streamer.end()


def hide(sequences: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """`(batch, length)` without the `count` columns from `start` on."""
    return torch.cat([sequences[:, :start], sequences[:, start + count :]], dim=1)
