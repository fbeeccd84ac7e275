"""What the constructors take of transformers' Trainer, and what they refuse before anything is loaded."""

from collections.abc import Iterable

from datasets import Dataset, IterableDataset
from transformers import TrainingArguments

from latent_cot.training.arguments import CoTTrainingArguments
from latent_cot.training.data.sources import as_dataset
from latent_cot.training.errors import InputError

Examples = Dataset | IterableDataset | list[dict]
NAMES = {"train": "train_dataset", "validation": "eval_dataset", "test": "test_dataset"}
REFUSED = {
    "compute_metrics": "evaluation measures generated answers; compute others from trainer.predictions(...)",
    "preprocess_logits_for_metrics": "evaluation measures generated answers and keeps no logits",
    "compute_loss_func": "the loss is the method's; override compute_loss in a subclass",
    "data_collator": "batches are made for the method; override make_collator in a subclass",
    "model_init": "pass the model; for a search over hyperparameters make a trainer per trial",
}


def check_options(options: dict) -> None:
    """Take the refused options of transformers' Trainer out of `options`, where they are None. Raises InputError for
    one that is not.
    """
    for name, reason in REFUSED.items():
        if options.pop(name, None) is not None:
            raise InputError(f"{name} is not supported: {reason}")


def own_arguments(args: TrainingArguments) -> CoTTrainingArguments:
    """transformers' own arguments as ours, with the settings that the trainers need. Raises InputError for something
    else, and for arguments that the trainers would not follow.
    """
    if not isinstance(args, TrainingArguments):
        raise InputError(f"args must be CoTTrainingArguments, got {type(args).__name__}")
    if not isinstance(args, CoTTrainingArguments):
        given, args = vars(args), object.__new__(CoTTrainingArguments)  # what is set up in there stays as it is
        vars(args).update(given, remove_unused_columns=False, logging_nan_inf_filter=False)
        if args.length_column_name == "length":
            args.length_column_name = CoTTrainingArguments.length_column_name
        if args.accelerator_config.dispatch_batches is None:
            args.accelerator_config.dispatch_batches = False
    check_ignored(args)
    return args


def check_ignored(args: TrainingArguments) -> None:
    """Raises InputError for arguments that the trainers would not follow."""
    if args.remove_unused_columns:
        raise InputError("--remove_unused_columns must stay off: the collator makes the model's inputs")
    if args.label_smoothing_factor:
        raise InputError("--label_smoothing_factor is not supported: the losses here are plain cross-entropies")


def check_kinds(tokenizer, method, method_class: type) -> None:
    """Raises InputError for a tokenizer or a method of another kind than a trainer takes."""
    if isinstance(tokenizer, str):
        raise InputError(f"processing_class must be a tokenizer, got the name {tokenizer!r}: pass ModelArguments")
    if not isinstance(method, method_class):
        raise InputError(f"method must be {method_class.__name__}, got {type(method).__name__}")


def check_rows(rows: Examples, split: str) -> None:
    """Raises InputError for what holds no rows, or is a set of splits."""
    name = NAMES[split]
    if isinstance(rows, dict):
        hint = "evaluate(...) takes more" if split == "validation" else "pass one of them"
        raise InputError(f"{name} must be one set of rows, got {type(rows).__name__} of {', '.join(rows)}: {hint}")
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise InputError(
            f"{name} must be a list of rows or a data set of `datasets`, got {type(rows).__name__}: pass list(...) of it"
        )
    if hasattr(rows, "__len__") and len(rows) == 0:
        raise InputError(f"{name}: no rows")


def held_rows(rows: Examples, split: str, with_steps: bool = True) -> Dataset:
    """Checked rows that are evaluated, of which a stream is read to its end. Raises InputError for a row that is no
    example, and as `check_rows`.

    Args:
        with_steps: whether rows need a chain; those of the test split never do.
    """
    check_rows(rows, split)
    if isinstance(rows, IterableDataset):
        rows = list(rows)
        check_rows(rows, split)
    return as_dataset(rows, with_steps=with_steps and split != "test")
