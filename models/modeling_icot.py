"""iCoT models: backbones that were trained to write their chain of thought and then to do without it.

The method (arXiv 2405.14838) is in how they are trained (`training/trainers/icot_removal.py`); here is how to query them.
"""

import torch
from transformers import (
    GPT2LMHeadModel,
    GPT2Model,
    LlamaForCausalLM,
    LlamaModel,
    MistralForCausalLM,
    MistralModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import Cache

from .answer_modes import EXPLICIT, INTERNALIZED, AnswerMode
from .complete_weights import CompleteWeightsMixin
from .configuration_icot import ALL_TOKENS, ICoTGPT2Config, ICoTLlamaConfig, ICoTMistralConfig
from .configuration_prompt import check_count, check_flag
from .foreign_engines import refuse_foreign_engine
from .gpt2_activation import FusedGeluMixin
from .own_base_model import OwnBaseModelMixin
from .positions import positions_from_mask
from .prompt_checks import check_shape, first_of
from .prompt_suffix import PromptSuffixMixin
from .transformers_versions import CACHE


class ICoTModelMixin(CompleteWeightsMixin):
    """A backbone's base model that refuses to be run by an engine which knows nothing of its separators."""

    def forward(self, *args, **kwargs):
        """The backbone's own."""
        refuse_foreign_engine(self.config, None, kwargs)
        return super().forward(*args, **kwargs)


class ICoTForCausalLMMixin(PromptSuffixMixin, OwnBaseModelMixin):
    """A backbone with its language modelling head that knows how much of its chain is left to write."""

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
        cache: Cache | None = None,
        **kwargs,
    ):
        """The backbone's forward pass, in which left padding shifts no position.

        `generate()` and transformers' Trainer look for the names of `logits_to_keep`, `cache` and `labels` here.

        Args:
            input_ids: `(batch, length)`.
            attention_mask: `(batch, past + length)`.
            position_ids: `(batch, length)`; counted from the attention mask if absent.
            past_key_values (or cache), inputs_embeds, labels, use_cache, logits_to_keep, **kwargs: as everywhere.
        """
        self.refuse_beside_manager(kwargs)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            length = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
            position_ids = positions_from_mask(attention_mask)[:, -length:]
        if (given := past_key_values if cache is None else cache) is not None:
            kwargs[CACHE if isinstance(given, Cache) else "cache"] = given  # else: a batch engine's own
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    @property
    def answer_modes(self) -> tuple[AnswerMode, ...]:
        """As the model was last trained to answer, and with the whole chain written out."""
        writes = "answer" if self.answers_at_once else "chain"
        config = self.config
        whole = config.num_internalized_tokens == ALL_TOKENS or config.filler_mode != "none"
        return INTERNALIZED.partly(None if whole else config.removed()).of(writes, explicit_steps=None), EXPLICIT.of(
            explicit_steps=True
        )

    def suffix_ids(self, explicit_steps: bool | None = None, num_fillers: int | None = None, **_) -> list[int]:
        """What stands between a question and what the model writes.

        Args:
            explicit_steps: True leaves (the rest of) the chain to the model, False asks for the answer at once; None
                does what the model was last trained to do.
            num_fillers: instead of the configuration's.
        """
        config = self.config
        for name in ("start_token_id", "ready_token_id"):
            if getattr(config, name) is None:
                raise ValueError(f"the configuration has no {name}: set up the tokenizer first (see run_icot.py)")
        if explicit_steps is not None:
            check_flag("explicit_steps", explicit_steps)
        fillers = config.num_fillers if num_fillers is None else num_fillers
        check_count("num_fillers", fillers, 0, config.max_position_embeddings)
        suffix = [*(config.question_end_ids or []), config.start_token_id]
        if self.writes_chain(explicit_steps):
            return suffix
        if config.filler_mode == "prefilled" or num_fillers is not None:
            if fillers and config.pause_token_id is None:
                raise ValueError("the configuration has no pause_token_id: this model has no fillers")
            suffix += [config.pause_token_id] * fillers
        return [*suffix, config.ready_token_id, *(config.answer_prompt_ids or [])]

    batch_options = ("explicit_steps", "num_fillers")
    own_options = (*batch_options, "position_gap")

    def check_batching(self, generation_config, explicit_steps: bool | None = None, **options) -> None:
        super().check_batching(generation_config, explicit_steps=explicit_steps, **options)
        ready = self.config.ready_token_id
        if self.writes_chain(explicit_steps) and generation_config.eos_token_id in (ready, [ready]):
            raise ValueError(
                "continuous batching would end an answer at the end of its chain, which this model writes with the same token: "
                "use generate() on left-padded batches"
            )

    def writes_chain(self, explicit_steps: bool | None = None) -> bool:
        """Whether the model is to write (the rest of) its chain itself."""
        return not self.answers_at_once if explicit_steps is None else explicit_steps

    @property
    def answers_at_once(self) -> bool:
        """Whether nothing of the chain is left to write."""
        return self.config.num_internalized_tokens == ALL_TOKENS or self.config.filler_mode == "prefilled"

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config=None,
        *,
        explicit_steps: bool | None = None,
        num_fillers: int | None = None,
        filler_embeds: torch.Tensor | None = None,
        position_gap: int | None = None,
        **kwargs,
    ):
        """Answer questions. The separator and whatever is prefilled after it are left out of what is returned.

        Args:
            inputs: questions `(batch, length)`, also accepted as `input_ids`; left padded, with their
                `attention_mask`.
            generation_config: as everywhere; it may also name `explicit_steps`, `num_fillers` and `position_gap`.
            explicit_steps, num_fillers: see `suffix_ids`.
            filler_embeds: `(batch, fillers, hidden)`, what stands at the fillers after the question instead of their own
                embeddings.
            position_gap: how many positions to leave free where tokens of the chain were removed; by default what
                training kept free for most questions (`config.position_gap`, with `config.keep_position`).
            **kwargs: every argument of transformers' `generate()`.

        Returns:
            As everywhere: `(batch, length + new tokens)`. Steps that the model writes itself come first, then
            `<ready>`, the answer prompt and the answer.

        Raises:
            ValueError: if the prompt needs more positions than the model has, for an `assistant_model`, `prefill_chunk_size` or
                `use_cache=False` together with free positions, for `filler_embeds` that are not one for each filler or come with
                `prefill_chunk_size`, or if an argument is no such thing.
        """
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        if inputs is None:
            raise ValueError("a question is opened in token ids: pass input_ids")
        check_shape(inputs)
        given = {"explicit_steps": explicit_steps, "num_fillers": num_fillers, "position_gap": position_gap}
        options, config = self.own_options_of(generation_config, **given), self.config
        explicit_steps, suffix = options.get("explicit_steps"), self.suffix_ids(**options)
        gap = options.get("position_gap", self.gap_of(explicit_steps))
        check_count("position_gap", gap, 0, config.max_position_embeddings)
        sources, ready = self._sources(generation_config, kwargs), config.ready_token_id
        eos = first_of("eos_token_id", sources)
        if self.writes_chain(explicit_steps) and eos in (ready, [ready]):
            # Published checkpoints end the chain and the answer with the same token: the second one stops.
            length = self._with_suffix(inputs, kwargs.get("attention_mask"), suffix)[0].shape[1]
            criteria = [*(kwargs.pop("stopping_criteria", None) or []), SecondEndCriteria(ready, length)]
            kwargs |= {"stopping_criteria": StoppingCriteriaList(criteria), "eos_token_id": -1}
            if first_of("pad_token_id", sources) is None:
                kwargs["pad_token_id"] = ready
        if (gap or filler_embeds is not None) and first_of("prefill_chunk_size", sources) is not None:
            what = "positions that are left free (keep_position, position_gap) need" if gap else "filler_embeds needs"
            raise ValueError(f"{what} the whole prompt in one pass: leave prefill_chunk_size out")
        if gap:
            if not self.caches(generation_config, kwargs):
                # Without cache and mask transformers takes a hole in the positions for the end of one packed text.
                raise ValueError(
                    "positions that are left free (keep_position, position_gap) need a cache: leave use_cache=False out, and "
                    "call eval() on a model whose layers are checkpointed"
                )
            kwargs["position_gap"] = gap
        if filler_embeds is not None:
            check_filler_embeds(filler_embeds, inputs, suffix.count(config.pause_token_id), config.hidden_size)
            kwargs["filler_embeds"] = filler_embeds
        start = len(config.question_end_ids or []) + 1  # of what follows <start>

        def at_suffix(column: int) -> dict:
            return {"start_column": column + start} if gap or filler_embeds is not None else {}

        return self.generate_with_suffix(suffix, inputs, generation_config, at_suffix=at_suffix, **kwargs)

    def gap_of(self, explicit_steps: bool | None = None, **_) -> int:
        """Positions that stay free where tokens of the chain were removed (`keep_position`).

        How many were removed is each question's own chain length where all of it is gone, and that is not known when a
        question is asked. So training notes the number that most of its rows have.
        """
        config = self.config
        if not config.keep_position or (explicit_steps and self.answers_at_once):  # which writes the whole chain
            return 0
        return max(0, config.num_internalized_tokens) if config.position_gap is None else config.position_gap

    def room_for_answer(self, question_length: int, explicit_steps: bool | None = None, **options) -> int | None:
        room = super().room_for_answer(question_length, explicit_steps=explicit_steps, **options)
        return None if room is None else room - self.gap_of(explicit_steps)

    def prepare_inputs_for_generation(
        self,
        input_ids,
        *args,
        start_column: int = 0,
        position_gap: int = 0,
        filler_embeds: torch.Tensor | None = None,
        **kwargs,
    ):
        """transformers' own; what comes after removed tokens stands `position_gap` positions further on, and
        `filler_embeds` stand in the columns from `start_column` on, the one after `<start>`.

        What comes after them is all that follows `<start>` where the chain lost its beginning; and `<ready>` and what
        follows it where it lost its end.
        """
        model_inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        ids = model_inputs.get("input_ids")
        if filler_embeds is not None and ids is not None and ids.shape[1] == input_ids.shape[1]:  # else: a later token
            embeds = self.get_input_embeddings()(ids)
            embeds[:, start_column : start_column + filler_embeds.shape[1]] = filler_embeds.to(embeds)
            model_inputs |= {"input_ids": None, "inputs_embeds": embeds}
        if position_gap:
            after = torch.arange(input_ids.shape[1], device=input_ids.device)[None] >= start_column
            if self.config.removal_side == "right":
                after = (after & (input_ids == self.config.ready_token_id)).cumsum(dim=1) > 0
            positions = model_inputs["position_ids"]
            model_inputs["position_ids"] = positions + position_gap * after[:, -positions.shape[1] :]
        return model_inputs


def check_filler_embeds(embeds: torch.Tensor, inputs: torch.Tensor, fillers: int, hidden: int) -> None:
    """Raises ValueError for what cannot stand in the place of a prompt's fillers."""
    wanted = (inputs.shape[0], fillers, hidden)
    if not isinstance(embeds, torch.Tensor) or embeds.shape != wanted:
        got = tuple(embeds.shape) if isinstance(embeds, torch.Tensor) else type(embeds).__name__
        raise ValueError(f"filler_embeds must be (batch, fillers, hidden) = {wanted}, got {got}")


class SecondEndCriteria(StoppingCriteria):
    """A row is done at the second end of sequence after the prompt."""

    def __init__(self, eos_token_id: int, prompt_length: int):
        self.eos_token_id = torch.tensor([eos_token_id])  # its presence makes generate() pad finished rows
        self.prompt_length = prompt_length

    def __call__(self, input_ids, scores, **kwargs):
        ends = (input_ids[:, self.prompt_length :] == self.eos_token_id.to(input_ids.device)).sum(dim=1)
        return ends >= 2


# --- the backbones ---


class ICoTGPT2Model(ICoTModelMixin, FusedGeluMixin, GPT2Model):
    config_class = ICoTGPT2Config


class ICoTGPT2LMHeadModel(ICoTForCausalLMMixin, GPT2LMHeadModel):
    config_class = ICoTGPT2Config
    base_model_class = ICoTGPT2Model


class ICoTLlamaModel(ICoTModelMixin, LlamaModel):
    config_class = ICoTLlamaConfig


class ICoTLlamaForCausalLM(ICoTForCausalLMMixin, LlamaForCausalLM):
    config_class = ICoTLlamaConfig
    base_model_class = ICoTLlamaModel


class ICoTMistralModel(ICoTModelMixin, MistralModel):
    config_class = ICoTMistralConfig


class ICoTMistralForCausalLM(ICoTForCausalLMMixin, MistralForCausalLM):
    config_class = ICoTMistralConfig
    base_model_class = ICoTMistralModel
