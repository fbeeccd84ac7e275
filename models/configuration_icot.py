"""Configurations of the iCoT family: a backbone's own configuration plus how far its chain was internalised."""

from dataclasses import dataclass
from typing import ClassVar

from transformers import GPT2Config, LlamaConfig, MistralConfig

from .configuration_prompt import PromptConfigMixin, check_count

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
        removal_side: from which end: "left" or "right".
        keep_position: what follows the removed tokens kept its positions.
        position_gap: with `keep_position`, how many positions stay free where they were removed: the number that most
            training rows have. None: `num_internalized_tokens`, where that is a number.
        filler_mode: "none"; "prefilled", where fillers are put after the question in one pass; or "written", where
            the model writes them itself.
        num_fillers: how many fillers a prompt gets.
        text_format: how the parts are written: "plain", or as one of the original codes does (`training/text_format.py`).
        question_end_ids: tokens between a question and `<start>`, if any.
        answer_prompt_ids, questions_start_with_bos: see `PromptConfigMixin`; the answer prompt may be empty.

    Raises:
        ValueError: for an unknown side, filler mode or text format, or a negative count.
    """

    family: ClassVar[str] = "icot"
    special_tokens: ClassVar[dict[str, str]] = {
        "start_token_id": "<start>",
        "pause_token_id": "<pause>",
        "ready_token_id": "<ready>",
    }

    start_token_id: int | None = None
    pause_token_id: int | None = None
    ready_token_id: int | None = None
    num_internalized_tokens: int = 0
    removal_side: str = "left"
    keep_position: bool = False
    position_gap: int | None = None
    filler_mode: str = "none"
    num_fillers: int = 0
    text_format: str = "plain"
    question_end_ids: list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.removal_side not in ("left", "right"):
            raise ValueError(f"removal_side must be 'left' or 'right', got {self.removal_side!r}")
        if self.filler_mode not in FILLER_MODES:
            raise ValueError(f"filler_mode must be one of {', '.join(FILLER_MODES)}, got {self.filler_mode!r}")
        if self.text_format not in TEXT_FORMATS:
            raise ValueError(f"text_format must be one of {', '.join(TEXT_FORMATS)}, got {self.text_format!r}")
        for name, least in (("num_internalized_tokens", ALL_TOKENS), ("num_fillers", 0), ("position_gap", 0)):
            if getattr(self, name) is not None or name != "position_gap":
                check_count(name, getattr(self, name), least)
        super().__post_init__(**kwargs)

    def describe(self) -> str:
        count = self.num_internalized_tokens
        gone = "all tokens" if count == ALL_TOKENS else f"{count} tokens"
        return f"Of its chain of thought {gone} were internalised (iCoT, arXiv 2405.14838)."


class ICoTGPT2Config(ICoTConfigMixin, GPT2Config):
    model_type = "icot-gpt2"


class ICoTLlamaConfig(ICoTConfigMixin, LlamaConfig):
    model_type = "icot-llama"


class ICoTMistralConfig(ICoTConfigMixin, MistralConfig):
    model_type = "icot-mistral"
