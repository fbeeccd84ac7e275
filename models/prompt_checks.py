"""What `generate()` checks before it starts, so that a wrong argument is a sentence and no error of a tensor library."""

from collections.abc import Sequence

import torch

from .configuration_prompt import check_count, is_whole

LENGTHS = {"max_new_tokens": 1, "max_length": 1, "min_new_tokens": 0, "min_length": 0, "num_beams": 1}
LENGTHS |= {"num_return_sequences": 1, "prefill_chunk_size": 1}


def check_shape(input_ids: object) -> None:
    """Raises ValueError unless a prompt is a tensor `(batch, length)` of whole numbers, with at least one of each."""
    if not isinstance(input_ids, torch.Tensor) or input_ids.ndim != 2 or input_ids.numel() == 0:
        got = tuple(input_ids.shape) if isinstance(input_ids, torch.Tensor) else type(input_ids).__name__
        raise ValueError(f"a prompt must be a tensor (batch, length) with at least one token, got {got}")
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"a prompt must be of whole token ids, got {input_ids.dtype}")


def check_token_ids(input_ids: torch.Tensor, attention_mask: object, vocab_size: int) -> None:
    """Raises ValueError unless a prompt holds tokens of the vocabulary alone and has a mask of its shape of 0 and 1, or none.

    Reads the smallest and the largest id, and whether the mask is one, on the host, once.
    """
    extremes, is_mask = [*input_ids.aminmax()], False
    if isinstance(attention_mask, torch.Tensor) and attention_mask.shape == input_ids.shape:
        is_mask = True
        extremes.append(attention_mask.bool().ne(attention_mask).any())
    least, most, *wrong = torch.stack([value.long() for value in extremes]).tolist()
    if least < 0 or most >= vocab_size:
        outside = least if least < 0 else most
        raise ValueError(
            f"the prompt holds the token id {outside}, and the model's vocabulary ends at {vocab_size - 1}"
        )
    if attention_mask is None or (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4):
        return
    if not is_mask:
        got = tuple(attention_mask.shape) if isinstance(attention_mask, torch.Tensor) else type(attention_mask).__name__
        raise ValueError(f"attention_mask must be a tensor of the prompt's shape {tuple(input_ids.shape)}, got {got}")
    if any(wrong):
        raise ValueError("attention_mask must hold 0 (padding) and 1 alone")


def check_arguments(sources: Sequence[dict], suffix: list[int], rows: int, vocab_size: int) -> None:
    """Raises ValueError for a length that is no whole number, and for a token outside the vocabulary that would be fed in.

    Args:
        sources: the arguments of `generate()` and the attributes of its configurations; the first that has one wins.
        suffix: what is added after the question.
        rows: how many questions there are.
        vocab_size: how many tokens the model has.
    """
    for name, least in LENGTHS.items():
        if (value := first_of(name, sources)) is not None:
            check_count(name, value, least)
    for token in suffix:
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"what follows a question holds the token {token}, and the vocabulary ends at {vocab_size - 1}"
            )
    pad, several = first_of("pad_token_id", sources), ("num_beams", "num_return_sequences")
    rows *= max(first_of(name, sources) or 1 for name in several)
    # A row that ends before another goes on with padding; a single row never does.
    if rows > 1 and pad is not None and not (is_whole(pad) and pad < vocab_size and pad >= 0):
        raise ValueError(f"pad_token_id must be a token of the model's vocabulary of {vocab_size}, got {pad!r}")


def check_assistant(assistant, prompt: torch.Tensor, gap: int, own: set[str]) -> None:
    """Raises ValueError for an `assistant_model` whose tokens could not be those of this prompt's answer, or that would be given
    arguments of ours (`own`) too."""
    if assistant is None:
        return
    if gap:
        raise ValueError("assistant_model cannot be used where positions are left free (keep_position, position_gap)")
    if own:
        raise ValueError(f"assistant_model would be given {', '.join(sorted(own))} too: leave one of them out")
    if hasattr(assistant, "has_suffix") and not assistant.has_suffix(prompt):
        raise ValueError(
            f"assistant_model is a {assistant.config.model_type}, which would add tokens of its own to this prompt: only a "
            "plain backbone can assist here"
        )


def first_of(name: str, sources: Sequence[dict]):
    """The value of an argument in the first source that has one; None if none does."""
    return next((source[name] for source in sources if source.get(name) is not None), None)


def positions_taken(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids=None) -> int:
    """How many positions the longest row of a prompt takes; padding takes none. Reads a number on the host."""
    if position_ids is not None:
        return int(position_ids.max()) + 1
    if attention_mask is None or attention_mask.ndim != 2:
        return input_ids.shape[1]
    return int(attention_mask.long().sum(dim=1).max())
