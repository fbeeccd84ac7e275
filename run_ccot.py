#!/usr/bin/env python
"""Train and evaluate PCCoT: latent chain of thought, distilled from the model's own explicit one.

    python run_ccot.py configs/recipes/pccot_chain.json --output_dir outputs/chain
    accelerate launch run_ccot.py --model_name_or_path gpt2 --config_name configs/pccot_gpt2_small.json \
        --dataset_name whynlp/gsm8k-aug --use_peft --do_train --do_eval --output_dir outputs/pccot-gpt2
    python run_ccot.py --model_name_or_path outputs/chain --dataset_name chain --do_predict --output_dir outputs/test
"""

from transformers import set_seed

from training.adapters import add_adapters
from training.arguments import (
    CoTTrainingArguments,
    DataArguments,
    EvaluationArguments,
    LoraArguments,
    ModelArguments,
    ThoughtArguments,
)
from training.cli import parse, run
from training.collators import LatentCollator
from training.data import load_splits
from training.loading import load_config, load_model, load_tokenizer, texts_of
from training.model_card import Card
from training.pipeline import check_arguments, describe_source, needed_splits, run_stages, tokenize_splits
from training.trainer import CoTTrainer

ARGUMENTS = (ModelArguments, ThoughtArguments, LoraArguments, DataArguments, EvaluationArguments, CoTTrainingArguments)


def main(argv: list[str]) -> dict:
    """Run with command line arguments (see `--help`); returns the metrics."""
    model_args, thought, lora, data, evaluation, args = parse(ARGUMENTS, argv)
    check_arguments(args, data)
    config = load_config(model_args, thought, family="pccot")
    splits = load_splits(data, needed_splits(args))
    tokenizer = load_tokenizer(model_args, texts_of(splits, thought.answer_prompt), family="pccot")

    set_seed(args.seed)
    model = load_model(model_args, config, tokenizer, thought.answer_prompt)
    collator = LatentCollator(tokenizer, model.config, thought.batch_curriculum_prob)
    splits = tokenize_splits(splits, tokenizer, collator, data, model.config.max_position_embeddings)
    if lora.use_peft:
        model = add_adapters(model, lora)

    trainer = CoTTrainer(
        model=model,
        args=args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=collator,
        eval_collator=LatentCollator(tokenizer, config),
        kinds=["ccot", "cot"] if evaluation.explicit_cot else ["ccot"],
        evaluation=evaluation,
        teacher_warmup_steps=thought.teacher_warmup_steps,
    )
    card = Card(
        task=describe_source(data),
        method=f"`{config.model_type}` with latent chain of thought, trained by distilling its explicit one.",
        base_model=model_args.model_name_or_path,
    )
    return run_stages(trainer, splits, lora, card)


if __name__ == "__main__":
    run(main)
