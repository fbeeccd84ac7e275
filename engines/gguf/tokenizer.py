"""A tokenizer as GGUF describes one, for those that llama.cpp then reads alike; any other is refused.

llama.cpp builds a tokenizer from a kind, a list of tokens, and merges or scores; it has no normalizers or pre-tokenizers
but those that it knows by name.
"""

import json
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from latent_cot.training.data.tokenization import SENTENCEPIECE_SPACE
from latent_cot.training.errors import InputError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # GGUF's kinds of tokens
# How Llama 3 and Qwen split a text before they encode its parts.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT, QWEN_SPLIT = (SPLIT.replace("NUMBER", number) for number in (r"\p{N}{1,3}", r"\p{N}"))


@dataclass
class GGUFTokenizer:
    """What a GGUF file says about a tokenizer."""

    model: str  # llama.cpp's kind: "gpt2" (byte-level BPE), "llama" (sentencepiece) or "t5" (unigram)
    pre: str  # llama.cpp's name of the pre-tokenizer
    tokens: list[str]  # the text of each id
    types: list[int]  # the kind of each id: NORMAL,
    merges: list[str] = field(default_factory=list)  # of byte-level BPE, each "left right"
    scores: list[float] | None = None  # of the other kinds, one per token
    space_prefix: bool = False  # llama.cpp puts a space before a text
    single_spaces: bool = False  # llama.cpp takes several spaces for one


def gguf_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int) -> GGUFTokenizer:
    """A tokenizer as llama.cpp has to be told of it. Raises InputError for a tokenizer that GGUF cannot express.

    Args:
        rows: the model's vocabulary; ids beyond the tokenizer's are marked as unused.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    kind, pre = content["model"]["type"], content["pre_tokenizer"] or {}
    tokens, types = tokens_of(tokenizer, rows)
    if kind == "WordLevel" and is_by_character(pre):
        return unigram(tokens, types)
    if kind == "WordLevel" and is_by_word(pre):
        return unigram(tokens, types, space_prefix=True, single_spaces=True)
    if kind == "BPE" and content["model"].get("byte_fallback") and pre.get("type") in (None, "Metaspace"):
        return sentencepiece(content, tokens, types)
    name = pre_tokenizer_name(pre, content["model"]["merges"]) if kind == "BPE" else None
    # With Llama 3's, and only there, llama.cpp looks a word up as a whole before it merges.
    whole_words = bool(content["model"].get("ignore_merges")) == (name == "llama-bpe")
    if name and whole_words and normalizers_of(content) <= {"NFC", "Prepend"}:  # the latter is written into the prompt
        # Without merges at all llama.cpp refuses a file: this one joins what no text holds.
        merges = [" ".join(pair) for pair in content["model"]["merges"]] or ["<> <>"]
        return GGUFTokenizer("gpt2", name, tokens, types, merges=merges)
    raise InputError(
        f"GGUF cannot express this tokenizer (a {kind} after {pre.get('type', 'no pre-tokenizer')}); it can express byte-level "
        "BPE as GPT-2, Llama 3, Qwen and SmolLM have it, sentencepiece BPE, and `characters`, `words`, `bytes`"
    )


def tokens_of(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[list[str], list[int]]:
    """The text and the kind of every id below `rows`."""
    tokens, types = [f"[unused{index}]" for index in range(rows)], [UNUSED] * rows
    for token, index in tokenizer.get_vocab().items():
        tokens[index], types[index] = token, NORMAL
    for index, token in tokenizer.added_tokens_decoder.items():
        types[index] = CONTROL if token.special else USER_DEFINED
    if tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = UNKNOWN
    return tokens, types


def normalizers_of(content: dict) -> set[str]:
    """The types of a tokenizer's normalizers; llama.cpp does without Qwen's NFC."""
    normalizer = content["normalizer"] or {"type": "Sequence", "normalizers": []}
    return {part["type"] for part in normalizer.get("normalizers", [normalizer])}


def is_by_character(pre: dict) -> bool:
    return (pre.get("type"), pre.get("pattern"), pre.get("behavior")) == ("Split", {"Regex": r"[\s\S]"}, "Isolated")


def is_by_word(pre: dict) -> bool:
    """Whether a text is split as `small_tokenizers.word_tokenizer` splits it."""
    parts = [part["type"] for part in pre.get("pretokenizers", [])]
    return parts == ["WhitespaceSplit", "Metaspace", "Split"]


def unigram(tokens: list[str], types: list[int], **spaces: bool) -> GGUFTokenizer:
    """Words or characters, of which none is a part of another: unigrams that all score the same.

    llama.cpp makes one `<unk>` of several unknown ones in a row.
    """
    if not spaces:  # llama.cpp writes a space so before it looks a text up
        tokens = [SENTENCEPIECE_SPACE if token == " " else token for token in tokens]
    if len(set(tokens)) < len(tokens) or UNKNOWN not in types:
        raise InputError(f"GGUF cannot express a tokenizer with a {SENTENCEPIECE_SPACE!r}, or without an <unk>")
    return GGUFTokenizer("t5", "default", tokens, types, scores=[0.0] * len(tokens), **spaces)


def sentencepiece(content: dict, tokens: list[str], types: list[int]) -> GGUFTokenizer:
    """Llama's kind, whose merges become scores: what is merged first scores highest."""
    scores = dict.fromkeys(range(len(tokens)), -1e6)
    index = content["model"]["vocab"]
    for rank, (left, right) in reversed(list(enumerate(content["model"]["merges"]))):
        scores[index[left + right]] = -float(rank)
    for byte in range(256):
        if (place := index.get(f"<0x{byte:02X}>")) is None:
            raise InputError("GGUF cannot express a sentencepiece tokenizer without a token for each byte")
        types[place] = BYTE
    pre = content["pre_tokenizer"] or {}
    prefix = "Prepend" in normalizers_of(content) or pre.get("prepend_scheme", "never") != "never"
    return GGUFTokenizer("llama", "default", tokens, types, scores=list(scores.values()), space_prefix=prefix)


def pre_tokenizer_name(pre: dict, merges: list) -> str | None:
    """llama.cpp's name of what splits a text before byte-level BPE; None for what it does not know."""
    parts = pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]
    last = parts[-1]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    if not merges:
        return "gpt-2"  # a token per byte, wherever a text is split
    if len(parts) == 1:
        return "gpt-2" if last["use_regex"] else None
    first = parts[0] if len(parts) == 2 else {}
    if first == {"type": "Digits", "individual_digits": True} and last["use_regex"]:
        return "smollm"
    if first.get("type") == "Split" and first["behavior"] == "Isolated" and not last["use_regex"]:
        return {LLAMA3_SPLIT: "llama-bpe", QWEN_SPLIT: "qwen2"}.get(first["pattern"].get("Regex"))
    return None
