"""Train and evaluate PCCoT: latent chain of thought, distilled from the model's own explicit one. See `run_ccot.py`."""

from latent_cot.training import (
    CoTTrainingArguments,
    DataArguments,
    LatentEvaluationArguments,
    LoraArguments,
    ModelArguments,
    PCCoTArguments,
    PCCoTTrainer,
)
from latent_cot.training.runs.script import run_script

ARGUMENTS = (
    ModelArguments,
    PCCoTArguments,
    LoraArguments,
    DataArguments,
    LatentEvaluationArguments,
    CoTTrainingArguments,
)


def main(argv: list[str], trainer_class: type[PCCoTTrainer] = PCCoTTrainer) -> dict:
    """Run with command line arguments (see `--help`); returns the metrics. `trainer_class`: of an experiment."""
    return run_script(ARGUMENTS, trainer_class, argv)
