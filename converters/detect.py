"""Whose checkpoint it is. A further layout is a file here and a line in the table."""

from importlib import import_module
from types import ModuleType

from latent_cot.training.checkpoints.read import check_reachable
from latent_cot.training.errors import InputError

# The first that recognizes a checkpoint converts it. A converter is a file with
#   recognizes(name, revision) -> bool
#   convert(name, out, revision, **options): writes the folder `out`
#   OPTIONS: the options' names, and for each the keywords of `ArgumentParser.add_argument`
LAYOUTS = {
    "PCCoT, as the original code publishes it": "convert_pccot",
    "iCoT, as the original code or its fork with filler tokens saves it": "convert_icot",
}


def converters() -> list[ModuleType]:
    return [import_module(f".{file}", __package__) for file in LAYOUTS.values()]


def converter_of(name: str, revision: str = "main") -> tuple[str, ModuleType]:
    """The layout of a checkpoint, and the converter for it.

    Args:
        name: a folder, a file or a name on the Hub.

    Raises:
        InputError: for a checkpoint that no converter recognizes.
    """
    check_reachable(name, "model")
    for layout, converter in zip(LAYOUTS, converters(), strict=True):
        if converter.recognizes(name, revision):
            return layout, converter
    raise InputError(f"{name}: not recognized; what can be converted is {'; '.join(LAYOUTS)}")
