"""Train and evaluate the two baselines: an explicit chain of thought, or with --no_cot none at all. See `run_cot.py`."""

from latent_cot.training import (
    CoTArguments,
    CoTTrainer,
    CoTTrainingArguments,
    EvaluationArguments,
    LoraArguments,
    ModelArguments,
    StepwiseDataArguments,
)
from latent_cot.training.runs.script import run_script

ARGUMENTS = (
    ModelArguments,
    CoTArguments,
    LoraArguments,
    StepwiseDataArguments,
    EvaluationArguments,
    CoTTrainingArguments,
)


def main(argv: list[str], trainer_class: type[CoTTrainer] = CoTTrainer) -> dict:
    """Run with command line arguments (see `--help`); returns the metrics. `trainer_class`: of an experiment."""
    return run_script(ARGUMENTS, trainer_class, argv)
