"""What the configurations of every family share: how a prompt is completed before the model answers, and what is checked."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from transformers.activations import ACT2FN

from .answer_modes import ANSWER_SOURCES
from .mixin_base import ConfigBase

# What a field of ours may hold, by its annotation: a test, and the words for it.
KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "true or false"),
    str: (lambda value: isinstance(value, str), "text"),
    int: (lambda value: is_whole(value), "a whole number"),
    int | None: (lambda value: value is None or is_whole(value), "a whole number, or null"),
    float | int: (lambda value: is_number(value), "a number"),
    list[int] | None: (
        lambda value: value is None or (isinstance(value, list) and all(map(is_whole, value))),
        "a list of whole numbers, or null",
    ),
}
# A backbone's sizes, under the names that all of them share. They are multiplied, so each has a bound far above any model's.
SIZES = ("vocab_size", "hidden_size", "num_attention_heads", "max_position_embeddings")
OPTIONAL_SIZES = ("num_key_value_heads", "intermediate_size", "head_dim", "n_inner", "sliding_window")
MOST, MOST_LAYERS = 2**24, 2**10
MOST_ID = 2**31 - 1  # vocabularies grow after the configuration is made
LATENTS, WORDS = "latents", "words"  # what may stand between question and answer


@dataclass(kw_only=True)
class PromptConfigMixin(ConfigBase):
    """The fields that all families add to their backbone's configuration, and what describes a family.

    Args:
        answer_prompt_ids: tokens that announce the answer ("The answer is:"); may be empty where a family allows it.
        answer_from: where in a generated text its answer is (`answer_modes.ANSWER_SOURCES`).
        questions_start_with_bos: the model was trained on questions after a `bos_token_id`; `generate()` adds it where
            a prompt (a chat's) comes without.

    Class attributes:
        family: the first part of its model types: "pccot".
        default_answer_prompt: announces the answer where a run does not say otherwise.
        special_tokens: what the family adds to a tokenizer, by the field that holds the token's id.
        between: what stands between question and answer: `LATENTS`, or `WORDS` (a chain, or fillers); analysis and engines
            refuse a family that says nothing.

    Raises:
        ValueError: for a field of another type than its annotation's, an id below 0, or a size that no model has. Whether
            ids are inside the vocabulary is checked by `generate()`: new tokens are set before the vocabulary grows.
    """

    family: ClassVar[str]
    default_answer_prompt: ClassVar[str] = "The answer is:"
    special_tokens: ClassVar[dict[str, str]]
    between: ClassVar[str] = ""

    answer_prompt_ids: list[int] | None = None
    answer_from: str = "prompt"
    questions_start_with_bos: bool = False

    def __post_init__(self, **kwargs):
        check_sizes(self)  # backbones compute with them at once ...
        super().__post_init__(**kwargs)
        check_sizes(self)  # ... and take them under other names, too
        check_fields(self)
        check_choice("answer_from", self.answer_from, tuple(ANSWER_SOURCES))
        if self.questions_start_with_bos and self.bos_token_id is None:
            raise ValueError("questions_start_with_bos is true, but there is no bos_token_id for them to start with")

    def describe(self) -> str:
        """One sentence for a model card: how the model gets by with less writing."""
        raise NotImplementedError(f"{type(self).__name__} does not describe itself")


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a finite number, and none that is beyond what a tensor can be compared with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def check_count(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raises ValueError unless `value` is a whole number of at least `least` and, where there is a limit, at most `most`."""
    if not isinstance(value, int) or not is_whole(value) or value < least or (most is not None and value > most):
        upper = "" if most is None else f" and at most {most}"
        raise ValueError(f"{name} must be a whole number of at least {least}{upper}, got {value!r}")


def check_flag(name: str, value: object) -> None:
    """Raises ValueError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of the known words."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def check_apart(config: PromptConfigMixin, tokens: Iterable[str], others: Iterable[str]) -> None:
    """Raises ValueError where a token stands for two things.

    Args:
        tokens: fields that hold different tokens.
        others: fields of a token, or of several, which may be each other's but none of `tokens`.
    """
    held: dict[int, str] = {}
    for name in (*tokens, *others):
        value = getattr(config, name, None)
        for token in value if isinstance(value, list) else [] if value is None else [value]:
            if (other := held.get(token, name)) != name:
                raise ValueError(f"{other} and {name} must be different tokens, and both are {token}")
            if name in tokens:
                held[token] = name


def check_fields(config: PromptConfigMixin) -> None:
    """Raises ValueError for a field that a family adds whose value is not what its annotation says, or an id below 0."""
    for mixin in type(config).__mro__:
        if PromptConfigMixin not in mixin.__mro__ or hasattr(mixin, "from_pretrained"):
            continue  # the families' own fields alone; a backbone checks its own
        for field in fields(mixin):
            value = getattr(config, field.name)
            fits, words = KINDS[field.type]
            if not fits(value):
                raise ValueError(f"{field.name} must be {words}, got {shorten(value)}")
            ids = value if field.name.endswith("_ids") else [value] if field.name.endswith("_token_id") else []
            if any(token is not None and not 0 <= token <= MOST_ID for token in ids or []):
                raise ValueError(f"{field.name} must hold token ids from 0 to {MOST_ID}, got {shorten(value)}")
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        held = getattr(config, name)
        if any(is_whole(token) and abs(token) > MOST_ID for token in (held if isinstance(held, list) else [held])):
            raise ValueError(f"{name} must be a token id of at most {MOST_ID}, got {shorten(held)}")


def check_sizes(config) -> None:
    """Raises ValueError for a size of the backbone that is no whole number between 1 and what any model could have, or does not fit."""
    for name in SIZES + OPTIONAL_SIZES:
        value = getattr(config, name, None)
        if value is not None:
            check_count(name, value, 1, MOST)
    check_count("num_hidden_layers", config.num_hidden_layers, 1, MOST_LAYERS)
    heads, groups, width = config.num_attention_heads, getattr(config, "num_key_value_heads", None), config.hidden_size
    if groups is not None and heads % groups:
        raise ValueError(f"num_key_value_heads must divide num_attention_heads ({heads}), got {groups}")
    if getattr(config, "head_dim", None) is None and width % heads:
        raise ValueError(f"num_attention_heads must divide hidden_size ({width}), got {heads}")
    for name in ("hidden_act", "activation_function"):
        if getattr(config, name, "gelu") not in ACT2FN:
            raise ValueError(f"{name}: there is no activation {shorten(getattr(config, name))}")


def shorten(value: object) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
