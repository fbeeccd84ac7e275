#!/usr/bin/env python
"""Train a PCCoT checkpoint by reward: GRPO on its own sampled answers, each after a latent thought.

    python run_grpo.py configs/recipes/chain_grpo_gpt2-2x64.yaml --model_name_or_path outputs/early --output_dir outputs/grpo
    python run_grpo.py --model_name_or_path outputs/early --dataset_name chain --reward_function my_rewards:short \
        --learning_rate 1e-5 --max_steps 100 --do_train --do_eval --output_dir outputs/short
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable

from latent_cot.training import DataArguments, EvaluationArguments, LoraArguments, ModelArguments
from latent_cot.training.cli import parse, run
from latent_cot.training.data.sources import dataset_label, load_splits
from latent_cot.training.errors import InputError
from latent_cot.training.method_arguments import RewardArguments
from latent_cot.training.runs.stages import check_arguments, run_stages, splits_to_load


def argument_classes() -> tuple[type, ...]:
    """The groups of flags. TRL's own are among them, so it has to be installed."""
    if importlib.util.find_spec("trl") is None:
        raise InputError("run_grpo.py needs: pip install '.[rl]'")
    from latent_cot.training.trainers.reward import RewardTrainingArguments

    return ModelArguments, RewardArguments, LoraArguments, DataArguments, EvaluationArguments, RewardTrainingArguments


def load_function(name: str | None) -> Callable | None:
    """The function that `--reward_function module:function` names; modules of the current folder are found too."""
    if name is None:
        return None
    sys.path.append(os.getcwd())
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"--reward_function {name}: {error}") from error


def main(argv: list[str]) -> dict:
    """Run with command line arguments (see `--help`); returns the metrics."""
    model, reward, lora, data, evaluation, args = parse(argument_classes(), argv)
    check_arguments(args, data)
    for name in ("streaming", "block_size", "drop_long"):
        if getattr(data, name):
            raise InputError(f"--{name} is not supported here")
    if evaluation.num_samples > 1 or evaluation.eval_iterations:
        raise InputError(
            "--num_samples and --eval_iterations are not supported here: run_ccot.py --do_predict has them"
        )
    if evaluation.faithfulness:
        raise InputError("--faithfulness is not supported here: run python -m training.faithfulness on the checkpoint")
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


if __name__ == "__main__":
    run(main)
