"""Train and evaluate iCoT: the explicit chain of thought is taken away token by token, or turned into fillers. See `run_icot.py`."""

from latent_cot.training import (
    CoTTrainingArguments,
    ICoTArguments,
    ICoTDataArguments,
    ICoTEvaluationArguments,
    ICoTTrainer,
    ModelArguments,
)
from latent_cot.training.cli import parse
from latent_cot.training.data.sources import dataset_label, load_splits
from latent_cot.training.runs.stages import check_arguments, run_stages, splits_to_load

ARGUMENTS = (ModelArguments, ICoTArguments, ICoTDataArguments, ICoTEvaluationArguments, CoTTrainingArguments)


def main(argv: list[str], trainer_class: type[ICoTTrainer] = ICoTTrainer) -> dict:
    """Run with command line arguments (see `--help`); returns the metrics.

    Args:
        trainer_class: of an experiment.
    """
    model, method, data, evaluation, args = parse(ARGUMENTS, argv)
    check_arguments(args, data, evaluation, method)
    splits = load_splits(data, splits_to_load(args))
    trainer = trainer_class(
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
