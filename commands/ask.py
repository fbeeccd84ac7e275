"""Ask a model questions: the program that every checkpoint has a copy of (`training/checkpoints/example.py`)."""

from latent_cot.training.checkpoints import example

from .asked_model import shipped_checkpoints


def main(argv: list[str]) -> None:
    """Without `--model`, in a clone, the shipped checkpoint that knows the questions is asked."""
    example.main(argv, shipped_checkpoints())
