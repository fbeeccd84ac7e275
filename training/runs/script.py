"""What the training scripts share: from flags to a trainer and its stages."""

from latent_cot.training.cli import parse
from latent_cot.training.data.sources import dataset_label, load_splits
from latent_cot.training.trainers.cot import CoTTrainer

from .stages import check_arguments, run_stages, splits_to_load


def run_script(argument_classes: tuple[type, ...], trainer_class: type[CoTTrainer], argv: list[str]) -> dict:
    """Run a method's script; returns the metrics.

    Args:
        argument_classes: of the model, the method, adapters (may be left out), data, evaluation and training.
    """
    model, method, *lora, data, evaluation, args = parse(argument_classes, argv)
    check_arguments(args, data, evaluation, method)
    splits = load_splits(data, splits_to_load(args), with_steps=not getattr(method, "no_cot", False))
    trainer = trainer_class(
        model,
        args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        test_dataset=splits.get("test"),
        method=method,
        data=data,
        lora=next(iter(lora), None),
        evaluation=evaluation,
    )
    return run_stages(trainer, dataset_label(data))
