"""Plain `generate()` for a model that thinks: the caller sees question + answer, as with any causal language model."""

import torch

from .spans_pccot import starts_of_spans


class LatentGenerationMixin:
    """Opens the thought in `generate()` and hides it again from what is returned."""

    def create_masks_for_generate(self, config, attention_mask, inputs_embeds, **kwargs):
        """The 4-dimensional masks that a compilable cache wants, except where a prompt may hold a thought span.

        The passes of a thought make their own masks from the 2-dimensional one.
        """
        if inputs_embeds.shape[1] > 1:
            return attention_mask
        from transformers.masking_utils import create_masks_for_generate

        return create_masks_for_generate(
            config=config, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )

    def thought_ids(self, num_latent_tokens: int | None = None) -> list[int]:
        """`<bot>`, the latents, `<eot>` and the answer prompt: what stands between a question and its answer."""
        config = self.config
        latents = config.num_latent_tokens if num_latent_tokens is None else num_latent_tokens
        if latents < 1:
            raise ValueError(f"num_latent_tokens must be at least 1, got {latents}")
        for name in ("bot_token_id", "eot_token_id", "latent_token_id"):
            if getattr(config, name) is None:
                raise ValueError(f"the configuration has no {name}: set up the tokenizer first (see run_ccot.py)")
        return [
            config.bot_token_id,
            *[config.latent_token_id] * latents,
            config.eot_token_id,
            *(config.answer_prompt_ids or []),
        ]

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config=None,
        *,
        latent_thought: bool = True,
        num_latent_tokens: int | None = None,
        **kwargs,
    ):
        """Think, then answer.

        A prompt without a thought span gets one, with the answer prompt behind it; both are left out of what is
        returned and do not count towards `max_length` and `min_length`. A prompt that holds a span stays as it is.

        Args:
            inputs: the prompt `(batch, length)`, also accepted as `input_ids`; left padded, with its
                `attention_mask`.
            generation_config: as everywhere.
            latent_thought: False asks for the explicit chain of thought instead: the prompt is left alone (or gets
                the `<bot>` that the model's explicit steps open with).
            num_latent_tokens: c for this call; the configuration's if absent.
            **kwargs: every argument of transformers' `generate()`, and `num_iterations` and `latent_tolerance`
                (see `ThinkingModelMixin.forward`).

        Returns:
            As everywhere: `(batch, length + new tokens)`, or a dictionary with `return_dict_in_generate`.

        Raises:
            ValueError: if some rows hold a span and others do not, the prompt is given as embeddings, it is too
                long for the model, or `prefill_chunk_size` would cut the span.
        """
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        iterations = kwargs.get("num_iterations")
        if iterations is not None and iterations < 0:
            raise ValueError(f"num_iterations must be at least 0, got {iterations}")
        if latent_thought:
            opening = self.thought_ids(num_latent_tokens)
        else:
            opening = [self.config.bot_token_id] if self.config.open_steps_with_bot else []
        if opening and inputs is None:
            raise ValueError("a thought is opened in token ids: pass input_ids (or latent_thought=False)")
        if latent_thought and self._holds_span(inputs):
            opening = []
        if not opening:
            return super().generate(inputs, generation_config, **kwargs)

        length, added = inputs.shape[1], len(opening)
        end = torch.tensor(opening, device=inputs.device).expand(inputs.shape[0], -1)
        prompt = torch.cat([inputs, end], dim=1)
        limit = getattr(self.config, "max_position_embeddings", None)
        if limit is not None and prompt.shape[1] > limit:
            raise ValueError(
                f"the question has {length} tokens and its thought {added}: more than the model's {limit} positions"
            )
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
            raise ValueError(f"prefill_chunk_size={chunk} would cut the thought span at column {length}")
        if kwargs.get("streamer") is not None:
            kwargs["streamer"] = ThoughtHidingStreamer(kwargs["streamer"], length)

        output = super().generate(prompt, generation_config, **kwargs)
        if isinstance(output, torch.Tensor):
            return hide(output, length, added)
        output.sequences = hide(output.sequences, length, added)
        return output

    def _holds_span(self, input_ids: torch.Tensor) -> bool:
        """Whether the rows already hold a thought span."""
        if input_ids.shape[1] < 2:
            return False
        held = starts_of_spans(input_ids, self.config).any(dim=1)
        if held.any() and not held.all():
            odd = int((held != held[0]).nonzero()[0])
            raise ValueError(
                f"ragged thought spans: of rows 0 and {odd}, one holds a span and the other does not; "
                "every row of a batch needs one, or none"
            )
        return bool(held.any())


class ThoughtHidingStreamer:
    """Passes everything on to a streamer except what `generate()` put behind the prompt."""

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
