"""What the configurations of every family share: how a prompt is completed before the model answers."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(kw_only=True)
class PromptConfigMixin:
    """The fields that all families add to their backbone's configuration, and what describes a family.

    Args:
        answer_prompt_ids: tokens that announce the answer ("The answer is:"); may be empty where a family allows it.
        questions_start_with_bos: the model was trained on questions after a `bos_token_id`; `generate()` adds it where
            a prompt (a chat's) comes without.

    Class attributes:
        family: the first part of its model types: "pccot".
        special_tokens: what the family adds to a tokenizer, by the field that holds the token's id.
    """

    family: ClassVar[str]
    special_tokens: ClassVar[dict[str, str]]

    answer_prompt_ids: list[int] | None = None
    questions_start_with_bos: bool = False

    def describe(self) -> str:
        """One sentence for a model card: how the model gets by with less writing."""
        raise NotImplementedError(f"{type(self).__name__} does not describe itself")


def check_count(name: str, value: object, least: int) -> None:
    """Raises ValueError unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
