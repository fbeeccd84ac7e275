"""A backbone that thinks: the base model of every `pccot-*` model.

`forward` finds the thought span, `think` hands it to the method in `jacobi_pccot.py`.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, initialization
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .complete_weights import CompleteWeightsMixin
from .configuration_prompt import check_count, is_number
from .foreign_engines import refuse_foreign_engine
from .jacobi_pccot import jacobi_until_settled
from .latent_gain import LatentGain, embedding_scale
from .latent_noise import LatentNoise, seeds_of_samples
from .latent_update import LatentUpdate
from .passes_pccot import FastPasses, gather_columns, join_columns
from .positions import positions_from_mask
from .prefix_cache import PrefixCache, is_static, take_columns
from .spans_pccot import Alignment, ThoughtSpan, find_thought_spans
from .thought_trace import put_latents
from .transformers_versions import CACHE
from .value_noise import ValueNoise

logger = logging.get_logger(__name__)


class PCCoTModelMixin(CompleteWeightsMixin):
    """A backbone's base model (the one without a head) that thinks wherever its input holds a thought span."""

    def __init__(self, config):
        super().__init__(config)
        if config.use_projection:
            # `prj` is what published checkpoints call it.
            self.prj = nn.Sequential(
                nn.Linear(config.hidden_size, config.hidden_size),
                nn.GELU(),
                nn.Linear(config.hidden_size, config.hidden_size),
                nn.LayerNorm(config.hidden_size),
            )
            self.post_init()
        elif config.scale_latents:
            self.latent_gain = LatentGain(config.hidden_size)
        if config.latent_rule.weights is not None:
            self.latent_update = config.latent_rule.weights(config)
            self.post_init()
        self.start_gain()
        for layer in self._layers_to_checkpoint():
            # A PrefixCache survives the replay of a layer; `forward` lets no other cache near a checkpoint.
            layer._can_checkpoint_with_cache = True

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        thought_span: ThoughtSpan | None = None,
        num_iterations: int | None = None,
        latent_tolerance: float | None = None,
        latent_noise: float = 0.0,
        latent_dropout: float = 0.0,
        value_noise: float = 0.0,
        latent_sources: torch.Tensor | None = None,
        latent_embeds: torch.Tensor | None = None,
        compiled_forward=None,
        cache: Cache | None = None,
        **kwargs,
    ):
        """Hidden states after thinking.

        Args:
            input_ids: `(batch, length)`, with as many thought spans (none is fine) in every row.
            attention_mask: `(batch, past + length)`, 1 for tokens and 0 for padding.
            position_ids: `(batch, length)`; counted from the attention mask if absent.
            past_key_values, cache: any cache, under either name; the new positions are appended.
            inputs_embeds: `(batch, length, hidden)` instead of `input_ids`; a span in them must be named.
            thought_span: where the span is, if known: spares the search, which reads the ids on the host.
            num_iterations: T for this call; the configuration's if absent.
            latent_tolerance: end a row's iteration once the largest relative change of its latents' inputs is below
                this. Costs one host synchronisation per pass.
            latent_noise: standard deviation of Gaussian noise on a latent's input, relative to the input's root mean square.
            latent_dropout: probability with which an element of a latent's input is dropped.
            value_noise: standard deviation of random factors of the singular values of every value matrix: each row thinks
                with weights of its own, over the question too, and answers with the model's; see `ValueNoise`.
            latent_sources: `(batch, 2)`, what the random numbers of a row come from; see `sources_of_rows`.
            latent_embeds: `(batch, c, hidden)`, a thought to go on from instead of thinking one: the inputs of the latents
                in the last pass, which is then the only one. That pass alone is what the tokens after the thought attend
                to; a latent that is changed in an earlier pass, later passes would compute anew from the question.
            compiled_forward: see `FastPasses`.

        Returns:
            `last_hidden_state` `(batch, length, hidden)` and, on request, hidden states and attentions, each column
            from the last pass that computed it (attention over keys that a pass did not see yet is 0).

        Raises:
            ValueError: for T < 0, ragged or cut spans, a 4-dimensional mask together with a span, a cache that has dropped
                positions, `latent_embeds` without a span that they fit, or `value_noise` where nothing is thought or layers
                are computed twice (gradient checkpointing).
        """
        refuse_foreign_engine(self.config, cache, kwargs)
        given = past_key_values if cache is None else cache
        iterations = self.config.num_iterations if num_iterations is None else num_iterations
        check_count("num_iterations", iterations, 0)
        if latent_tolerance is not None and not (is_number(latent_tolerance) and latent_tolerance >= 0):
            raise ValueError(f"latent_tolerance must be a number of at least 0, got {latent_tolerance!r}")
        length = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = positions_from_mask(attention_mask)[:, -length:]

        spans = [thought_span] if thought_span is not None else []
        if length > 1 and not spans and (iterations > 0 or latent_embeds is not None):
            spans = self.look_for_spans(input_ids, given)
        if latent_embeds is not None and (spans or not holds_past(given)):  # with neither, this is a step of the answer
            embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
            inputs_embeds, input_ids = put_latents(embeds, spans, latent_embeds), None
            spans = []  # nothing is left to think
        if (value_noise or latent_noise or latent_dropout) and iterations == 0:
            raise ValueError("noise is of a thought, and with num_iterations=0 there is none")
        if not spans or iterations == 0:  # T = 0: the latents stay filler tokens
            if self.training and self.is_checkpointed():
                if given is not None:
                    raise ValueError("gradient checkpointing needs whole sequences: leave the cache out")
                use_cache = False
            return self.plain_forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **{CACHE: given},
                **kwargs,
            )

        if self.training and self.check_checkpointing() and value_noise:
            raise ValueError(
                "value_noise is not there when layers are computed again: leave gradient checkpointing out"
            )
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError("a thought span needs a 2-dimensional attention mask (batch, length)")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        in_place = use_cache and is_static(given) and spans[0].is_aligned and not torch.is_grad_enabled()
        cache = given if in_place else PrefixCache.from_cache(given)
        past = int(cache.get_seq_length())
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=inputs_embeds.device)[None]

        noise, values = None, None
        if latent_noise or latent_dropout or value_noise:
            seeds = seeds_of_samples(latent_sources, len(inputs_embeds))
            noise = LatentNoise(latent_noise, latent_dropout, seeds) if latent_noise or latent_dropout else None
            values = ValueNoise(self, value_noise, seeds) if value_noise else None
        thought = {"iterations": iterations, "tolerance": latent_tolerance, "noise": noise, "values": values}
        thought |= {"compiled_forward": None if value_noise else compiled_forward}
        think = self.think_each if len(spans) > 1 else self.think if spans[0].is_aligned else self.think_ragged
        output, cache = think(
            inputs_embeds,
            attention_mask,
            position_ids,
            cache,
            spans if len(spans) > 1 else spans[0],
            **thought,
            **kwargs,
        )
        if in_place:
            setattr(output, CACHE, cache)
        elif use_cache:
            target = DynamicCache(config=self.config) if given is None else given
            setattr(output, CACHE, cache.append_to(target, past))
        return output

    def look_for_spans(self, input_ids: torch.Tensor | None, cache: Cache | None) -> list[ThoughtSpan]:
        """The thought spans of a prompt; says once where a model is trained, or asked in embeddings, without any."""
        has_past = holds_past(cache)
        spans = [] if input_ids is None else find_thought_spans(input_ids, self.config, has_past)
        if not spans and not has_past:
            if input_ids is None:
                logger.warning_once(
                    "inputs_embeds show no thought span, so nothing is thought: name it (thought_span), or pass input_ids"
                )
            elif self.training:
                logger.warning_once(
                    "a training step without a thought span trains this model to answer without thinking: open the prompts "
                    "first (model.open_prompt, or latent_cot.training.open_prompts; docs/training.md), if that is not meant"
                )
        return spans

    def think(
        self, embeds, mask, positions, cache, span, iterations, tolerance, noise, values, compiled_forward, **options
    ):
        """The Jacobi iteration over `embeds` `(batch, length, hidden)`, whose span is in the same columns in each row.

        Args:
            noise: a `LatentNoise` of the thought.
            values: a `ValueNoise`: weights of the thought, which the answer does not have.

        Returns:
            Outputs for every column, and the cache that covers them.
        """
        passes = FastPasses(self, mask, positions, cache, options, compiled_forward=compiled_forward)
        run = passes if values is None else values.before(span.bot + 1 + span.num_latents, passes)
        project = self.project if noise is None else noise.after(self.project, span.num_latents, embeds)
        if tolerance is None:
            states = self.latent_rule.think(run, embeds, span.bot, span.num_latents, iterations, project)
        elif not self.latent_rule.settles:
            raise ValueError(
                f"latent_tolerance needs latents that settle, and latent_update={self.latent_rule.name!r} has none: leave it out"
            )
        else:
            states = jacobi_until_settled(run, embeds, span.bot, span.num_latents, iterations, project, tolerance)
        return passes.output(states), passes.cache

    def think_each(self, embeds, mask, positions, cache, spans, **thought):
        """`think` for several spans per row, one after the other, each up to where the next one starts."""
        past, length, outputs = int(cache.get_seq_length()), embeds.shape[1], []
        starts = [0, *(span.bot for span in spans[1:])]
        for span, start, end in zip(spans, starts, [*starts[1:], length], strict=True):
            within = ThoughtSpan(span.bot - start, span.num_latents)
            seen = None if mask is None else mask[:, : past + end]
            if isinstance(cache, PrefixCache):
                cache = PrefixCache.from_cache(cache)
            output, cache = self.think(embeds[:, start:end], seen, positions[:, start:end], cache, within, **thought)
            outputs.append(output)
        return join_columns(outputs), cache

    def think_ragged(self, embeds, mask, positions, cache, span, **thought):
        """`think` for spans that start in different columns (right padding, unequal continuations).

        Rows are shifted right until their spans line up, and the results shifted back.
        """
        (batch, length), past = embeds.shape[:2], int(cache.get_seq_length())
        if mask is None:
            mask = embeds.new_ones(batch, past + length, dtype=torch.long)
        aligned = Alignment.of(span, length, embeds.device)
        shifted = mask[:, past:].gather(1, aligned.source) * aligned.exists
        output, cache = self.think(
            take_columns(embeds, aligned.source, dim=1),
            torch.cat([mask[:, :past], shifted], dim=1),
            positions.expand(batch, -1).gather(1, aligned.source),
            cache,
            aligned.span,
            **thought,
        )
        return gather_columns(output, aligned.back, past), cache.gather(aligned.back, past)

    def passes(self, attention_mask, cache=None, last_options=None) -> FastPasses:
        """A runner for the passes of a training step over whole sequences, or over what follows a `PrefixCache`."""
        cache = PrefixCache() if cache is None else cache
        positions = positions_from_mask(attention_mask)[:, int(cache.get_seq_length()) :]
        return FastPasses(self, attention_mask, positions, cache, last_options=last_options)

    def plain_forward(self, **kwargs):
        """The backbone's own forward pass: nothing is thought."""
        return super().forward(**kwargs)

    def project(self, hidden_states: torch.Tensor, first: int = 0) -> torch.Tensor:
        """A latent's input from the hidden state before it, whichever latent it is; two `(batch, latents, hidden)`."""
        if self.config.use_projection:
            return self.prj(hidden_states)
        return self.latent_gain(hidden_states) if self.config.scale_latents else hidden_states

    @property
    def latent_rule(self) -> LatentUpdate:
        """How a pass makes the latents' inputs, with the weights that it has here."""
        rule = self.config.latent_rule
        return rule if rule.weights is None else replace(rule, combine=self.latent_update, weights=None)

    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:  # after its children: the embeddings and the norm are there
            self.start_gain()

    def start_gain(self) -> None:
        """Put the latents on the scale of the embeddings as they are, unless a checkpoint has brought its own gain."""
        gain, embeddings = self.gain_weight, self.get_input_embeddings()
        if gain is None or embeddings.weight.is_meta:
            return
        norm: Any = self.norm if hasattr(self, "norm") else self.ln_f  # the last one, whatever a backbone calls it
        initialization.constant_(gain, embedding_scale(embeddings, norm))

    @property
    def gain_weight(self) -> nn.Parameter | None:
        """What sets the size of the latents' inputs, `(hidden,)`; None where they are hidden states as they are."""
        if not self.config.scale_latents:
            return None
        if self.config.use_projection:
            return (
                self.prj[-1].weight if hasattr(self, "prj") else None
            )  # the backbone draws its weights before there is one
        return self.latent_gain.weight if hasattr(self, "latent_gain") else None

    def is_checkpointed(self) -> bool:
        """Whether layers are recomputed in the backward pass."""
        return any(layer.gradient_checkpointing for layer in self._layers_to_checkpoint())

    def check_checkpointing(self) -> bool:
        """`is_checkpointed` for a step that thinks.

        Raises:
            ValueError: for the reentrant form, through which no gradient would reach the cached question.
        """
        for layer in self._layers_to_checkpoint():
            if layer.gradient_checkpointing:
                if getattr(layer._gradient_checkpointing_func, "keywords", {}).get("use_reentrant", False):
                    raise ValueError(
                        "latent thought needs gradient checkpointing with use_reentrant=False: otherwise no gradient "
                        "reaches the cached question"
                    )
                return True
        return False

    def _layers_to_checkpoint(self) -> list[GradientCheckpointingLayer]:
        return [module for module in self.modules() if isinstance(module, GradientCheckpointingLayer)]


def holds_past(cache: Cache | None) -> bool:
    return cache is not None and bool(cache.get_seq_length() > 0)
