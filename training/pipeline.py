"""What the `run_*.py` scripts do in the same way: check the arguments, tokenize, run the stages, save."""

import importlib.util
import json
import logging
import shlex
import shutil
import sys
from pathlib import Path

from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint

from .arguments import CoTTrainingArguments, DataArguments, LoraArguments
from .collators import CoTCollator
from .errors import InputError
from .hub import push
from .lora_layers import save_adapters
from .model_card import Card, write_card
from .published import merge_adapter
from .tokenization import tokenize
from .trainer import CoTTrainer

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ("*.safetensors", "checkpoint-*", "adapter")


def needed_splits(args: CoTTrainingArguments) -> list[str]:
    """The splits that a run reads; training with evaluation on the way reads validation too."""
    needed = ["train"] if args.do_train else []
    if args.do_eval or (args.do_train and args.eval_strategy != "no"):
        needed.append("validation")
    return needed + (["test"] if args.do_predict else [])


def check_arguments(args: CoTTrainingArguments, data: DataArguments) -> None:
    """Refuse, before anything is loaded or written, what cannot end well.

    Raises:
        InputError: for an output folder that already holds a model (without `--overwrite_output_dir` or
            `--resume_from_checkpoint`), streaming without `--max_steps`, or a package that is not installed.
    """
    folder = Path(args.output_dir)
    holds_model = any(path for pattern in WEIGHTS for path in folder.glob(pattern))
    if args.do_train and holds_model and not args.overwrite_output_dir and not args.resume_from_checkpoint:
        raise InputError(
            f"--output_dir {folder} already holds a model: choose another, or pass --overwrite_output_dir or "
            "--resume_from_checkpoint true"
        )
    if args.push_to_hub and not args.do_train:
        raise InputError("--push_to_hub pushes what a run has trained: pass --do_train, or use `hf upload`")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder} is a file")
    if args.remove_unused_columns:
        raise InputError("--remove_unused_columns must stay off: the collator makes the model's inputs")
    for name, least in (
        ("block_size", 1),
        ("max_train_samples", 1),
        ("max_eval_samples", 1),
        ("max_predict_samples", 1),
    ):
        value = getattr(data, name)
        if value is not None and value < least:
            raise InputError(f"--{name} must be at least {least}, got {value}")
    if args.do_train and data.streaming and args.max_steps <= 0:
        raise InputError("--streaming needs --max_steps: a stream has no length")
    optional = {"liger_kernel": ("--use_liger_kernel", args.use_liger_kernel)}
    optional |= {name: (f"--report_to {name}", name in args.report_to) for name in ("wandb", "tensorboard")}
    for package, (flag, wanted) in optional.items():
        if wanted and importlib.util.find_spec(package) is None:
            raise InputError(f"{flag} needs: pip install {package.replace('_', '-')} (see requirements-gpu.txt)")
    resume = args.resume_from_checkpoint
    if str(resume).lower() == "true":
        if not folder.is_dir() or get_last_checkpoint(folder) is None:
            raise InputError(f"--resume_from_checkpoint: no checkpoint in {folder}")
    elif resume and not Path(resume).is_dir():
        raise InputError(f"--resume_from_checkpoint {resume}: no such folder")


def tokenize_splits(
    splits: dict[str, Dataset | IterableDataset],
    tokenizer: PreTrainedTokenizerBase,
    collator: CoTCollator,
    data: DataArguments,
    positions: int | None,
) -> dict[str, Dataset | IterableDataset]:
    """Every split as features for the collator; evaluation splits keep their texts and row numbers.

    Args:
        positions: the model's own limit in tokens, if it has one.

    Raises:
        InputError: for a row that is too long, unless `--drop_long`.
    """
    limit = min(filter(None, (data.block_size, positions)), default=None)

    def features_of(examples: dict, indices: list[int], split: str) -> dict:
        features = tokenize(examples, tokenizer, data.keep_last_step)
        rows = [dict(zip(features, row, strict=True)) for row in zip(*features.values(), strict=True)]
        features["length"] = [collator.length(row) for row in rows]
        for index, length in zip(indices, features["length"], strict=True):
            if limit is not None and length > limit and not data.drop_long:
                raise InputError(
                    f"{split} row {index} is too long: {length} tokens, and the limit is {limit} "
                    "(--drop_long leaves such rows out)"
                )
        features["sort_key"] = [collator.sort_key(row) for row in rows]
        features["row"] = indices
        if split != "train":
            features |= {"question_text": examples["question"], "answer_text": examples["answer"]}
        return features

    tokenized = {}
    for split, examples in splits.items():
        stream = isinstance(examples, IterableDataset)
        options = {} if stream else {"num_proc": data.preprocessing_num_workers}
        features = examples.map(
            features_of,
            batched=True,
            with_indices=True,
            fn_kwargs={"split": split},
            remove_columns=["question", "steps", "answer"],
            **options,
        )
        if split == "train" and not stream and not any(map(any, features["steps"])) and collator.with_steps:
            logger.warning("no row has a step left for the teacher; --keep_last_step keeps the last (or only) one")
        if limit is not None and data.drop_long:
            kept = features.filter(lambda length: length <= limit, input_columns="length", **options)
            if not stream:
                dropped = len(features) - len(kept)
                if len(kept) == 0:
                    raise InputError(f"{split}: every row is longer than {limit} tokens")
                logger.info("%s: left out %d of %d rows longer than %d tokens", split, dropped, len(features), limit)
            features = kept
        tokenized[split] = features
    return tokenized


def describe_source(data: DataArguments) -> str:
    """The name of the data in a card."""
    if data.dataset_name is not None:
        return data.dataset_name + (f" ({data.task_args})" if data.task_args else "")
    return Path(data.train_file or data.validation_file or data.test_file).name


def run_stages(trainer: CoTTrainer, splits: dict[str, Dataset], lora: LoraArguments, card: Card) -> dict:
    """Train, evaluate, predict and save, as the arguments ask.

    Returns:
        All metrics; they are also in `all_results.json`.
    """
    args, folder, metrics = trainer.args, Path(trainer.args.output_dir), {}
    if args.do_train:
        if args.overwrite_output_dir and not args.resume_from_checkpoint and trainer.is_world_process_zero():
            remove_previous(folder)
        resume = args.resume_from_checkpoint
        resume = get_last_checkpoint(folder) if str(resume).lower() == "true" else resume
        result = trainer.train(resume_from_checkpoint=resume)
        metrics |= result.metrics
        trainer.record_progress()
        report(trainer, "train", result.metrics)
        trainer.save_state()
    predictions = []
    if args.do_eval:
        evaluated = trainer.evaluate(splits["validation"])
        metrics |= evaluated
        report(trainer, "eval", evaluated)
        predictions += trainer.predictions("validation", splits["validation"])
    if args.do_predict:
        predicted = trainer.predict(splits["test"], metric_key_prefix="test").metrics
        metrics |= predicted
        report(trainer, "test", predicted)
        predictions += trainer.predictions("test", splits["test"])
    # Every process takes part in collecting weights that are spread over them.
    weights = trainer.accelerator.get_state_dict(trainer.model) if args.do_train else None
    if trainer.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)
        if predictions:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
            (folder / "predictions.jsonl").write_text(lines, encoding="utf-8")
        if args.do_train:
            save_model(trainer, folder, lora, weights)
            examples = next((splits[name] for name in ("test", "validation") if name in splits), None)
            write_card(
                folder,
                card,
                name=trainer.hub_model_id or folder.resolve().name,
                command=public_command(sys.argv, args.hub_token),
                seed=args.seed,
                batch_size=args.per_device_eval_batch_size,
                device=args.device,
                config=trainer.accelerator.unwrap_model(trainer.model).config,
                metrics=metrics,
                questions=[] if examples is None else examples["question_text"][:3],
            )
            if args.push_to_hub:
                logger.info("pushed to %s", push(folder, trainer.hub_model_id, args))
    return metrics


def public_command(argv: list[str], token: str | None) -> str:
    """The command that started a script, without its token."""
    command = shlex.join(["python", Path(argv[0]).name, *argv[1:]])
    return command.replace(token, "...") if token else command


def remove_previous(folder: Path) -> None:
    """Remove what an earlier run left and this one would not write over: its checkpoints, adapters and results."""
    for pattern in ("checkpoint-*", "adapter", "*_results.json", "trainer_state.json", "predictions.jsonl"):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def report(trainer: CoTTrainer, split: str, metrics: dict) -> None:
    """Print and store the metrics of one stage."""
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)


def save_model(trainer: CoTTrainer, folder: Path, lora: LoraArguments, weights: dict) -> None:
    """A complete checkpoint: weights, configuration, code, tokenizer and `example.py`.

    A LoRA run saves its adapters and the base model that they belong to in `adapter/`, which loads by itself, and
    beside it the merged model.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    # The Trainer switches the cache off for its own forward passes; answering wants it.
    model.config.use_cache = True
    if lora.use_peft:
        adapter = folder / "adapter"
        save_adapters(model, adapter, weights)  # the resized vocabulary is in the base model
        model, weights = model.unload(), None
        save_checkpoint(model, trainer.processing_class, adapter)
        if not lora.save_merged:
            return
        model = merge_adapter(model, adapter)
    save_checkpoint(model, trainer.processing_class, folder, weights)


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: dict | None = None
) -> None:
    """Weights, configuration, code, tokenizer and `example.py`: all that a checkpoint is."""
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    shutil.copy(ROOT / "example.py", folder / "example.py")
