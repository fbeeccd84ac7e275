#!/usr/bin/env python
"""Train and evaluate iCoT: the explicit chain of thought is taken away token by token, or turned into fillers.

    python run_icot.py configs/recipes/chain_icot_gpt2-4x96.yaml --output_dir outputs/icot
    accelerate launch run_icot.py --model_name_or_path gpt2 --train_file train.txt --validation_file valid.txt \
        --remove_per_epoch 8 --removal_smoothing_lambda 4 --reset_optimizer --num_train_epochs 200 \
        --do_train --do_eval --output_dir outputs/icot-gpt2
"""

from latent_cot.training import (
    CoTTrainingArguments,
    ICoTArguments,
    ICoTDataArguments,
    ICoTEvaluationArguments,
    ICoTTrainer,
    ModelArguments,
)
from latent_cot.training.cli import parse, run
from latent_cot.training.data.sources import dataset_label, load_splits
from latent_cot.training.runs.stages import check_arguments, run_stages, splits_to_load

ARGUMENTS = (ModelArguments, ICoTArguments, ICoTDataArguments, ICoTEvaluationArguments, CoTTrainingArguments)


def main(argv: list[str]) -> dict:
    """Run with command line arguments (see `--help`); returns the metrics."""
    model, method, data, evaluation, args = parse(ARGUMENTS, argv)
    check_arguments(args, data, evaluation, method)
    splits = load_splits(data, splits_to_load(args))
    trainer = ICoTTrainer(
        model,
        args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        test_dataset=splits.get("test"),
        method=method,
        data=data,
        evaluation=evaluation,
    )
    return run_stages(trainer, dataset_label(data))


if __name__ == "__main__":
    run(main)
