"""PCCoT models: a backbone that thinks in latent tokens before it answers (arXiv 2506.18582).

The method is in `thinking_pccot.py`, the losses in `distillation_pccot.py`. Here are the two faces of a causal language
model, `forward()` and `generate()`, and at the end the backbones, each only its difference.
"""

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
from transformers.masking_utils import create_masks_for_generate
from transformers.utils.generic import can_return_tuple

from .configuration_pccot import (
    PCCoTGPT2Config,
    PCCoTLlamaConfig,
    PCCoTMistralConfig,
    PCCoTQwen3Config,
    check_count,
)
from .cross_entropy_pccot import labelled, mean_cross_entropies
from .distillation_pccot import PCCoTOutput, distillation_loss, states_at
from .generation import HiddenPromptMixin
from .gpt2 import FusedGeluMixin
from .spans_pccot import ThoughtSpan, starts_of_spans
from .thinking_pccot import ThinkingModelMixin, static_pass


class LatentThoughtMixin(HiddenPromptMixin):
    """A backbone with its language modelling head, made to think; its `base_model_class` is one that thinks."""

    # The loss is a mean over the batch; the Trainer must not scale it by a token count.
    accepts_loss_kwargs = False

    def __init__(self, config):
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.base_model_class(config))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        thought_span: ThoughtSpan | None = None,
        num_iterations: int | None = None,
        latent_tolerance: float | None = None,
        cot_input_ids: torch.LongTensor | None = None,
        cot_attention_mask: torch.Tensor | None = None,
        cot_labels: torch.LongTensor | None = None,
        cot_kd_indices: torch.LongTensor | None = None,
        kd_indices: torch.LongTensor | None = None,
        step_labels: torch.LongTensor | None = None,
        question_length: int | None = None,
        answer_labelled: torch.LongTensor | None = None,
        cot_labelled: torch.LongTensor | None = None,
        return_logits: bool | None = None,
        **kwargs,
    ):
        """A causal language model whose thought spans are thought through; with `cot_input_ids`, a training step.

        Args:
            input_ids: `(batch, length)`: question (left padded), `<bot>`, c x `<latent>`, `<eot>`, answer prompt,
                answer, end of sequence (right padded). Without a thought span, any text.
            attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, logits_to_keep: as everywhere.
            labels: `(batch, length)`, -100 where nothing is to be predicted; shifted inside the model.
            thought_span, num_iterations, latent_tolerance: see `ThinkingModelMixin.forward`.
            cot_input_ids: `(batch, teacher length)`: the teacher's sequence. Its first `question_length` columns are
                those of `input_ids`; then come steps, answer prompt, answer, end of sequence (right padded).
            cot_attention_mask, cot_labels: `(batch, teacher length)`.
            cot_kd_indices, kd_indices: `(batch,)`: the column of the answer prompt's last token in the teacher's and
                in the student's sequence, where the hidden states are distilled.
            step_labels: `(batch, c)`: the token that each latent stands for, -100 for none (step supervision). It is
                read off the hidden state that becomes the latent: that of the position before it, in the last pass.
            question_length: how many columns the two sequences share.
            answer_labelled, cot_labelled: `(labelled tokens,)`: where `labels` and `cot_labels`, flattened, are not
                -100. Optional: on a GPU they spare the output head what predicts nothing, without waiting for the
                device to find out.
            return_logits: give the logits of a training step; by default only in evaluation mode.

        Returns:
            Logits as everywhere, or a `PCCoTOutput` for a training step. Without `input_ids` the teacher alone is
            trained.
        """
        if cot_input_ids is None:
            thought = {
                "thought_span": thought_span,
                "num_iterations": num_iterations,
                "latent_tolerance": latent_tolerance,
            }
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                labels=labels,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **{name: value for name, value in thought.items() if value is not None},
                **kwargs,
            )

        config, backbone, shared = self.config, self.base_model, question_length
        if return_logits is None:
            return_logits = not self.training
        # The last column of either sequence predicts nothing: it is computed only for those who ask for its logits.
        seen = slice(None, None if return_logits else -1)
        cot_input_ids, cot_attention_mask = cot_input_ids[:, seen], cot_attention_mask[:, seen]
        if input_ids is None:
            teacher = backbone(input_ids=cot_input_ids, attention_mask=cot_attention_mask, num_iterations=0)
            states = teacher.last_hidden_state[:, shared - 1 :]
            part = (config.loss_alpha, *labelled(states, cot_labels, shared, cot_labelled))
            loss, (cot_loss,) = mean_cross_entropies(self.lm_head, [part])
            return PCCoTOutput(loss=loss, cot_logits=self.lm_head(states) if return_logits else None, cot_loss=cot_loss)

        input_ids, attention_mask = input_ids[:, seen], attention_mask[:, seen]
        length, answer = input_ids.shape[1], shared + thought_span.num_latents + 1
        ids = torch.cat([input_ids, cot_input_ids[:, shared:]], dim=1)
        embeds, cot_embeds = self.get_input_embeddings()(ids).tensor_split([length], dim=1)

        with backbone.one_weight_gradient():
            # Student: question, thought, answer.
            thought = backbone.think(embeds, attention_mask, thought_span, num_iterations)
            # Teacher: the same question goes on with the explicit steps.
            teacher = backbone(
                inputs_embeds=cot_embeds,
                attention_mask=cot_attention_mask,
                past_key_values=thought.question_cache,
                output_hidden_states=True,
                num_iterations=0,
            )
        # Distillation: at the answer prompt's last token the student's state approaches the teacher's.
        kd_loss, teacher_std = distillation_loss(
            states_at(thought.answer_layers, kd_indices - length),
            states_at(teacher.hidden_states, cot_kd_indices - shared),
            config.use_layerwise_std,
        )

        cot_states = torch.cat([thought.question_state, teacher.last_hidden_state], dim=1)
        states = thought.answer_states(length - answer)  # from <eot> on
        parts = [
            (config.loss_alpha, *labelled(cot_states, cot_labels, shared, cot_labelled)),
            (config.loss_beta, *labelled(states, labels, answer + 1, answer_labelled)),
        ]
        # Step supervision: what enters a latent is the state before it, which in the teacher predicts that step's token.
        if config.loss_delta and step_labels is not None:
            parts.append((config.loss_delta, thought.latent_states.flatten(0, 1), step_labels.flatten()))
        loss, (cot_loss, ccot_loss, *step_loss) = mean_cross_entropies(self.lm_head, parts)
        return PCCoTOutput(
            loss=loss + config.loss_gamma * kd_loss,
            logits=self.lm_head(states) if return_logits else None,
            cot_logits=self.lm_head(cot_states) if return_logits else None,
            cot_loss=cot_loss,
            ccot_loss=ccot_loss,
            kd_loss=kd_loss.detach(),
            step_loss=step_loss[0] if step_loss else None,
            teacher_std=teacher_std,
        )

    def get_compiled_call(self, compile_config):
        """transformers asks for it where it compiles an answer's tokens; the passes of the thought then go with them."""
        options = compile_config or self._default_compile_config()
        self.base_model.compiled_pass = torch.compile(static_pass, **options.to_dict())
        return super().get_compiled_call(compile_config)

    def create_masks_for_generate(self, config, attention_mask, inputs_embeds, **kwargs):
        """The 4-dimensional masks that a compilable cache wants, except where a prompt may hold a thought span.

        The passes of a thought make their own masks from the 2-dimensional one.
        """
        if inputs_embeds.shape[1] > 1:
            return attention_mask
        return create_masks_for_generate(
            config=config, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )

    def thought_ids(self, num_latent_tokens: int | None = None) -> list[int]:
        """`<bot>`, the latents, `<eot>` and the answer prompt: what stands between a question and its answer."""
        config = self.config
        latents = config.num_latent_tokens if num_latent_tokens is None else num_latent_tokens
        check_count("num_latent_tokens", latents, 1)
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
        check_count("num_iterations", kwargs.get("num_iterations", 0), 0)
        if latent_thought:
            opening = self.thought_ids(num_latent_tokens)
        else:
            opening = [self.config.bot_token_id] if self.config.open_steps_with_bot else []
        if opening and inputs is None:
            raise ValueError("a thought is opened in token ids: pass input_ids (or latent_thought=False)")
        try:
            if inputs is None or (latent_thought and self._holds_span(inputs)):
                return super().generate(inputs, generation_config, **kwargs)
            return self.generate_behind(opening, inputs, generation_config, **kwargs)
        finally:
            self.base_model.compiled_pass = None

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


# --- the backbones ---


class PCCoTGPT2Model(ThinkingModelMixin, FusedGeluMixin, GPT2Model):
    config_class = PCCoTGPT2Config

    def _pass(self, *args, **kwargs):
        if not self.gradient_checkpointing:
            return super()._pass(*args, **kwargs)
        # GPT2Model withholds the cache from checkpointed blocks; ours survives it. The blocks keep their own flag.
        self.gradient_checkpointing = False
        try:
            return super()._pass(*args, **kwargs)
        finally:
            self.gradient_checkpointing = True


class PCCoTGPT2LMHeadModel(LatentThoughtMixin, GPT2LMHeadModel):
    config_class = PCCoTGPT2Config
    base_model_class = PCCoTGPT2Model


class PCCoTLlamaModel(ThinkingModelMixin, LlamaModel):
    config_class = PCCoTLlamaConfig


class PCCoTLlamaForCausalLM(LatentThoughtMixin, LlamaForCausalLM):
    config_class = PCCoTLlamaConfig
    base_model_class = PCCoTLlamaModel


class PCCoTMistralModel(ThinkingModelMixin, MistralModel):
    config_class = PCCoTMistralConfig


class PCCoTMistralForCausalLM(LatentThoughtMixin, MistralForCausalLM):
    config_class = PCCoTMistralConfig
    base_model_class = PCCoTMistralModel


class PCCoTQwen3Model(ThinkingModelMixin, Qwen3Model):
    config_class = PCCoTQwen3Config


class PCCoTQwen3ForCausalLM(LatentThoughtMixin, Qwen3ForCausalLM):
    config_class = PCCoTQwen3Config
    base_model_class = PCCoTQwen3Model
