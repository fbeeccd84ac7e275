"""Train and evaluate the two baselines: an explicit chain of thought, or with --no_cot none at all. See `run_cot.py`."""

from latent_cot.training import (
    CoTArguments,
    CoTTrainer,
    CoTTrainingArguments,
    EvaluationArguments,
    LoraArguments,
    ModelArguments,
    StepwiseDataArguments,
)
from latent_cot.training.cli import parse
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


def main(argv: list[str], trainer_class: type[CoTTrainer] = CoTTrainer) -> dict:
    """Run with command line arguments (see `--help`); returns the metrics.

    Args:
        trainer_class: of an experiment.
    """
    model, chain, lora, data, evaluation, args = parse(ARGUMENTS, argv)
    check_arguments(args, data, evaluation, chain)
    splits = load_splits(data, splits_to_load(args), with_steps=not chain.no_cot)
    trainer = trainer_class(
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
