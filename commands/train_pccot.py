"""Train and evaluate PCCoT: latent chain of thought, distilled from the model's own explicit one. See `run_ccot.py`."""

from latent_cot.training import (
    CoTTrainingArguments,
    DataArguments,
    LatentEvaluationArguments,
    LoraArguments,
    ModelArguments,
    PCCoTArguments,
    PCCoTTrainer,
)
from latent_cot.training.cli import parse
from latent_cot.training.data.sources import dataset_label, load_splits
from latent_cot.training.runs.stages import check_arguments, run_stages, splits_to_load

ARGUMENTS = (
    ModelArguments,
    PCCoTArguments,
    LoraArguments,
    DataArguments,
    LatentEvaluationArguments,
    CoTTrainingArguments,
)


def main(argv: list[str], trainer_class: type[PCCoTTrainer] = PCCoTTrainer) -> dict:
    """Run with command line arguments (see `--help`); returns the metrics.

    Args:
        trainer_class: of an experiment.
    """
    model, thought, lora, data, evaluation, args = parse(ARGUMENTS, argv)
    check_arguments(args, data, evaluation, thought)
    splits = load_splits(data, splits_to_load(args))
    trainer = trainer_class(
        model,
        args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        test_dataset=splits.get("test"),
        method=thought,
        data=data,
        lora=lora,
        evaluation=evaluation,
    )
    return run_stages(trainer, dataset_label(data))
