"""Tokenizers that need no download: made from the training data, or of bytes."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast


def character_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per character that occurs in `texts`, `<unk>` for any other."""
    characters = set()
    for text in texts:
        characters.update(text)
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<eos>", *sorted(characters)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per word between spaces that occurs in `texts`, and one per mark at the end of a word; `<unk>` for any other.

    So "Tom", "Tom." and "Tom?" hold the same word.
    """
    parts = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(prepend_scheme="always"),  # a word remembers the space before it, a mark has none
            pre_tokenizers.Split(Regex(r"(?<=[^▁])[.,;:?!](?=[.,;:?!]*$)"), "isolated"),
        ]
    )
    words = sorted({word for text in texts for word, _ in parts.pre_tokenize_str(text)})
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<eos>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = parts, decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte of UTF-8: any text, without a download."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<eos>", *alphabet])}
    tokenizer = Tokenizer(BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
