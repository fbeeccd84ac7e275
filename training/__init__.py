"""Trainers, their arguments, and all that the `run_*.py` scripts share.

Named here is what a notebook needs; everything else is imported from its file. A name is imported when it is asked for, so
that a file of this folder needs only the packages that it uses.
"""

from importlib import import_module

if __name__ == "training":
    raise ImportError("in a clone too it is latent_cot.training: under another name its classes would be other ones")

_FILES = {
    "arguments": (
        "CoTTrainingArguments",
        "DataArguments",
        "EvaluationArguments",
        "ICoTDataArguments",
        "ICoTEvaluationArguments",
        "LatentEvaluationArguments",
        "LoraArguments",
        "ModelArguments",
        "StepwiseDataArguments",
    ),
    "method_arguments": ("CoTArguments", "ICoTArguments", "PCCoTArguments"),
    "trainers.cot": ("CoTTrainer",),
    "trainers.icot": ("ICoTTrainer",),
    "trainers.opened_prompts": ("open_prompts",),
    "trainers.pccot": ("PCCoTTrainer",),
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}
__all__ = sorted(_FILE_OF)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str):
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_FILE_OF[name]}", __name__), name)
