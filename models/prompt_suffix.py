"""`generate()` for models that add tokens of their own after a prompt: the caller sees question + answer.

What the model sees, and how it maps to what the caller sees (BOS and suffix are hidden from the result):

    caller    [pad] question                              answer
    model     [pad] (BOS) question  suffix                answer
                                    <bot> ... "The answer is:"
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from .answer_modes import AnswerMode
from .batch_engine import BatchEngineMixin
from .prefix_cache import copy_of
from .prompt_checks import (
    LENGTHS,
    check_arguments,
    check_assistant,
    check_shape,
    check_token_ids,
    first_of,
    positions_taken,
)
from .transformers_versions import CACHE

UNASKED = 256  # the new tokens that a text generation pipeline asks for where nobody does


class PromptSuffixMixin(BatchEngineMixin):
    """Lets a family complete its prompts (by a thought span, a separator) and hides that from what is returned."""

    # The loss is a mean over the batch; the Trainer must not scale it by a token count.
    accepts_loss_kwargs = False

    # Arguments of `generate()` that a family adds. A generation configuration may name them too, for every door alike.
    own_options: tuple[str, ...] = ()

    def own_options_of(self, generation_config=None, **given) -> dict[str, Any]:
        """The family's options as `generate()` takes them: given, of the call's configuration, or of the model's own."""
        sources = self._sources(generation_config, given)
        options = {name: first_of(name, sources) for name in self.own_options}
        return {name: value for name, value in options.items() if value is not None}

    def save_pretrained(self, *args, **kwargs):
        """As everywhere; options of ours in the generation configuration are read again only if it is more than the model's."""
        config: Any = self.generation_config
        if any(getattr(config, name, None) is not None for name in self.own_options):
            config._from_model_config = False
        return super().save_pretrained(*args, **kwargs)

    def _prepare_generation_config(self, generation_config, **kwargs):
        """transformers' own, which would drop an argument that a configuration names too."""
        ours = {name: kwargs.pop(name) for name in self.own_options if name in kwargs}
        config, others = super()._prepare_generation_config(generation_config, **kwargs)
        return config, others | ours

    @property
    def answer_modes(self) -> tuple[AnswerMode, ...]:
        """The ways to ask this model, its own first."""
        raise NotImplementedError

    def suffix_ids(self, **options) -> list[int]:
        """What `generate(**options)` adds after a question; `options` are those of an answer mode."""
        raise NotImplementedError

    def room_for_answer(self, question_length: int, **options) -> int | None:
        """How many tokens `generate(**options)` can write after a question before positions run out; None: no limit."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return None if limit is None else limit - question_length - len(self.suffix_ids(**options))

    def has_suffix(self, input_ids: torch.Tensor, **options) -> bool:
        """Whether these prompts `(batch, length)` already hold what `generate(**options)` would add."""
        return False

    def check_prompt(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        generation_config=None,
        **options,
    ) -> None:
        """What `generate()` checks before it starts, alone: for a server that has to answer before it streams.

        Raises:
            ValueError: for what `generate()` would refuse.
        """
        check_shape(input_ids)
        options = self.own_options_of(generation_config, **options)
        suffix = self.suffix_ids(**options)
        self._check_arguments(input_ids, attention_mask, suffix, generation_config, options)
        prompt, mask = self._with_bos(input_ids, attention_mask)
        self._new_tokens_that_fit(
            input_ids, prompt, mask, len(suffix), self.gap_of(**options), generation_config, options
        )

    def open_prompt(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **options
    ) -> dict[str, torch.Tensor]:
        """Prompts as the model sees them: with the BOS that it was trained with, and with what follows a question.

        For whoever calls `forward` on prompt and answer, to score them or to train by reward: `generate()` does this by
        itself, and leaves a prompt that is open as it is.

        Args:
            input_ids: questions `(batch, length)`, left padded.
            attention_mask: `(batch, length)`; by default 0 where there is padding, as for `generate()`.
            **options: those of an answer mode (`latent_thought`, `num_latent_tokens`; `explicit_steps`, `num_fillers`).

        Returns:
            `input_ids` and `attention_mask`, both `(batch, opened length)`, left padded; the arguments of `forward` and
            of `generate()`.

        Raises:
            ValueError: if the prompts are not of token ids that the model has, or hold what opens them in some rows only; if
                the model leaves positions free after them (`keep_position`), which token ids do not say.
        """
        check_shape(input_ids)
        check_token_ids(input_ids, attention_mask, self.config.vocab_size)
        if attention_mask is None:
            attention_mask = self._mask_of(input_ids)
        if gap := self.gap_of(**options):
            raise ValueError(f"this model leaves {gap} positions free after a question, which only generate() does")
        if self.has_suffix(input_ids, **options):
            return {"input_ids": input_ids, "attention_mask": attention_mask}
        prompt, mask = self._with_suffix(input_ids, attention_mask, self.suffix_ids(**options))
        return {"input_ids": prompt, "attention_mask": mask}

    def hide_prompt(self, sequences: torch.Tensor, input_ids: torch.Tensor, opened: torch.Tensor) -> torch.Tensor:
        """The inverse of `open_prompt`: questions as the caller wrote them, and what came after the opened prompts.

        Args:
            sequences: `(batch x returned sequences, opened length + new tokens)`, which begin with the opened prompts.
            input_ids: the questions `(batch, length)`.
            opened: the `input_ids` that `open_prompt` made of them, `(batch, opened length)`.

        Returns:
            `(batch x returned sequences, length + new tokens)`, as `generate()` returns them.
        """
        return strip_suffix(sequences, input_ids, opened.shape[1])

    def generate_with_suffix(
        self,
        suffix: list[int],
        inputs: torch.Tensor,
        generation_config=None,
        with_bos: bool = True,
        at_suffix: Callable[[int], dict] | None = None,
        **kwargs,
    ):
        """transformers' `generate()` with `suffix` after every row of the prompt, and a BOS before it where it lacks one
        that the model was trained with (a chat's prompt does).

        Both are left out of what is returned, what a streamer sees, and `max_length` and `min_length`. A dictionary
        holds no cache: it would not fit the returned sequences. A cache that is handed in stays as it was.

        Args:
            suffix: token ids; may be empty.
            inputs: `(batch, length)`, left padded, with its `attention_mask` among the keyword arguments.
            with_bos: False leaves the prompt as it is.
            at_suffix: gives further arguments, for the column where the suffix begins.
            generation_config, **kwargs: as everywhere.

        Raises:
            ValueError: if the prompt is not of token ids that the model has, if prompt, suffix and new tokens need more
                positions than it has, if an `assistant_model` does not fit, or `prefill_chunk_size`
                would cut the suffix.
        """
        # A length of None is one that nobody asked for; transformers would compute with it.
        kwargs = {name: value for name, value in kwargs.items() if value is not None or name not in LENGTHS}
        question = inputs
        self._check_arguments(inputs, kwargs.get("attention_mask"), suffix, generation_config, kwargs)
        prompt, mask = self._with_suffix(inputs, kwargs.get("attention_mask"), suffix, with_bos)
        added, gap = len(suffix), kwargs.get("position_gap", 0)
        length, hidden = prompt.shape[1] - added, prompt.shape[1] - question.shape[1]
        if length > question.shape[1]:
            kwargs.pop("position_ids", None)
        kwargs |= {} if at_suffix is None else at_suffix(length)
        before = None if mask is None else mask[:, :length]
        kwargs |= self._new_tokens_that_fit(question, prompt[:, :length], before, added, gap, generation_config, kwargs)
        own = {*self.own_options, "latent_sources", "latent_embeds", "filler_embeds"} & kwargs.keys()
        check_assistant(kwargs.get("assistant_model"), prompt, gap, own)
        if self.checkpoints_layers():
            kwargs["use_cache"] = False
        if hidden == 0:
            return super().generate(inputs, generation_config, **kwargs)
        if self.training and is_scored_by_trl(self):
            raise ValueError(
                "TRL would score this prompt without what generate() adds to it, and so train another distribution than it "
                "samples: pass prompts of open_prompt() (run_grpo.py does), or call eval() to see answers only"
            )
        kwargs["attention_mask"] = mask

        chunk = first_of("prefill_chunk_size", self._sources(generation_config, kwargs))
        if added and chunk is not None and length // chunk != (prompt.shape[1] - 1) // chunk:
            raise ValueError(
                f"prefill_chunk_size={chunk} would cut the tokens added after the question at column {length}"
            )

        # Everything that has a column per token grows with the prompt.
        positions = kwargs.get("position_ids")
        if positions is not None and positions.shape[1] == length:
            after = torch.arange(1, added + 1, device=positions.device)
            kwargs["position_ids"] = torch.cat([positions, positions[:, -1:] + after], dim=1)
        if (types := kwargs.get("token_type_ids")) is not None:
            kwargs["token_type_ids"] = nn.functional.pad(types, (length - types.shape[1], added))
        # Limits are the caller's, who does not count what is hidden.
        for name in ("max_length", "min_length"):
            if (value := first_of(name, self._sources(generation_config, kwargs))) is not None:
                kwargs[name] = value + hidden
        if kwargs.get("streamer") is not None:
            kwargs["streamer"] = HidingStreamer(kwargs["streamer"], question)

        kept = (name for name in {"past_key_values", CACHE} if isinstance(kwargs.get(name), Cache))
        kwargs |= {name: copy_of(kwargs[name]) for name in kept}  # the caller's stays without what is hidden

        output: Any = super().generate(prompt, generation_config, **kwargs)
        if isinstance(output, torch.Tensor):
            return strip_suffix(output, question, prompt.shape[1])
        output.sequences = strip_suffix(output.sequences, question, prompt.shape[1])
        # It holds what is hidden, so it does not continue the sequences that the caller sees.
        setattr(output, CACHE, None)
        return output

    def checkpoints_layers(self) -> bool:
        """Whether layers keep no cache because they are computed twice (gradient checkpointing in training)."""
        return self.training and any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def caches(self, generation_config, kwargs: dict) -> bool:
        """Whether `generate()` with these arguments keeps a cache."""
        return (
            first_of("use_cache", self._sources(generation_config, kwargs)) is not False
            and not self.checkpoints_layers()
        )

    def _sources(self, generation_config, kwargs: dict) -> list[dict]:
        """Where `generate()` finds an argument, in the order in which it looks."""
        return [kwargs, vars(generation_config) if generation_config else {}, vars(self.generation_config)]

    def _check_arguments(self, inputs, mask, suffix: list[int], generation_config, kwargs: dict) -> None:
        """Raises ValueError for a prompt that is not of the model's token ids, and for lengths that are none."""
        sources = self._sources(generation_config, kwargs)
        if first_of("cache_implementation", sources) == "paged":
            raise ValueError(
                'cache_implementation="paged" would answer padding as if it were text: use generate_batch()'
            )
        if suffix and kwargs.get("inputs_embeds") is not None:
            raise ValueError(
                "what follows a question is added to token ids: pass input_ids alone, without inputs_embeds"
            )
        check_token_ids(inputs, mask, self.config.vocab_size)
        check_arguments(sources, suffix, inputs.shape[0], self.config.vocab_size)

    def _new_tokens_that_fit(
        self, question, prompt, mask, added: int, gap: int, generation_config, kwargs: dict
    ) -> dict[str, int]:
        """The limit of new tokens to replace one that nobody asked for and that is beyond the model's positions, if so.

        Only a table of positions ends; rotary positions go on beyond what was trained, as everywhere in transformers.

        Args:
            question, prompt: `(batch, length)`, without and with a BOS.
            mask: the prompt's.
            added: how many tokens follow the prompt.
            gap: how many positions stay free there.

        Raises:
            ValueError: if prompt and suffix do not fit, or not with as many new tokens as the caller asked for.
        """
        limit = getattr(self.config, "max_position_embeddings", None)
        table = getattr(self.config, "rope_parameters", None) is None
        if limit is None or not (table or added or gap):
            return {}
        sources = self._sources(generation_config, kwargs)
        new, length = first_of("max_new_tokens", sources), first_of("max_length", sources)
        if new is None:
            new = 20 if length is None else length - question.shape[1]  # transformers' own default
        room = limit - prompt.shape[1] - added - gap
        if room >= 0 and (not table or new <= room):  # the last new token needs no position
            return {}
        taken = positions_taken(prompt, mask, kwargs.get("position_ids"))
        room = limit - taken - added - gap
        if room < 0:
            raise ValueError(
                f"the question has {taken} tokens, and what follows it needs {added + gap} positions: more than the "
                f"model's {limit} positions"
            )
        if not table or new <= room + 1:
            return {}
        names = ("max_new_tokens", "max_length")
        if new != UNASKED and any(source.get(name) is not None for name in names for source in sources[:2]):
            raise ValueError(
                f"the question has {taken} tokens, what follows it needs {added + gap} positions, and {new} new tokens are "
                f"asked for: more than the model's {limit} positions, so ask for at most {max(1, room)}"
            )
        return {"max_new_tokens": max(1, room)}

    def _with_suffix(self, inputs: torch.Tensor, mask: torch.Tensor | None, suffix: list[int], with_bos: bool = True):
        """The prompt with a BOS before it, where it lacks one, and `suffix` after it; and its mask (None may stay None)."""
        if with_bos:
            inputs, mask = self._with_bos(inputs, mask)
        end = torch.tensor(suffix, dtype=inputs.dtype, device=inputs.device).expand(inputs.shape[0], -1)
        mask = None if mask is None else nn.functional.pad(mask, (0, len(suffix)), value=1)
        return torch.cat([inputs, end], dim=1), mask

    def _mask_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """The mask that `generate()` would assume for a prompt that comes without."""
        pad = self.config.pad_token_id
        if pad is not None and pad != self.config.eos_token_id:
            return (inputs != pad).long()
        return torch.ones_like(inputs)

    def _with_bos(self, inputs: torch.Tensor, mask: torch.Tensor | None):
        """The prompt and its mask, one column wider if a row lacks the BOS that the model's questions start with."""
        if not self.config.questions_start_with_bos:
            return inputs, mask
        bos, full = self.config.bos_token_id, self._mask_of(inputs) if mask is None else mask
        first = full.long().argmax(dim=1, keepdim=True)  # the column of each row's first token
        lacking = inputs.gather(1, first) != bos
        if not lacking.any():
            return inputs, mask
        # In the wider rows the column before the first token has the number that the first token had.
        inputs, full = (nn.functional.pad(tensor, (1, 0)) for tensor in (inputs, full))
        inputs = inputs.scatter(1, first, torch.where(lacking, bos, inputs.gather(1, first)))
        return inputs, full.scatter(1, first, lacking.to(full.dtype))


def is_scored_by_trl(model) -> bool:
    """Whether a trainer of TRL has replaced the model's `forward` by one that scores tokens (`add_fused_lm_head`)."""
    code = getattr(getattr(model.forward, "__func__", None), "__code__", None)
    return code is not None and "fused_lm_head" in code.co_varnames


class HidingStreamer:
    """Passes everything on to a streamer, but for the prompt the one that the caller wrote."""

    def __init__(self, streamer, question: torch.Tensor):
        self.streamer = streamer
        self.question: torch.Tensor | None = question

    def put(self, value: torch.Tensor):
        if self.question is not None:
            value, self.question = self.question.to(value.device), None
        self.streamer.put(value)

    def end(self):
        self.streamer.end()


def strip_suffix(sequences: torch.Tensor, question: torch.Tensor, prompt_length: int) -> torch.Tensor:
    """Answers after the prompts that the caller wrote.

    Args:
        sequences: `(batch x returned sequences, prompt_length + new tokens)`.
        question: `(batch, length)`.
        prompt_length: how many columns the model saw before it began to answer.
    """
    question = question.repeat_interleave(sequences.shape[0] // question.shape[0], dim=0)
    return torch.cat([question.to(sequences.device), sequences[:, prompt_length:]], dim=1)
