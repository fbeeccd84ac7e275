"""Rows for other people's trainers (transformers' Trainer, TRL's SFTTrainer), with what a model of ours expects in them.

`generate()` opens a prompt by itself; a trainer calls `forward`, so the thought span, or the separators, have to be in its rows:

    rows = rows.map(open_prompts(tokenizer, model), remove_columns=rows.column_names)
    Trainer(model, args, train_dataset=rows, data_collator=DataCollatorForSeq2Seq(tokenizer)).train()
"""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latent_cot.chunked_cross_entropy import IGNORED
from latent_cot.training.data.rows import check_text, field_of
from latent_cot.training.data.tokenization import strip_eos, without_leading_space


def open_prompts(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, **options) -> Callable[[dict], dict]:
    """A function for `Dataset.map` that makes training rows of questions and answers.

    Args:
        model: opens the prompts (`open_prompt`).
        **options: of `open_prompt`: `num_latent_tokens`, `explicit_steps`, ...

    Returns:
        A function from a row of `question` (or `prompt`) and `answer` (or `completion`), texts, to `input_ids`,
        `attention_mask` and `labels`, lists of one length: the opened prompt, the answer and the end of sequence; labels are
        -100 in the prompt. It raises InputError for a row without such texts.
    """

    def text_of(row: dict, name: str, other: str) -> str:
        name = other if name not in row and other in row else name
        return check_text(name, field_of(row, name))

    def open_row(row: dict) -> dict:
        question, answer = text_of(row, "question", "prompt"), text_of(row, "answer", "completion")
        ids = strip_eos(tokenizer(question)["input_ids"], tokenizer)
        opened = model.open_prompt(torch.tensor([ids], device=model.device), **options)
        prompt = opened["input_ids"][0].tolist()
        answer = without_leading_space(tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer)
        answer.append(tokenizer.eos_token_id)
        return {
            "input_ids": prompt + answer,
            "attention_mask": [1] * len(prompt + answer),
            "labels": [IGNORED] * len(prompt) + answer,
        }

    return open_row
