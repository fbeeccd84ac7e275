"""Train a PCCoT checkpoint by reward: GRPO on its own sampled answers, each after a latent thought. See `run_grpo.py`."""

import importlib.util
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

from latent_cot.training.arguments import LoraArguments, ModelArguments, RewardDataArguments, RewardEvaluationArguments
from latent_cot.training.cli import parse
from latent_cot.training.data.sources import dataset_label, load_splits
from latent_cot.training.errors import InputError
from latent_cot.training.method_arguments import RewardArguments
from latent_cot.training.runs.stages import check_arguments, run_stages, splits_to_load


def argument_classes() -> tuple[type, ...]:
    """The groups of flags. TRL's own are among them, so it has to be installed."""
    if importlib.util.find_spec("trl") is None:
        raise InputError("run_grpo.py needs: pip install '.[rl]'")
    from latent_cot.training.trainers.reward import RewardTrainingArguments

    return (
        ModelArguments,
        RewardArguments,
        LoraArguments,
        RewardDataArguments,
        RewardEvaluationArguments,
        RewardTrainingArguments,
    )


def load_function(name: str | None) -> Callable | None:
    """The function that `--reward_function module:function` names; modules of the current folder are found too."""
    if name is None:
        return None
    module, _, function = name.partition(":")
    try:
        return getattr(load_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"--reward_function {name}: {error}") from error


def load_module(name: str) -> ModuleType:
    """A module that can be imported, or else the file of that name in the current folder."""
    path = Path.cwd().joinpath(*name.split(".")).with_suffix(".py")
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if not path.is_file() or error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def main(argv: list[str]) -> dict:
    """Run with command line arguments (see `--help`); returns the metrics."""
    model, reward, lora, data, evaluation, args = parse(argument_classes(), argv)
    check_arguments(args, data, evaluation, reward)
    from latent_cot.training.trainers.reward import RewardTrainer

    splits = load_splits(data, splits_to_load(args), with_steps=False)
    trainer = RewardTrainer(
        model,
        args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        test_dataset=splits.get("test"),
        reward=reward,
        reward_function=load_function(reward.reward_function),
        lora=lora,
        evaluation=evaluation,
    )
    return run_stages(trainer, dataset_label(data))
