"""The method: latent tokens refined in parallel by Jacobi iteration (PCCoT, arXiv 2506.18582, section 3.2).

Pass 0 reads the question, `<bot>` and the latent tokens' own embeddings. In pass t = 1..T latent i takes the last hidden
state of position i - 1 from pass t - 1; the first latent takes that of `<bot>`, which never changes. What follows the
span attends to the keys and values of the last pass.

Most of that need not be computed. Latent t is final after pass t, so pass t + 1 starts behind it; and what pass T does
to latent c depends, going back one latent a pass, on no latent behind c - T + t in pass t. So each pass runs a window of
W = c - T + 1 positions that moves one position a pass, and the last one takes along what follows the span: T + 1
passes, W = 1 (one latent after the other) for T >= c.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import Cache
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import can_return_tuple

from .cache_pccot import PrefixCache, behind, can_rewind, take_columns
from .configuration_pccot import check_count
from .outputs_pccot import Thought, ThoughtOutput, gather_columns, join_columns, output_columns
from .positions import positions_from_mask
from .spans_pccot import ThoughtSpan, find_thought_spans
from .weight_gradients_pccot import shared_weight_gradients


class ThinkingModelMixin:
    """A backbone's base model (the one without a head) that thinks wherever its input holds a thought span."""

    # `static_pass` compiled, while `generate()` compiles: for the passes behind the question, over a static cache.
    compiled_pass: Callable | None = None

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
        # Kept, because to look for them in every pass would cost more than some of the passes' operations.
        self.checkpointable = [module for module in self.modules() if isinstance(module, GradientCheckpointingLayer)]
        for layer in self.checkpointable:
            # A PrefixCache survives the replay of a layer; `forward` lets no other cache near a checkpoint.
            layer._can_checkpoint_with_cache = True

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        thought_span: ThoughtSpan | None = None,
        num_iterations: int | None = None,
        latent_tolerance: float | None = None,
        **kwargs,
    ):
        """Hidden states after thinking.

        Args:
            input_ids: `(batch, length)`, with as many thought spans (none is fine) in every row.
            attention_mask: `(batch, past + length)`, 1 for tokens and 0 for padding.
            position_ids: `(batch, length)`; counted from the attention mask if absent.
            past_key_values: any cache; the new positions are appended.
            inputs_embeds: `(batch, length, hidden)` instead of `input_ids`; a span in them must be named.
            thought_span: where the span is, if known: spares the search, which reads the ids on the host.
            num_iterations: T for this call; the configuration's if absent.
            latent_tolerance: end a row's iteration once the largest relative change of its latents' inputs is below
                this. Costs one host synchronisation per pass.

        Returns:
            `last_hidden_state` `(batch, length, hidden)` and, on request, hidden states and attentions, each column
            from the last pass that computed it (attention over keys that a pass did not see yet is 0).

        Raises:
            ValueError: for T < 0, ragged or cut spans, a 4-dimensional mask together with a span, or a cache that
                has dropped positions.
        """
        config = self.config
        iterations = config.num_iterations if num_iterations is None else num_iterations
        check_count("num_iterations", iterations, 0)
        if latent_tolerance is not None and not latent_tolerance >= 0:
            raise ValueError(f"latent_tolerance must be a number of at least 0, got {latent_tolerance!r}")
        length = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = positions_from_mask(attention_mask)[:, -length:]
        kwargs |= {"attention_mask": attention_mask, "position_ids": position_ids}

        spans = []
        if iterations == 0:
            pass  # the latents stay filler tokens: an ordinary forward pass
        elif thought_span is not None:
            spans = [thought_span]
        elif input_ids is not None and length > 1:
            has_past = past_key_values is not None and bool(past_key_values.get_seq_length() > 0)
            spans = find_thought_spans(input_ids, config, has_past)
        if not spans:
            return self._plain(input_ids, inputs_embeds, past_key_values, use_cache, kwargs)

        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError("a thought span needs a 2-dimensional attention mask (batch, length)")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        in_place = can_rewind(past_key_values) and spans[0].is_aligned and not torch.is_grad_enabled()
        in_place = in_place and (config.use_cache if use_cache is None else use_cache)
        cache = past_key_values if in_place else PrefixCache.of(past_key_values)
        past = int(cache.get_seq_length())
        think = self._think if spans[0].is_aligned else self._think_ragged
        pieces, starts = [], [0, *(span.columns for span in spans[1:]), length]
        for span, start, end in zip(spans, starts, starts[1:], strict=False):
            within = ThoughtSpan(span.columns - start, span.num_latents) if span.is_aligned else span
            part = {
                "attention_mask": None if attention_mask is None else attention_mask[:, : past + end],
                "position_ids": None if position_ids is None else position_ids[:, start:end],
            }
            piece, cache = think(
                inputs_embeds[:, start:end], cache, within, iterations, latent_tolerance, kwargs | part
            )
            pieces.append(piece)
            cache = cache if in_place else PrefixCache.of(cache)
        output = join_columns(pieces)
        if in_place or isinstance(past_key_values, PrefixCache):
            output.past_key_values = cache
        elif config.use_cache if use_cache is None else use_cache:
            target = DynamicCache(config=config) if past_key_values is None else past_key_values
            output.past_key_values = cache.pour(target, past)
        return output

    def _plain(self, input_ids, inputs_embeds, cache, use_cache, kwargs):
        """The backbone as it is, without a thought."""
        if isinstance(cache, PrefixCache):
            if inputs_embeds is None:
                inputs_embeds = self.get_input_embeddings()(input_ids)
            return self._pass(inputs_embeds, cache, **kwargs)
        if self.training and self._checkpointed_layers():
            if cache is not None:
                raise ValueError("gradient checkpointing needs whole sequences: leave past_key_values out")
            use_cache = False
        return super().forward(
            input_ids=input_ids, inputs_embeds=inputs_embeds, past_key_values=cache, use_cache=use_cache, **kwargs
        )

    def think(
        self, embeds: torch.Tensor, attention_mask: torch.Tensor, span: ThoughtSpan, num_iterations: int | None = None
    ) -> Thought:
        """A training example's question, thought and answer, and what another continuation of the question needs.

        Args:
            embeds: `(batch, length, hidden)`: question, thought span, answer.
            attention_mask: `(batch, length)`.
            span: where the thought span is; in the same columns in every row.
            num_iterations: T; the configuration's if absent.
        """
        iterations = self.config.num_iterations if num_iterations is None else num_iterations
        positions = {"attention_mask": attention_mask, "position_ids": positions_from_mask(attention_mask)}
        last = {"output_hidden_states": True}
        pieces, first, _ = self._iterate(embeds, PrefixCache(), span, iterations, None, positions, last)
        return Thought(pieces, first.fork(span.columns), span)

    def one_weight_gradient(self):
        """A context in which the passes of a training step share their weights' gradients, where that is possible."""
        shareable = self.training and torch.is_grad_enabled() and not self._checkpointed_layers()
        return shared_weight_gradients(self) if shareable else nullcontext()

    def _pass(self, inputs_embeds, cache, attention_mask, position_ids, **kwargs):
        """One forward pass of the backbone over new columns behind the cache's prefix."""
        if self.training and any(reentrant(layer) for layer in self._checkpointed_layers()):
            raise ValueError(
                "latent thought needs gradient checkpointing with use_reentrant=False: otherwise no gradient reaches "
                "the cached question"
            )
        sdpa, device = self.config._attn_implementation == "sdpa", inputs_embeds.device.type
        if self.training and sdpa and device != "cpu" and attention_mask is not None and attention_mask.ndim == 2:
            attention_mask = unread_masks(self.config, inputs_embeds, cache, attention_mask, position_ids)
        return super().forward(
            inputs_embeds=inputs_embeds,
            past_key_values=cache,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=True,
            **kwargs,
        )

    def _pass_compiled(self, inputs_embeds, cache, attention_mask, position_ids, **kwargs):
        """`_pass` over a static cache, by `compiled_pass`."""
        # Of one shape and layout in every pass, or it would be compiled anew.
        if attention_mask is not None:
            missing = cache.layers[0].max_cache_len - attention_mask.shape[1]
            attention_mask = nn.functional.pad(attention_mask, (0, missing))
        inputs_embeds, position_ids = (
            tensor.clone(memory_format=torch.contiguous_format) for tensor in (inputs_embeds, position_ids)
        )
        states = self.compiled_pass(self, inputs_embeds, cache, attention_mask, position_ids, kwargs)
        # A CUDA graph hands out the same memory in every run.
        return ThoughtOutput(last_hidden_state=states.clone())

    def _checkpointed_layers(self) -> list:
        return [layer for layer in self.checkpointable if layer.gradient_checkpointing]

    def _project(self, hidden_states):
        return self.prj(hidden_states) if self.config.use_projection else hidden_states

    def _think(self, embeds, cache, span, iterations, tolerance, kwargs):
        """The Jacobi iteration over `embeds` `(batch, length, hidden)`, whose span is in the same columns in each row.

        Returns:
            The backbone's output for all columns, and the cache of the whole.
        """
        pieces, _, cache = self._iterate(embeds, cache, span, iterations, tolerance, kwargs)
        return join_columns(pieces), cache

    def _iterate(self, embeds, cache, span, iterations, tolerance, kwargs, last=None):
        """The passes of `_think`.

        Args:
            last: further arguments of the last pass alone.

        Returns:
            Outputs that stand side by side: of each pass the columns that no later pass computed again. And the caches
            after the first and after the last pass.
        """
        bot, latents, length, past = span.columns, span.num_latents, embeds.shape[1], int(cache.get_seq_length())
        iterations = min(iterations, latents)
        # A tolerance looks at every latent in every pass; otherwise the window ends where nothing reads on.
        window = latents if tolerance is not None else latents - iterations + 1
        span_end = bot + latents + 1
        mask, positions = kwargs.pop("attention_mask"), kwargs.pop("position_ids")
        if positions is None:
            positions = torch.arange(past, past + length, device=embeds.device)[None]

        run_pass = self._pass

        def run(inputs, cache, start, end):
            seen = None if mask is None else mask[:, : past + end]
            more = (last or {}) if end == length else {}
            return run_pass(inputs, cache, seen, positions[:, start:end], **kwargs, **more)

        start, end = 0, length if iterations == 0 else bot + window
        output, first, pieces = run(embeds[:, :end], cache, start, end), cache, []
        # The passes behind the question have one shape; compiled ones give the last states alone.
        last_alone = output.hidden_states is None and output.attentions is None
        if self.compiled_pass is not None and not isinstance(cache, PrefixCache) and last_alone:
            run_pass = self._pass_compiled
        thought = output.last_hidden_state[:, bot:]  # from column bot + t on, after pass t
        inputs, settled = None, None
        for t in range(1, iterations + 1):
            end = span_end if tolerance is not None else bot + t + window
            previous, inputs = inputs, self._project(thought[:, : end - bot - t])
            if tolerance is not None and previous is not None:
                # A settled row keeps its inputs, so that no row's answer depends on its neighbours in the batch.
                change = relative_change(inputs, previous[:, 1:])
                settled = change < tolerance if settled is None else settled | (change < tolerance)
                if settled.all():
                    break
                inputs = torch.where(settled[:, None, None], previous[:, 1:], inputs)
            pieces.append(output_columns(output, bot + t - start))
            start = bot + t
            cache = behind(cache, past + start)
            if t == iterations:
                # The answer rides along with the last pass.
                output = run(torch.cat([inputs, embeds[:, span_end:]], dim=1), cache, start, end := length)
            else:
                output = run(inputs, cache, start, end)
            thought = output.last_hidden_state
        pieces.append(output)
        if end < length:  # ended early: the answer has a pass of its own
            cache = behind(cache, past + span_end)
            pieces.append(run(embeds[:, span_end:], cache, span_end, length))
        return pieces, first, cache

    def _think_ragged(self, embeds, cache, span, iterations, tolerance, kwargs):
        """As `_think`, for spans that start in different columns (right padding, unequal continuations).

        Rows are shifted right until their spans line up, and the results shifted back.
        """
        batch, length, past = *embeds.shape[:2], cache.get_seq_length()
        mask, positions = kwargs.pop("attention_mask"), kwargs.pop("position_ids")
        if mask is None:
            mask = embeds.new_ones(batch, past + length, dtype=torch.long)
        if positions is None:
            positions = positions_from_mask(mask)[:, -length:]
        bots = torch.tensor(span.columns, device=embeds.device)
        shift = bots.max() - bots
        widened = length + max(span.columns) - min(span.columns)
        source = torch.arange(widened, device=embeds.device) - shift[:, None]
        exists = (source >= 0) & (source < length)
        source = source.clamp(0, length - 1)
        aligned = kwargs | {
            "attention_mask": torch.cat([mask[:, :past], mask[:, past:].gather(1, source) * exists], dim=1),
            "position_ids": positions.expand(batch, -1).gather(1, source),
        }
        embeds = take_columns(embeds, source, dim=1)
        span = ThoughtSpan(max(span.columns), span.num_latents)
        output, cache = self._think(embeds, cache, span, iterations, tolerance, aligned)
        back = torch.arange(length, device=embeds.device) + shift[:, None]
        return gather_columns(output, back, past), cache.gather(back, past)


def unread_masks(config, inputs_embeds, cache, attention_mask, position_ids):
    """What transformers makes of a 2-dimensional mask for sdpa, without a look whether it hides anything.

    That look spares the mask where nothing is padded, but makes the host wait for the device in every step.
    """

    def every_pair(batch, head, query, key):  # a condition beside the usual ones means that the mask is needed
        return query.new_ones((), dtype=torch.bool)

    return create_masks_for_generate(
        config, inputs_embeds, attention_mask, cache, position_ids, and_mask_function=every_pair
    )


def static_pass(model, inputs_embeds, cache, attention_mask, position_ids, kwargs) -> torch.Tensor:
    """The last hidden states of one pass of a thinking model's backbone over columns behind a static cache's content."""
    return model._pass(inputs_embeds, cache, attention_mask, position_ids, **kwargs).last_hidden_state


def reentrant(layer: GradientCheckpointingLayer) -> bool:
    """Whether a checkpointed layer recomputes in the reentrant form."""
    options = getattr(layer._gradient_checkpointing_func, "keywords", {})
    return bool(options.get("use_reentrant", False))


def relative_change(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The largest relative change of any latent; two `(batch, latents, hidden)` -> `(batch,)`."""
    distance = (new - old).float().norm(dim=-1) / old.float().norm(dim=-1).clamp(min=1e-12)
    return distance.amax(dim=-1)
