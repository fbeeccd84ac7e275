"""Train and evaluate iCoT: the explicit chain of thought is taken away token by token, or turned into fillers. See `run_icot.py`."""

from latent_cot.training import (
    CoTTrainingArguments,
    ICoTArguments,
    ICoTDataArguments,
    ICoTEvaluationArguments,
    ICoTTrainer,
    ModelArguments,
)
from latent_cot.training.runs.script import run_script

ARGUMENTS = (ModelArguments, ICoTArguments, ICoTDataArguments, ICoTEvaluationArguments, CoTTrainingArguments)


def main(argv: list[str], trainer_class: type[ICoTTrainer] = ICoTTrainer) -> dict:
    """Run with command line arguments (see `--help`); returns the metrics. `trainer_class`: of an experiment."""
    return run_script(ARGUMENTS, trainer_class, argv)
