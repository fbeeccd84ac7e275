"""Configurations of the iCoT family: a backbone's own configuration plus how far its chain was internalised."""

from dataclasses import dataclass
from typing import ClassVar

from transformers import GPT2Config, LlamaConfig, MistralConfig

from .configuration_prompt import MOST, WORDS, PromptConfigMixin, check_apart, check_choice, check_count

REMOVAL_SIDES = ("left", "right")
FILLER_MODES = ("none", "prefilled", "written")
TEXT_FORMATS = ("plain", "original", "fork")
ALL_TOKENS = -1


@dataclass(kw_only=True)
class ICoTConfigMixin(PromptConfigMixin):
    """The fields that every `icot-*` configuration adds to its backbone's.

    A sequence is question, `<start>`, chain of thought, `<ready>`, answer prompt, answer, end of sequence. Training
    takes the chain away (Deng et al., arXiv 2405.14838) or turns it into `<pause>` fillers (arXiv 2310.02226).

    Args:
        start_token_id: the separator after the question (the end of sequence in published checkpoints).
        pause_token_id: the filler.
        ready_token_id: stands between the chain and the answer; may be the separator again.
        num_internalized_tokens: how many tokens of the chain were taken away; -1 for all of them.
        num_chain_tokens: how many the longest chain of the training data has; None where that is not known.
        removal_side: from which end: "left" or "right".
        keep_position: what follows the removed tokens kept its positions.
        position_gap: with `keep_position`, how many positions stay free where they were removed: the number that most
            training rows have. None: `num_internalized_tokens`, where that is a number.
        filler_mode: "none"; "prefilled", where fillers are put after the question in one pass; or "written", where
            the model writes them itself.
        num_fillers: how many fillers a prompt gets.
        text_format: how the parts are written: "plain", or as one of the original codes does (`training/data/text_format.py`).
        question_end_ids: tokens between a question and `<start>`, if any.
        answer_prompt_ids, questions_start_with_bos: see `PromptConfigMixin`; the answer prompt may be empty.

    Raises:
        ValueError: for an unknown side, filler mode or text format, a count that is negative or beyond the positions, or a filler that
            is also another token.
    """

    family: ClassVar[str] = "icot"
    default_answer_prompt: ClassVar[str] = "####"
    between: ClassVar[str] = WORDS
    special_tokens: ClassVar[dict[str, str]] = {
        "start_token_id": "<start>",
        "pause_token_id": "<pause>",
        "ready_token_id": "<ready>",
    }

    start_token_id: int | None = None
    pause_token_id: int | None = None
    ready_token_id: int | None = None
    num_internalized_tokens: int = 0
    num_chain_tokens: int | None = None
    removal_side: str = "left"
    keep_position: bool = False
    position_gap: int | None = None
    filler_mode: str = "none"
    num_fillers: int = 0
    text_format: str = "plain"
    question_end_ids: list[int] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_choice("removal_side", self.removal_side, REMOVAL_SIDES)
        check_choice("filler_mode", self.filler_mode, FILLER_MODES)
        check_choice("text_format", self.text_format, TEXT_FORMATS)
        check_count("num_internalized_tokens", self.num_internalized_tokens, ALL_TOKENS, MOST)
        if self.num_chain_tokens is not None:
            check_count("num_chain_tokens", self.num_chain_tokens, 0, MOST)
        positions = self.max_position_embeddings
        check_count("num_fillers", self.num_fillers, 0, positions)
        if self.position_gap is not None:
            check_count("position_gap", self.position_gap, 0, positions)
        # The separators may be each other and the end of sequence, as in published checkpoints; a filler is none of them.
        check_apart(self, ["pause_token_id"], ("start_token_id", "ready_token_id", "eos_token_id", "pad_token_id"))

    def removed(self) -> str:
        """How much of the chain is gone: "all", "2 of 3", or "2" where the length of the chains is not known."""
        if self.num_internalized_tokens == ALL_TOKENS:
            return "all"
        known = "" if self.num_chain_tokens is None else f" of {self.num_chain_tokens}"
        return f"{self.num_internalized_tokens}{known}"

    def describe(self) -> str:
        return f"Of its chain of thought {self.removed()} tokens were internalised (iCoT, arXiv 2405.14838)."


class ICoTGPT2Config(ICoTConfigMixin, GPT2Config):
    model_type = "icot-gpt2"


class ICoTLlamaConfig(ICoTConfigMixin, LlamaConfig):
    model_type = "icot-llama"


class ICoTMistralConfig(ICoTConfigMixin, MistralConfig):
    model_type = "icot-mistral"
