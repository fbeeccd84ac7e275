"""What a run does, in this order: check the arguments, train, evaluate, predict, save, push."""

import importlib.util
import json
import logging
import shlex
import shutil
import sys
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from .arguments import CoTTrainingArguments, DataArguments
from .cot_trainer import CoTTrainer
from .errors import InputError
from .hub import push
from .model_card import Card, write_card
from .plan import print_plan

logger = logging.getLogger(__name__)

WEIGHTS = ("*.safetensors", "checkpoint-*", "adapter")


def splits_to_load(args: CoTTrainingArguments) -> list[str]:
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
    if args.label_smoothing_factor:
        raise InputError("--label_smoothing_factor is not supported: the losses here are plain cross-entropies")
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


def dataset_label(data: DataArguments) -> str:
    """The name of the data in a card."""
    if data.dataset_name is not None:
        return data.dataset_name + (f" ({data.task_args})" if data.task_args else "")
    return Path(data.train_file or data.validation_file or data.test_file).name


def run_stages(trainer: CoTTrainer, task: str) -> dict:
    """Train, evaluate, predict and save, as the arguments ask; with `--dry_run` only say so.

    Args:
        trainer: any of ours.
        task: what a card calls the data (`dataset_label`).

    Returns:
        All metrics; they are also in `all_results.json`.
    """
    args, splits, folder, metrics = trainer.args, trainer.splits, Path(trainer.args.output_dir), {}
    if args.dry_run:
        print_plan(trainer)
        return metrics
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
    if args.do_train:
        trainer.save_model(folder)
    if not trainer.is_world_process_zero():
        return metrics
    folder.mkdir(parents=True, exist_ok=True)
    if predictions:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
        (folder / "predictions.jsonl").write_text(lines, encoding="utf-8")
    if args.do_train:
        examples = next((splits[name] for name in ("test", "validation") if name in splits), None)
        write_card(
            folder,
            Card(task, trainer.describe_method(), trainer.base_model_name),
            name=trainer.hub_model_id or folder.resolve().name,
            command=public_command(sys.argv, args.hub_token),
            seed=args.seed,
            batch_size=args.per_device_eval_batch_size,
            device=args.device,
            config=trainer.unwrapped.config,
            metrics=metrics,
            questions=[] if examples is None else examples["question_text"][:3],
        )
        trainer.plot(folder)
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
