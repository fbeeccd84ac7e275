"""Trainers, their arguments, and all that the `run_*.py` scripts share.

Named here is what a notebook needs; everything else is imported from its file.
"""

from .arguments import (
    ChainArguments,
    CoTTrainingArguments,
    DataArguments,
    EvaluationArguments,
    InternalizationArguments,
    LoraArguments,
    ModelArguments,
    StepwiseDataArguments,
    ThoughtArguments,
)
from .cot_trainer import CoTTrainer
from .icot_trainer import ICoTTrainer
from .pccot_trainer import PCCoTTrainer

__all__ = [
    "ChainArguments",
    "CoTTrainer",
    "CoTTrainingArguments",
    "DataArguments",
    "EvaluationArguments",
    "ICoTTrainer",
    "InternalizationArguments",
    "LoraArguments",
    "ModelArguments",
    "PCCoTTrainer",
    "StepwiseDataArguments",
    "ThoughtArguments",
]
