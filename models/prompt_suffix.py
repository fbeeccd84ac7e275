"""`generate()` for models that add tokens of their own after a prompt: the caller sees question + answer.

What the model sees, and how it maps to what the caller sees (BOS and suffix are hidden from the result):

    caller    [pad] question                              answer
    model     [pad] (BOS) question  suffix                answer
                                    <bot> ... "The answer is:"
"""

from typing import Any

import torch
from torch import nn

from .answer_modes import AnswerMode
from .mixin_base import ModelBase


class PromptSuffixMixin(ModelBase):
    """Lets a family complete its prompts (by a thought span, a separator) and hides that from what is returned."""

    # The loss is a mean over the batch; the Trainer must not scale it by a token count.
    accepts_loss_kwargs = False

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

    def init_continuous_batching(self, *args, **kwargs):
        """Refused: transformers' batch engine calls `forward` on the bare prompt, and so answers without the suffix.

        Raises:
            NotImplementedError: always; `generate_batch`, `cache_implementation="paged"` and `serve --continuous-batching`
                come through here.
        """
        raise NotImplementedError(
            f"continuous batching would ask a {self.config.model_type} model without what follows a question (its thought "
            "span, its answer prompt), so it is refused: use generate() on left-padded batches"
        )

    def generate_with_suffix(
        self,
        suffix: list[int],
        inputs: torch.Tensor,
        generation_config=None,
        **kwargs,
    ):
        """transformers' `generate()` with `suffix` after every row of the prompt, and a BOS before it where it lacks one
        that the model was trained with (a chat's prompt does).

        Both are left out of what is returned, what a streamer sees, and `max_length` and `min_length`. A dictionary
        holds no cache: it would not fit the returned sequences.

        Args:
            suffix: token ids; may be empty.
            inputs: `(batch, length)`, left padded, with its `attention_mask` among the keyword arguments.
            generation_config, **kwargs: as everywhere.

        Raises:
            ValueError: if the prompt is too long for the model, or `prefill_chunk_size` would cut the suffix.
        """
        question = inputs
        inputs, kwargs["attention_mask"] = self._with_bos(inputs, kwargs.get("attention_mask"))
        if inputs is not question:
            kwargs.pop("position_ids", None)
        length, added = inputs.shape[1], len(suffix)
        hidden = length - question.shape[1] + added
        if hidden == 0:
            return super().generate(inputs, generation_config, **kwargs)

        end = torch.tensor(suffix, dtype=inputs.dtype, device=inputs.device).expand(inputs.shape[0], -1)
        prompt = torch.cat([inputs, end], dim=1)
        limit = getattr(self.config, "max_position_embeddings", None)
        if limit is not None and prompt.shape[1] > limit:
            raise ValueError(
                f"the question has {length} tokens and what follows it {added}: more than the model's {limit} positions"
            )
        chunk = kwargs.get("prefill_chunk_size") or getattr(generation_config, "prefill_chunk_size", None)
        if added and chunk is not None and length // chunk != (prompt.shape[1] - 1) // chunk:
            raise ValueError(
                f"prefill_chunk_size={chunk} would cut the tokens added after the question at column {length}"
            )
        if self.training and any(getattr(module, "gradient_checkpointing", False) for module in self.modules()):
            kwargs["use_cache"] = False  # checkpointed layers keep no cache

        # Everything that has a column per token grows with the prompt.
        positions = kwargs.get("position_ids")
        if positions is not None and positions.shape[1] == length:
            after = torch.arange(1, added + 1, device=positions.device)
            kwargs["position_ids"] = torch.cat([positions, positions[:, -1:] + after], dim=1)
        for name, fill in (("attention_mask", 1), ("token_type_ids", 0)):
            if kwargs.get(name) is not None:
                given = nn.functional.pad(kwargs[name], (length - kwargs[name].shape[1], 0))  # the BOS
                kwargs[name] = nn.functional.pad(given, (0, added), value=fill)
        # Limits are the caller's, who does not count what is hidden.
        for name in ("max_length", "min_length"):
            sources = [kwargs, vars(generation_config) if generation_config else {}, vars(self.generation_config)]
            value = next((source[name] for source in sources if source.get(name) is not None), None)
            if value is not None:
                kwargs[name] = value + hidden
        if kwargs.get("streamer") is not None:
            kwargs["streamer"] = HidingStreamer(kwargs["streamer"], question)

        output: Any = super().generate(prompt, generation_config, **kwargs)
        if isinstance(output, torch.Tensor):
            return strip_suffix(output, question, prompt.shape[1])
        output.sequences = strip_suffix(output.sequences, question, prompt.shape[1])
        # It holds what is hidden, so it does not continue the sequences that the caller sees.
        output.past_key_values = None
        return output

    def _with_bos(self, inputs: torch.Tensor, mask: torch.Tensor | None):
        """The prompt and its mask, one column wider if a row lacks the BOS that the model's questions start with."""
        config, bos = self.config, self.config.bos_token_id
        if not config.questions_start_with_bos or inputs.shape[1] == 0:
            return inputs, mask
        if mask is not None:
            full = mask
        elif config.pad_token_id is not None and config.pad_token_id != config.eos_token_id:
            full = (inputs != config.pad_token_id).long()  # what generate() would assume
        else:
            full = torch.ones_like(inputs)
        first = full.argmax(dim=1, keepdim=True)  # the column of each row's first token
        lacking = inputs.gather(1, first) != bos
        if not lacking.any():
            return inputs, mask
        # In the wider rows the column before the first token has the number that the first token had.
        inputs, full = (nn.functional.pad(tensor, (1, 0)) for tensor in (inputs, full))
        inputs = inputs.scatter(1, first, torch.where(lacking, bos, inputs.gather(1, first)))
        return inputs, full.scatter(1, first, lacking.to(full.dtype))


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
