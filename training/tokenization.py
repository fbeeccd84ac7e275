"""Text to tokens: the special tokens of a thought, and examples as lists of ids."""

import logging
from collections.abc import Iterable
from itertools import islice

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .errors import InputError

logger = logging.getLogger(__name__)

PAD = "[PAD]"
# What each family adds to a tokenizer, by the configuration field that holds the id.
FAMILY_TOKENS = {
    "pccot": {"bot_token_id": "<pcot.bot>", "eot_token_id": "<pcot.eot>", "latent_token_id": "<pcot.latent>"},
    "icot": {"start_token_id": "<start>", "pause_token_id": "<pause>", "ready_token_id": "<ready>"},
}
SENTENCEPIECE_SPACE = "▁"
# A chat's prompt is its last question, as the models are trained on questions alone (behind a system message, if there
# is one). The thought is opened by generate(): special tokens of a template would be spelled out, like a user's.
CHAT_TEMPLATE = """\
{%- macro text(content) -%}
    {%- if content is string -%}{{ content }}
    {%- else -%}{%- for part in content -%}{{ part.text }}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set chat = namespace(question=0) -%}
{%- for message in messages -%}
    {%- if message.role == "user" -%}{%- set chat.question = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if messages[0].role == "system" and chat.question > 0 -%}{{ text(messages[0].content) + "\n\n" }}{%- endif -%}
{%- for message in messages[chat.question:] -%}{{ text(message.content) }}{%- endfor -%}
"""


def character_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a character that occurs in `texts`, `<unk>` for any other."""
    characters = sorted({character for text in texts for character in text})
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<eos>", *characters])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte of UTF-8: any text, without a download."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<eos>", *alphabet])}
    tokenizer = Tokenizer(BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, family: str | None) -> int:
    """Add what is missing, in place: a padding token of its own and the tokens of the family ("pccot", "icot").

    Text stays text: the tokenizer is set to spell out special tokens that occur in what a user writes, and to pad
    on the left, and is saved so.

    Returns:
        How many tokens were added.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-sequence token, so a model could not learn to stop")
    added = 0
    if family is not None:
        tokenizer.chat_template = CHAT_TEMPLATE
        missing = [token for token in FAMILY_TOKENS[family].values() if token not in tokenizer.get_vocab()]
        known = [str(token) for token in getattr(tokenizer, "extra_special_tokens", None) or []]
        if missing:
            added += tokenizer.add_special_tokens({"extra_special_tokens": known + missing})
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        # With pad == eos the end of sequence would be masked out of the labels like padding.
        added += tokenizer.add_special_tokens({"pad_token": PAD})
    for name, value in (("padding_side", "left"), ("split_special_tokens", True)):
        setattr(tokenizer, name, value)
        tokenizer.init_kwargs[name] = value  # save_pretrained writes only what is in here
    return added


def tokenize(
    examples: dict[str, list], tokenizer: PreTrainedTokenizerBase, keep_last_step: bool = False
) -> dict[str, list]:
    """Token ids of a batch of examples: `question`, `steps` (a list a step) and `answer`.

    The teacher does not see the last step, which usually gives the answer away, unless `keep_last_step` (PCCoT,
    section 4.1, after CODI).
    """

    def encode(texts: list[str], special: bool = False) -> list[list[int]]:
        if not texts:
            return []
        return tokenizer(texts, add_special_tokens=special, split_special_tokens=True, return_attention_mask=False)[
            "input_ids"
        ]

    chains = [chain if keep_last_step else chain[:-1] for chain in examples["steps"]]
    steps = iter(encode([step for chain in chains for step in chain]))
    return {
        "question": [strip_eos(ids, tokenizer) for ids in encode(examples["question"], special=True)],
        "steps": [list(islice(steps, len(chain))) for chain in chains],
        "answer": [without_leading_space(ids, tokenizer) for ids in encode(examples["answer"])],
    }


def starts_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts its beginning of sequence before a text."""
    ids = tokenizer("1")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def strip_eos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A question is continued, so an end of sequence that the tokenizer appends goes (but not a leading BOS)."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def without_leading_space(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Drop the lone space that sentencepiece puts before a number: the answer follows the answer prompt directly."""
    if ids and tokenizer.convert_ids_to_tokens(ids[0]) == SENTENCEPIECE_SPACE:
        return ids[1:]
    return ids


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a word between spaces that occurs in `texts`, `<unk>` for any other."""
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<eos>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


def tokenize_answer_prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the answer prompt.

    Raises:
        InputError: if there are none, or only space.
    """
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if not ids or not text.strip():
        raise InputError(f"--answer_prompt {text!r} is empty; an answer is recognised by the text before it")
    return ids
