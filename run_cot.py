#!/usr/bin/env python
"""Train and evaluate the two baselines: an explicit chain of thought, or with --no_cot none at all.

    python run_cot.py configs/recipes/chain_nocot_gpt2-2x64.yaml --output_dir outputs/no-cot
    accelerate launch run_cot.py --model_name_or_path gpt2 --dataset_name whynlp/gsm8k-aug \
        --use_peft --do_train --do_eval --output_dir outputs/cot-gpt2
"""

from latent_cot.training import (
    CoTArguments,
    CoTTrainer,
    CoTTrainingArguments,
    EvaluationArguments,
    LoraArguments,
    ModelArguments,
    StepwiseDataArguments,
)
from latent_cot.training.cli import parse, run
from latent_cot.training.data.sources import dataset_label, load_splits
from latent_cot.training.runs.stages import check_arguments, run_stages, splits_to_load

ARGUMENTS = (
    ModelArguments,
    CoTArguments,
    LoraArguments,
    StepwiseDataArguments,
    EvaluationArguments,
    CoTTrainingArguments,
)


def main(argv: list[str]) -> dict:
    """Run with command line arguments (see `--help`); returns the metrics."""
    model, chain, lora, data, evaluation, args = parse(ARGUMENTS, argv)
    check_arguments(args, data)
    splits = load_splits(data, splits_to_load(args), with_steps=not chain.no_cot)
    trainer = CoTTrainer(
        model,
        args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        test_dataset=splits.get("test"),
        method=chain,
        data=data,
        lora=lora,
        evaluation=evaluation,
    )
    return run_stages(trainer, dataset_label(data))


if __name__ == "__main__":
    run(main)
