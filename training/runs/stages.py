"""What a run does, in this order: check the arguments, train, evaluate, predict, save, push."""

import copy
import json
import logging
import shlex
import shutil
import sys
from pathlib import Path

from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks

from latent_cot.analysis.comparison import comparison
from latent_cot.analysis.faithfulness import measure
from latent_cot.analysis.faithfulness_report import Report, write_report
from latent_cot.training.arguments import CoTTrainingArguments, DataArguments, EvaluationArguments
from latent_cot.training.checkpoints.checks import refuse_model
from latent_cot.training.checkpoints.hub import push
from latent_cot.training.checkpoints.write import add_to_manifest, refuse_foreign_files
from latent_cot.training.errors import InputError, check_installed
from latent_cot.training.flags import check_least
from latent_cot.training.processes import asks_for_sharding, check_launch
from latent_cot.training.resume.find_checkpoint import newest_first
from latent_cot.training.resume.interruption import refuse_other_handler
from latent_cot.training.resume.run_lock import refuse_held
from latent_cot.training.trainers.cot import CoTTrainer
from latent_cot.training.trainers.trainer_options import check_ignored

from .plan import print_plan

logger = logging.getLogger(__name__)

UNLISTED = ("azure_ml", "flyte")  # trackers that transformers' list of what is installed leaves out


def splits_to_load(args: CoTTrainingArguments) -> list[str]:
    """The splits that a run reads; training with evaluation on the way reads validation too."""
    needed = ["train"] if args.do_train else []
    if args.do_eval or (args.do_train and args.eval_strategy != "no"):
        needed.append("validation")
    return needed + (["test"] if args.do_predict else [])


def check_arguments(
    args: CoTTrainingArguments, data: DataArguments, evaluation: EvaluationArguments | None = None, method=None
) -> None:
    """Refuse, before anything is loaded or written, what cannot end well. Raises InputError for an output folder that
    already holds a model (without `--overwrite_output_dir` or `--resume_from_checkpoint`), holds files of others in its
    place, or is another run's; streaming without `--max_steps`, a package that is not installed, a launch that gave
    less than it was asked for, or what needs training, test data or whole weights in a run without.

    Args:
        method: what is particular to a way to train, such as `PCCoTArguments`.
    """
    check_launch(args)
    if evaluation is not None and evaluation.faithfulness:
        check_faithfulness(args, data)
    if getattr(method, "step_decoder_layers", 0):
        check_step_decoder(args)
    folder = Path(args.output_dir)
    if args.do_train and not args.overwrite_output_dir and not args.resume_from_checkpoint:
        refuse_model(folder)
    if args.push_to_hub and not args.do_train:
        raise InputError("--push_to_hub pushes what a run has trained: pass --do_train, or use `hf upload`")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder} is a file")
    refuse_other_handler(args)
    if args.do_train and not args.dry_run:
        refuse_foreign_files(folder)
        if args.process_index == 0:
            refuse_held(folder)
    check_ignored(args)
    if args.prediction_loss_only:
        raise InputError("--prediction_loss_only is not supported: evaluation is of generated answers")
    if args.do_train and args.max_steps == 0:
        raise InputError("--max_steps 0 would train nothing; leave --do_train out to measure a model as it is")
    check_least(args, gradient_accumulation_steps=1)
    if args.do_train and data.streaming and args.max_steps <= 0:
        raise InputError("--streaming needs --max_steps: a stream has no length")
    if args.use_liger_kernel:
        check_installed("liger_kernel", "--use_liger_kernel", "liger-kernel")
    check_trackers(args.report_to)
    if args.load_best_model_at_end and args.save_strategy == "steps" and args.save_steps != args.eval_steps:
        raise InputError(
            f"--load_best_model_at_end: --save_steps {args.save_steps:g} would not save what most evaluations (--eval_steps "
            f"{args.eval_steps:g}) find; make the two equal, or pass --save_strategy best"
        )
    resume = args.resume_from_checkpoint
    if str(resume).lower() == "true":
        if not newest_first(folder):
            raise InputError(f"--resume_from_checkpoint: no checkpoint in {folder}")
    elif resume and not Path(resume).is_dir():
        raise InputError(f"--resume_from_checkpoint {resume}: no such folder")


def check_faithfulness(args: CoTTrainingArguments, data: DataArguments) -> None:
    """Raises InputError where `--faithfulness` could not be measured at the end; the trainer knows the model's reasons."""
    if not args.do_predict or data.max_predict_samples == 1:
        raise InputError("--faithfulness asks the questions of the test data: pass --do_predict, with two rows or more")
    if asks_for_sharding(args):
        raise InputError("--faithfulness needs whole weights: run `latent-cot faithfulness` on the checkpoint")


def check_step_decoder(args: CoTTrainingArguments) -> None:
    """Raises InputError where a decoder of steps (`--step_decoder_layers`) would not be trained."""
    if not args.do_train:
        raise InputError(
            "--step_decoder_layers: a decoder exists in training alone, and an untrained one would make this run's eval_loss; "
            "pass --step_decoder_layers 0, or --do_train"
        )
    if asks_for_sharding(args):
        raise InputError("--step_decoder_layers is not supported with FSDP and DeepSpeed: leave one of them out")


def check_trackers(names: list[str]) -> None:
    """Raises InputError for a tracker (`--report_to`) that transformers does not know, or whose package is not installed."""
    try:
        get_reporting_integration_callbacks(names)
    except ValueError as error:
        raise InputError(f"--report_to: {error}") from error
    for name in sorted(set(names) - {*get_available_reporting_integrations(), *UNLISTED}):
        raise InputError(f"--report_to {name} needs: pip install {name.replace('_', '-')}")


def run_stages(trainer: CoTTrainer, task: str) -> dict:
    """Train, evaluate, predict and save, as the arguments ask; with `--dry_run` only say so.

    Args:
        task: what a card calls the data (`dataset_label`).

    Returns:
        All metrics; they are also in `all_results.json`.
    """
    args, folder = trainer.args, Path(trainer.args.output_dir)
    if args.dry_run:
        print_plan(trainer)
        return {}
    with trainer.locked():
        return run_in(folder, trainer, task)


def run_in(folder: Path, trainer: CoTTrainer, task: str) -> dict:
    """The stages of `run_stages`, in a folder that no other run writes into."""
    args, splits, results = trainer.args, trainer.splits, {}
    if args.do_train:
        if args.overwrite_output_dir and not args.resume_from_checkpoint and trainer.is_world_process_zero():
            remove_checkpoints(folder)
        results["train"] = trainer.train(args.resume_from_checkpoint).metrics
        trainer.record_progress()
        state = copy.deepcopy(trainer.state)  # of the training: what is evaluated below is no part of it
        if results["train"]:  # empty where a finished run is resumed
            trainer.log_metrics("train", results["train"])
    predictions = []
    if args.do_eval:
        results["eval"] = trainer.evaluate(splits["validation"])
        trainer.log_metrics("eval", results["eval"])
        predictions += trainer.predictions("validation", splits["validation"])
    if args.do_predict:
        results["test"] = trainer.predict(splits["test"], metric_key_prefix="test").metrics
        trainer.log_metrics("test", results["test"])
        predictions += trainer.predictions("test", splits["test"])
    names = data_names(trainer, task)
    report = measure_faithfulness(trainer, names["test"]) if trainer.evaluation.faithfulness else None
    metrics = {name: value for stage in results.values() for name, value in stage.items()}
    if not args.do_train:
        if trainer.is_world_process_zero():
            folder.mkdir(parents=True, exist_ok=True)
            write_results(folder, results, predictions)
            if report is not None:
                write_report(folder, report)
        return metrics
    trainer.check_weights()
    with trainer.replacing_model(folder) as new:
        trainer.write_model(new)
        if trainer.is_world_process_zero():
            write_results(new, results, predictions)
            state.save_to_json(str(new / "trainer_state.json"))
            examples = next((splits[name] for name in ("test", "validation") if name in splits), None)
            trainer.write_card(
                new,
                names["train"],
                splits=names,
                metrics=metrics,
                command=public_command(sys.argv, args.hub_token),
                questions=[] if examples is None else examples["question_text"][:3],
                sections=[] if report is None else [report.section()],
            )
            if report is not None:
                write_report(new, report)
            trainer.plot(new)
    if args.push_to_hub and trainer.is_world_process_zero():
        logger.info("pushed to %s", push(folder, trainer.hub_model_id, args))
    return metrics


def data_names(trainer: CoTTrainer, task: str) -> dict[str, str]:
    """What a card calls the data of each split: a data set's name, or each file's own; no folders.

    Args:
        task: the name of all of it (`dataset_label`).
    """
    data, task = getattr(trainer, "data", None), public_path(task)
    files = {"train": "train_file", "eval": "validation_file", "test": "test_file"}
    named = {split: getattr(data, field, None) for split, field in files.items()}
    return {split: Path(name).name if name else task for split, name in named.items()}


def measure_faithfulness(trainer: CoTTrainer, data: str) -> Report:
    """The faithfulness test of a run (`--faithfulness`), on its test data; every process measures the same."""
    report = measure(
        trainer.unwrapped.eval(),
        trainer.processing_class,
        trainer.rows["test"].select(trainer.splits["test"]["row"]),  # without what --drop_long has left out
        data=f"{data}, test",
        seed=trainer.args.seed,
        batch_size=trainer.args.per_device_eval_batch_size,
        max_new_tokens=trainer.evaluation.max_new_tokens,
        max_cot_tokens=trainer.evaluation.max_cot_tokens,
        keep_last_step=trainer.data.keep_last_step,
        same=comparison(trainer.evaluation.compare),
    )
    if trainer.is_world_process_zero():
        print(report.text())
    return report


def write_results(folder: Path, results: dict[str, dict], predictions: list[dict]) -> None:
    """Write the metrics of each stage and of all together, and what was answered.

    Metrics of other stages that an earlier run left in `all_results.json` stay in it.
    """
    together, written = folder / "all_results.json", {"all_results.json"}
    combined = json.loads(together.read_text(encoding="utf-8")) if together.is_file() else {}
    for stage, metrics in results.items():
        combined |= metrics
        if metrics:
            written.add(f"{stage}_results.json")
            write_json(folder / f"{stage}_results.json", metrics)
    write_json(together, combined)
    if predictions:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
        (folder / "predictions.jsonl").write_text(lines, encoding="utf-8")
        written.add("predictions.jsonl")
    add_to_manifest(folder, written)


def write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=4, sort_keys=True), encoding="utf-8")


def public_command(argv: list[str], token: str | None) -> str:
    """The command that started a script, without its token and without this computer's folders."""
    name = Path(argv[0]).name
    command = shlex.join(
        [*(name.split() if name.startswith("latent-cot ") else ["python", name]), *map(public_path, argv[1:])]
    )
    return command.replace(token, "...") if token else command


def public_path(text: str) -> str:
    """An argument, `--flag=value` or a list joined by commas, with the names alone of what is elsewhere on this computer."""
    flag, equals, values = text.partition("=") if text.startswith("--") else ("", "", text)
    parts = (Path(part).name if part.startswith(("/", "~", "..")) else part for part in values.split(","))
    return flag + equals + ",".join(parts)


def remove_checkpoints(folder: Path) -> None:
    """Remove an earlier run's checkpoints, which this one would resume from; its model stays until it is replaced."""
    for checkpoint in newest_first(folder):
        shutil.rmtree(checkpoint)
