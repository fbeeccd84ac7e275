"""Train a PCCoT checkpoint by reward: GRPO on its own sampled answers, each after a latent thought. See `run_grpo.py`."""

from latent_cot.analysis.comparison import load_function
from latent_cot.training.arguments import LoraArguments, ModelArguments, RewardDataArguments, RewardEvaluationArguments
from latent_cot.training.cli import parse
from latent_cot.training.data.sources import dataset_label, load_splits
from latent_cot.training.errors import check_installed
from latent_cot.training.method_arguments import RewardArguments
from latent_cot.training.runs.stages import check_arguments, run_stages, splits_to_load


def argument_classes() -> tuple[type, ...]:
    """The groups of flags. TRL's own are among them, so it has to be installed."""
    check_installed("trl", "run_grpo.py", "'.[rl]'")
    from latent_cot.training.trainers.reward import RewardTrainingArguments

    return (
        ModelArguments,
        RewardArguments,
        LoraArguments,
        RewardDataArguments,
        RewardEvaluationArguments,
        RewardTrainingArguments,
    )


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
        reward_function=load_function("reward_function", name) if (name := reward.reward_function) else None,
        lora=lora,
        evaluation=evaluation,
    )
    return run_stages(trainer, dataset_label(data))
