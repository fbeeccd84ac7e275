"""PCCoT models: backbones that think in latent tokens before they answer (arXiv 2506.18582).

The method is in `jacobi_pccot.py`, the base model that uses it in `backbone_pccot.py`, a training step in
`distillation_pccot.py`. Here is the causal language model around them, and at the end the backbones, each only its difference.
"""

from functools import partial
from typing import Any

import torch
from transformers import (
    GPT2LMHeadModel,
    GPT2Model,
    LlamaForCausalLM,
    LlamaModel,
    MistralForCausalLM,
    MistralModel,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers.cache_utils import Cache
from transformers.masking_utils import create_masks_for_generate
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .answer_modes import DIRECT, EXPLICIT, LATENT, AnswerMode
from .backbone_pccot import PCCoTModelMixin
from .configuration_pccot import PCCoTGPT2Config, PCCoTLlamaConfig, PCCoTMistralConfig, PCCoTQwen3Config
from .configuration_prompt import check_count, check_flag, is_number
from .distillation_pccot import PCCoTOutput, distillation_step, teacher_step
from .gpt2_activation import FusedGeluMixin
from .latent_noise import sources_of_rows
from .own_base_model import OwnBaseModelMixin
from .passes_pccot import compiled_forward
from .prompt_checks import check_shape, first_of
from .prompt_suffix import PromptSuffixMixin
from .spans_pccot import ThoughtSpan, latents_of_spans
from .thought_trace import ThoughtTrace, check_given, trace_thought
from .transformers_versions import CACHE

logger = logging.get_logger(__name__)


class PCCoTForCausalLMMixin(PromptSuffixMixin, OwnBaseModelMixin):
    """A backbone with its language modelling head, made to think; its `base_model_class` is one that thinks."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_iterations: int | None = None,
        latent_tolerance: float | None = None,
        latent_noise: float = 0.0,
        latent_dropout: float = 0.0,
        value_noise: float = 0.0,
        latent_sources: torch.Tensor | None = None,
        latent_embeds: torch.Tensor | None = None,
        cot_input_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ):
        """A causal language model whose thought spans are thought through; with `cot_input_ids`, `training_step`.

        Args:
            input_ids, attention_mask, labels: as everywhere, `(batch, length)`.
            position_ids, past_key_values (or cache), inputs_embeds, use_cache, logits_to_keep: as everywhere.
            num_iterations, latent_tolerance, latent_noise, latent_dropout, value_noise, latent_sources, latent_embeds: see
                `PCCoTModelMixin.forward`.
            cot_input_ids: the teacher's sequence `(batch, teacher length)`, for a training step.
            **kwargs: as everywhere.

        Returns:
            Logits as everywhere.
        """
        self.refuse_beside_manager(kwargs)
        if cot_input_ids is not None:  # DDP and PEFT hand on `forward` alone
            batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
            return self.training_step(**batch, cot_input_ids=cot_input_ids, num_iterations=num_iterations, **kwargs)
        if (given := past_key_values if cache is None else cache) is not None:
            kwargs[CACHE] = given
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            num_iterations=num_iterations,
            latent_tolerance=latent_tolerance,
            latent_noise=latent_noise,
            latent_dropout=latent_dropout,
            value_noise=value_noise,
            latent_sources=latent_sources,
            latent_embeds=latent_embeds,
            **kwargs,
        )

    def training_step(self, **batch) -> PCCoTOutput:
        """Teacher, student and their losses.

        Args:
            **batch: see `distillation_step`; with `teacher_only` the explicit chain alone is trained.
        """
        batch = {name: value for name, value in batch.items() if value is not None}  # PEFT hands on what nobody gave
        return teacher_step(self, **batch) if batch.pop("teacher_only", False) else distillation_step(self, **batch)

    @property
    def answer_modes(self) -> tuple[AnswerMode, ...]:
        """After a latent thought; with an explicit chain; without one (after `run_cot.py --no_cot`)."""
        return LATENT.of(latent_thought=True), EXPLICIT.of(latent_thought=False), DIRECT.of(latent_thought=False)

    def suffix_ids(self, latent_thought: bool = True, num_latent_tokens: int | None = None, **_) -> list[int]:
        """What `generate()` adds after a question: the thought span and the answer prompt, or what opens the steps."""
        if latent_thought:
            return self.thought_ids(num_latent_tokens)
        opening = [self.config.bot_token_id] if self.config.open_steps_with_bot else []
        return [*(self.config.question_suffix_ids or []), *opening]

    batch_options = ("num_iterations", "num_latent_tokens", "latent_thought")
    noise_options = ("latent_noise", "latent_dropout", "value_noise")
    own_options = (*batch_options, "latent_tolerance", *noise_options, "latent_seed")

    def extra_passes(self, latent_thought=True, num_latent_tokens=None, num_iterations=None, **_) -> int:
        iterations = self.config.num_iterations if num_iterations is None else num_iterations
        latents = self.config.num_latent_tokens if num_latent_tokens is None else num_latent_tokens
        check_count("num_iterations", iterations, 0)
        check_flag("latent_thought", latent_thought)
        return self.config.latent_rule.passes(iterations, latents) if latent_thought else 0

    def open_thought(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        num_latent_tokens: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """`open_prompt` for a latent thought: BOS, question, thought span, answer prompt; `hide_prompt` is the inverse.

        Args:
            input_ids, attention_mask: questions `(batch, length)`, left padded.
            num_latent_tokens: c; the configuration's if absent.

        Returns:
            `input_ids` and `attention_mask`, both `(batch, opened length)`.

        Raises:
            ValueError: as `open_prompt`.
        """
        return self.open_prompt(input_ids, attention_mask, num_latent_tokens=num_latent_tokens)

    @torch.no_grad()
    def trace_thought(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        num_iterations: int | None = None,
        num_latent_tokens: int | None = None,
    ) -> ThoughtTrace:
        """What the latents are fed in each pass of `generate()` with these arguments; see `ThoughtTrace`.

        Args:
            input_ids, attention_mask: questions `(batch, length)`, left padded.
            num_iterations, num_latent_tokens: T and c; the configuration's if absent.

        Raises:
            ValueError: as `open_thought`, and for T < 0.
        """
        iterations = self.config.num_iterations if num_iterations is None else num_iterations
        check_count("num_iterations", iterations, 0)
        opened = self.open_thought(input_ids, attention_mask, num_latent_tokens)
        return trace_thought(self.base_model, opened["input_ids"], opened["attention_mask"], iterations)

    def thought_ids(self, num_latent_tokens: int | None = None) -> list[int]:
        """What stands between a question and its answer: its suffix, `<bot>`, latents, `<eot>` and the answer prompt."""
        config = self.config
        latents = config.num_latent_tokens if num_latent_tokens is None else num_latent_tokens
        check_count("num_latent_tokens", latents, 1, config.max_position_embeddings)
        for name in config.special_tokens:
            if getattr(config, name) is None:
                raise ValueError(f"the configuration has no {name}: set up the tokenizer first (see run_ccot.py)")
        span = [config.bot_token_id, *[config.latent_token_id] * latents, config.eot_token_id]
        return [*(config.question_suffix_ids or []), *span, *(config.answer_prompt_ids or [])]

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config=None,
        *,
        latent_embeds: torch.Tensor | None = None,
        **kwargs,
    ):
        """Think, then answer.

        A prompt without a thought span gets one, with the answer prompt after it; both are left out of what is
        returned and do not count towards `max_length` and `min_length`. A prompt that holds a span stays as it is.

        Args:
            inputs: the prompt `(batch, length)`, also accepted as `input_ids`; left padded, with its
                `attention_mask`.
            generation_config: as everywhere; it may also name the options below, and so may `generation_config.json`.
            latent_thought: False asks for the explicit chain of thought instead: the prompt is left alone (or gets
                the `<bot>` that the model's explicit steps open with).
            num_latent_tokens: c for this call; the configuration's if absent.
            latent_noise, latent_dropout, value_noise: sample the thought (see `PCCoTModelMixin.forward`): with
                `num_return_sequences=k` each of the k answers comes from another thought. A question's samples are the same
                in every batch.
            latent_seed: of these samples; drawn from torch's random numbers if absent.
            latent_sources: `(batch, 2)` instead of a seed, to name each row's sample; see `sources_of_rows`.
            latent_embeds: `(batch, c, hidden)`, a thought to answer from, such as a changed one of `trace_thought`, instead
                of thinking (see `PCCoTModelMixin.forward`).
            num_iterations, latent_tolerance: see `PCCoTModelMixin.forward`.
            **kwargs: every argument of transformers' `generate()`.

        Returns:
            As everywhere: `(batch, length + new tokens)`, or a dictionary with `return_dict_in_generate`.

        Raises:
            ValueError: if some rows hold a span and others do not, the prompt is given as embeddings, it needs more
                positions than the model has, `prefill_chunk_size` would cut the span, or an argument is no such thing.
        """
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        options = self.own_options_of(generation_config, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in self.own_options}
        kwargs |= {name: options[name] for name in ("num_iterations", "latent_tolerance") if name in options}
        latent_thought, num_latent_tokens = options.get("latent_thought", True), options.get("num_latent_tokens")
        noise = {name: options[name] for name in self.noise_options if options.get(name)}
        asked = options.get("num_iterations")
        check_count("num_iterations", 0 if asked is None else asked, 0)
        check_flag("latent_thought", latent_thought)
        if latent_embeds is not None:
            check_given(latent_embeds, latent_thought, sampled=bool(noise))
            num_latent_tokens = latent_embeds.shape[1] if num_latent_tokens is None else num_latent_tokens
            kwargs["latent_embeds"] = latent_embeds
        if latent_thought and asked is not None and not self.config.was_trained_at(asked):
            trained = self.config.num_iterations_range or self.config.num_iterations
            logger.warning_once(
                f"num_iterations={asked}: this model was trained with T = {trained} and may answer worse with another"
            )
        if inputs is not None and latent_thought and noise:
            kwargs |= self.sampled_thought(inputs, generation_config, noise, options.get("latent_seed"), kwargs)
        suffix = self.suffix_ids(latent_thought, num_latent_tokens)
        if suffix and inputs is None:
            raise ValueError("a thought is opened in token ids: pass input_ids (or latent_thought=False)")
        if inputs is None:
            return super().generate(inputs, generation_config, **kwargs)
        check_shape(inputs)
        if self.has_suffix(inputs, latent_thought):
            if first_of("prefill_chunk_size", self._sources(generation_config, kwargs)) is not None:
                raise ValueError("a thought that is opened already is read in one pass: leave prefill_chunk_size out")
            return self.generate_with_suffix([], inputs, generation_config, with_bos=False, **kwargs)
        hands_on = latent_thought and kwargs.get("assistant_model") is None  # which would be given it too
        return self.generate_with_suffix(
            suffix,
            inputs,
            generation_config,
            at_suffix=partial(self.written_span, num_latent_tokens) if hands_on else None,
            **kwargs,
        )

    def written_span(self, num_latent_tokens: int | None, column: int) -> dict[str, ThoughtSpan]:
        """Where the thought is that `generate()` writes in the columns from `column` on, for `forward`."""
        latents = self.config.num_latent_tokens if num_latent_tokens is None else num_latent_tokens
        return {"thought_span": ThoughtSpan(column + len(self.config.question_suffix_ids or []), latents)}

    def prepare_inputs_for_generation(
        self, input_ids, *args, inputs_embeds=None, thought_span: ThoughtSpan | None = None, **kwargs
    ):
        """transformers' own; the span is for a pass over the whole sequence, not for later tokens or after a cached prompt.

        `generate()` looks for the name of `inputs_embeds` here.
        """
        model_inputs = super().prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)
        ids = model_inputs.get("input_ids")
        if thought_span is not None and ids is not None and ids.shape[1] == input_ids.shape[1]:
            model_inputs["thought_span"] = thought_span
        return model_inputs

    def sampled_thought(self, inputs, generation_config, noise: dict, seed: int | None, kwargs) -> dict:
        """Arguments of `forward` for a thought with noise.

        Raises:
            ValueError: for a noise below 0, a dropout that is no probability below 1, a seed that is no whole number, and
                beams, which share one thought.
        """
        for name, value in noise.items():
            if not (is_number(value) and value >= 0):
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
            if name == "latent_dropout" and value >= 1:
                raise ValueError(f"latent_dropout must be at least 0 and below 1, got {value!r}")
        if (first_of("num_beams", self._sources(generation_config, kwargs)) or 1) > 1:
            raise ValueError(f"{' and '.join(noise)} need num_beams=1: the beams of a question share its thought")
        sampled: dict[str, Any] = dict(noise)
        if kwargs.get("latent_sources") is None:
            seed = int(torch.randint(2**31, ())) if seed is None else seed
            check_count("latent_seed", seed, 0, 2**63 - 1)
            mask = kwargs.get("attention_mask")
            sampled["latent_sources"] = sources_of_rows(inputs, self._mask_of(inputs) if mask is None else mask, seed)
        several = (first_of("num_return_sequences", self._sources(generation_config, kwargs)) or 1) > 1
        if several and not first_of("do_sample", self._sources(generation_config, kwargs)):
            # Greedy answers to several thoughts: transformers allows them by the name of sampling alone.
            sampled |= {"do_sample": True, "top_k": 1, "top_p": 1.0, "temperature": 1.0}
        return sampled

    def has_suffix(self, input_ids: torch.Tensor, latent_thought: bool = True, **_) -> bool:
        """Whether the rows already hold a thought span.

        Raises:
            ValueError: if some do and some do not.
        """
        latent = self.config.latent_token_id
        if not latent_thought or latent is None or not (input_ids == latent).any():
            return False
        held = latents_of_spans(input_ids, self.config).any(dim=1)
        if held.any() and not held.all():
            odd = int((held != held[0]).nonzero()[0])
            raise ValueError(
                f"ragged thought spans: of rows 0 and {odd}, one holds a span and the other does not; "
                "every row of a batch needs one, or none"
            )
        return bool(held.any())

    def _prefill(self, input_ids, generation_config, model_kwargs, *args, **kwargs):
        """transformers' first pass of `generate()`; where it compiles decoding, the passes of a thought go with it."""
        in_one_piece = generation_config.prefill_chunk_size is None
        if not in_one_piece:
            model_kwargs.pop("thought_span", None)  # whose column is the prompt's, not a chunk's
        if in_one_piece and self._valid_auto_compile_criteria(model_kwargs, generation_config):
            options = generation_config.compile_config or self._default_compile_config()
            model_kwargs["compiled_forward"] = compiled_forward(options)
        try:
            return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)
        finally:
            model_kwargs.pop("compiled_forward", None)  # decoding has a compiled pass of its own

    def create_masks_for_generate(self, config, attention_mask, inputs_embeds, **kwargs):
        """The 4-dimensional masks that a compilable cache wants, except where a prompt may hold a thought span.

        The passes of a thought make their own masks from the 2-dimensional one.
        """
        if inputs_embeds.shape[1] > 1:
            return attention_mask
        return create_masks_for_generate(
            config=config, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )


# --- the backbones ---


class PCCoTGPT2Model(PCCoTModelMixin, FusedGeluMixin, GPT2Model):
    config_class = PCCoTGPT2Config

    # GPT2Model withholds the cache from checkpointed blocks; ours survives their replay. The blocks keep their own flag.
    gradient_checkpointing = property(lambda self: False, lambda self, value: None)


class PCCoTGPT2LMHeadModel(PCCoTForCausalLMMixin, GPT2LMHeadModel):
    config_class = PCCoTGPT2Config
    base_model_class = PCCoTGPT2Model


class PCCoTLlamaModel(PCCoTModelMixin, LlamaModel):
    config_class = PCCoTLlamaConfig


class PCCoTLlamaForCausalLM(PCCoTForCausalLMMixin, LlamaForCausalLM):
    config_class = PCCoTLlamaConfig
    base_model_class = PCCoTLlamaModel


class PCCoTMistralModel(PCCoTModelMixin, MistralModel):
    config_class = PCCoTMistralConfig


class PCCoTMistralForCausalLM(PCCoTForCausalLMMixin, MistralForCausalLM):
    config_class = PCCoTMistralConfig
    base_model_class = PCCoTMistralModel


class PCCoTQwen3Model(PCCoTModelMixin, Qwen3Model):
    config_class = PCCoTQwen3Config


class PCCoTQwen3ForCausalLM(PCCoTForCausalLMMixin, Qwen3ForCausalLM):
    config_class = PCCoTQwen3Config
    base_model_class = PCCoTQwen3Model
