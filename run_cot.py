#!/usr/bin/env python
"""Train and evaluate an explicit chain of thought, or with --no_cot none at all: what PCCoT is compared with.

    python run_cot.py --config_name configs/gpt2_chain.json --tokenizer_name characters --dataset_name chain \
        --no_cot --do_train --do_predict --output_dir outputs/no-cot
    accelerate launch run_cot.py --model_name_or_path gpt2 --dataset_name whynlp/gsm8k-aug \
        --use_peft --do_train --do_eval --output_dir outputs/cot-gpt2
"""

from dataclasses import dataclass

from transformers import set_seed

from training.adapters import add_adapters
from training.arguments import (
    CoTTrainingArguments,
    DataArguments,
    EvaluationArguments,
    LoraArguments,
    ModelArguments,
    ThoughtArguments,
    option,
)
from training.cli import parse, run
from training.collators import CoTCollator
from training.data import load_splits
from training.loading import load_config, load_model, load_tokenizer, texts_of
from training.model_card import Card
from training.pipeline import check_arguments, describe_source, needed_splits, run_stages, tokenize_splits
from training.tokenization import FAMILY_TOKENS
from training.trainer import CoTTrainer


@dataclass
class ChainArguments:
    """Which chain of thought."""

    no_cot: bool = option(False, "Leave the steps out: question, answer prompt, answer.")
    answer_prompt: str | None = ThoughtArguments.__dataclass_fields__["answer_prompt"]


ARGUMENTS = (ModelArguments, ChainArguments, LoraArguments, DataArguments, EvaluationArguments, CoTTrainingArguments)


def main(argv: list[str]) -> dict:
    """Run with command line arguments (see `--help`); returns the metrics."""
    model_args, chain, lora, data, evaluation, args = parse(ARGUMENTS, argv)
    check_arguments(args, data)
    config = load_config(model_args, ThoughtArguments(), family=None)
    splits = load_splits(data, needed_splits(args))
    family = config.model_type.partition("-")[0]
    tokenizer = load_tokenizer(
        model_args, texts_of(splits, chain.answer_prompt), family if family in FAMILY_TOKENS else None
    )

    set_seed(args.seed)
    model = load_model(model_args, config, tokenizer, chain.answer_prompt)
    opening = (config.bot_token_id,) if getattr(config, "open_steps_with_bot", False) and not chain.no_cot else ()
    collator = CoTCollator(
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        model.config.answer_prompt_ids,
        opening,
        with_steps=not chain.no_cot,
    )
    splits = tokenize_splits(splits, tokenizer, collator, data, model.config.max_position_embeddings)
    if lora.use_peft:
        model = add_adapters(model, lora)

    kind = "no_cot" if chain.no_cot else "cot"
    trainer = CoTTrainer(
        model=model,
        args=args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=collator,
        eval_collator=collator,
        kinds=[kind],
        evaluation=evaluation,
    )
    card = Card(
        task=describe_source(data),
        method=f"`{config.model_type}`, trained {'without' if chain.no_cot else 'with an explicit'} chain of thought.",
        base_model=model_args.model_name_or_path,
    )
    return run_stages(trainer, splits, lora, card)


if __name__ == "__main__":
    run(main)
