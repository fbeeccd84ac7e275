"""Text to tokens: a tokenizer's special tokens, and data sets as features for the collators."""

import json
import logging
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latent_cot.training.arguments import DataArguments
from latent_cot.training.errors import InputError

from .collators import CoTCollator
from .row_cache import fingerprint

logger = logging.getLogger(__name__)

PAD = "[PAD]"
SENTENCEPIECE_SPACE = "▁"
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
# The same for a model whose questions begin with a system message, as `layouts.read_messages` joins the two.
SYSTEM_TEMPLATE = CHAT_TEMPLATE.partition("-#}\n")[2].replace(
    "{%- for message in messages[chat.question:]",
    '{%- if chat.question and messages[0].role == "system" -%}{{ text(messages[0].content) + "\\n\\n" }}{%- endif -%}\n'
    "{%- for message in messages[chat.question:]",
)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, special_tokens: dict[str, str] | None = None) -> int:
    """Add what is missing, in place: a padding token of its own and a family's tokens (`PromptConfigMixin.special_tokens`).

    Text stays text: the tokenizer is set to spell out special tokens that occur in what a user writes, and to pad
    on the left, and is saved so.

    Returns:
        How many tokens were added.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-sequence token, so a model could not learn to stop")
    added = 0
    if special_tokens:
        tokenizer.chat_template = CHAT_TEMPLATE
        # One that is there as an ordinary word becomes special: text that spells it must not be it.
        missing = [token for token in special_tokens.values() if token not in tokenizer.all_special_tokens]
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
    """Token ids of a batch of examples: `question`, `steps` (a list per step), `answer`, and `windows` where they have it
    (a list per pass and step, or None).

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
    features = {
        "question": [strip_eos(ids, tokenizer) for ids in encode(examples["question"], special=True)],
        "steps": [list(islice(steps, len(chain))) for chain in chains],
        "answer": [without_leading_space(ids, tokenizer) for ids in encode(examples["answer"])],
    }
    if "windows" in examples:
        # Their last texts belong to the last step. The same few stand in many passes, so each is encoded once.
        last = None if keep_last_step else -1
        passes = [row and [texts[:last] for texts in row] for row in examples["windows"]]
        different = list({text for row in passes for texts in row or () for text in texts})
        ids = dict(zip(different, encode(different), strict=True))
        features["windows"] = [row and [[ids[text] for text in texts] for texts in row] for row in passes]
    return features


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


def tokenize_answer_prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the answer prompt. Raises InputError if there are none, or only space."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if not ids or not text.strip():
        raise InputError(f"--answer_prompt {text!r} is empty; an answer is recognised by the text before it")
    if unknown_id(tokenizer) in ids:
        raise InputError(f"--answer_prompt {text!r} holds text that the tokenizer does not know")
    return ids


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token for text that a tokenizer does not know; None where it knows all (GPT-2 has one by name alone)."""
    number = tokenizer.unk_token_id
    return None if number in (tokenizer.eos_token_id, tokenizer.bos_token_id) else number


def warn_of_unknown(questions: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Says how many questions the model cannot read as they are."""
    unknown = unknown_id(tokenizer)
    count = 0 if unknown is None else sum(unknown in ids for ids in tokenizer(questions)["input_ids"])
    if count:
        logger.warning(
            "%d of %d questions hold text that the tokenizer does not know, which the model reads as %s",
            *(count, len(questions), tokenizer.unk_token),
        )


def set_special_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell model and generation which tokens pad, begin and end a text."""
    # Not before the vocabulary has its size: a padding id beyond it crashes Llama's embedding.
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.bos_token_id = tokenizer.bos_token_id


def tokenize_split(
    examples: Dataset | IterableDataset,
    split: str,
    encode: Callable[[dict], dict],
    collator: CoTCollator,
    data: DataArguments,
    positions: int | None,
) -> Dataset | IterableDataset:
    """A split as features for the collator, with their `row` numbers; evaluation splits keep their texts.

    Features of rows that are in the cache of `datasets` are there too, and made only once.

    Args:
        split: its name; all but "train" are for evaluation.
        positions: the model's own limit in tokens, if it has one.

    Raises:
        InputError: for a row that is too long, unless `--drop_long`.
    """
    limit = min(filter(None, (data.block_size, positions)), default=None)
    tokenizer = getattr(encode, "keywords", {}).get("tokenizer")
    unknown = tokenizer and unknown_id(tokenizer)

    def holds_unknown(row: dict) -> bool:
        return any(unknown in ids for ids in (row["question"], row["answer"], *row["steps"]))

    def features_of(examples: dict, indices: list[int]) -> dict:
        features = encode(examples)
        rows = [dict(zip(features, row, strict=True)) for row in zip(*features.values(), strict=True)]
        features["length"] = [collator.length(row) for row in rows]
        for index, length, question in zip(indices, features["length"], examples["question"], strict=True):
            if limit is not None and length > limit and not data.drop_long:
                raise InputError(
                    f"{split} row {index} is too long: {length} tokens, and the limit is {limit} "
                    f"({question[:40]!r}; --drop_long leaves such rows out)"
                )
        features["sort_key"] = [collator.sort_key(row) for row in rows]
        features["chain_length"] = [len(collator.chain(row)) for row in rows]
        features["ending_length"] = [len(collator.ending(row)) for row in rows]
        features["row"] = indices
        features["unknown"] = [unknown is not None and holds_unknown(row) for row in rows]
        gold = features.pop("answer_text", examples["answer"])
        if split != "train":
            features |= {"question_text": examples["question"], "answer_text": gold}
        return features

    fields = ["question", "steps", "answer", "windows"]
    columns = {"remove_columns": [name for name in fields if name in (examples.column_names or fields[:3])]}
    drops = limit is not None and data.drop_long
    if isinstance(examples, IterableDataset):
        features = examples.map(features_of, batched=True, with_indices=True, **columns)
        return features.filter(lambda length: length <= limit, input_columns="length") if drops else features
    key = fingerprint(examples._fingerprint, split, limit, drops, encoding_key(encode, collator))
    options = {"num_proc": data.preprocessing_num_workers, "new_fingerprint": key}
    features = examples.map(features_of, batched=True, with_indices=True, **columns, **options)
    if split == "train" and not column(features, "chain_length").any() and collator.with_steps:
        logger.warning("no row has a step left for the teacher; --keep_last_step keeps the last (or only) one")
    unread = np.flatnonzero(column(features, "unknown"))
    if len(unread):
        logger.warning(
            "%s: %d of %d rows hold text that the tokenizer does not know (the first is row %d), which the model reads as %s",
            *(split, len(unread), len(features), unread[0], tokenizer.unk_token),
        )
    if not drops:
        return features
    kept = np.flatnonzero(column(features, "length") <= limit)
    if len(kept) == 0:
        raise InputError(f"{split}: every row is longer than {limit} tokens")
    dropped = len(features) - len(kept)
    logger.info("%s: left out %d of %d rows longer than %d tokens", split, dropped, len(features), limit)
    return features.select(kept) if dropped else features


def encoding_key(encode: Callable[[dict], dict], collator: CoTCollator) -> str:
    """What features depend on beside their texts: how they are encoded, and how the collator measures them."""
    options = dict(getattr(encode, "keywords", {}))
    tokenizer = options.pop("tokenizer", None)
    content = None
    if tokenizer is not None:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        for name in ("padding", "truncation"):  # set by whoever used it last
            content.pop(name)
    function = getattr(encode, "func", encode)
    return Hasher.hash([function, options, content, tokenizer and tokenizer.special_tokens_map, collator])


def column(features: Dataset, name: str) -> np.ndarray:
    """A column of numbers, `(rows,)`, without a Python list of it."""
    return features.with_format("numpy", columns=[name])[name][:]
