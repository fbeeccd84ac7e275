"""What the dataclasses of arguments are made of: flags, settings of the configuration, and texts of several values."""

import argparse
from dataclasses import field

from .errors import InputError


def option(default, text: str, **argument):
    """A flag: its default, its help, and what else argparse's `add_argument` is to know."""
    return field(default=default, metadata={"help": text, **argument})


def absent(default):
    """A field of a base class that a script has no flag for."""
    return field(default=default, init=False)


def check_least(args, **least: float) -> None:
    """Raises InputError for a field that is less than it has to be (None is no number, and NaN is too little)."""
    for name, low in least.items():
        value = getattr(args, name)
        if value is not None and not value >= low:
            raise InputError(f"--{name} must be at least {low}, got {value}")


def pairs(text: str | None) -> dict[str, str | None]:
    """`a=1,b=2` by name, the last of twins; what is no pair has the value None."""
    split = (pair.partition("=") for pair in (text or "").split(",") if pair)
    return {name: value if equals else None for name, equals, value in split}


def joined(values: dict) -> str:
    """What `pairs` reads."""
    return ",".join(name if value is None else f"{name}={value}" for name, value in values.items())


class AddOverrides(argparse.Action):
    """`--config_overrides`: adds to those before it (a recipe's), by name; an empty text takes them away.

    Of a setting that has a flag too (`ConfigurationFlag`), the last of the two counts.
    """

    def __call__(self, parser, namespace, text, option_string=None):
        new = pairs(text)
        old = pairs(getattr(namespace, self.dest)) if new else {}
        setattr(namespace, self.dest, joined({name: old[name] for name in old if name not in new} | new))
        for action in parser._actions:
            if isinstance(action, ConfigurationFlag) and action.dest in new:
                setattr(namespace, action.dest, None)


class ConfigurationFlag(argparse.Action):
    """A flag for a field of the configuration: replaces what `--config_overrides` before it says of the field."""

    def __call__(self, parser, namespace, value, option_string=None):
        setattr(namespace, self.dest, value)
        old = pairs(namespace.config_overrides)
        namespace.config_overrides = joined({name: old[name] for name in old if name != self.dest})


def setting(text: str):
    """A flag for a field of the configuration; left out, the checkpoint's (or the configuration file's) value stays."""
    return option(None, text, action=ConfigurationFlag)


def whole_numbers(name: str, text: str, count: int | None = None) -> list[int]:
    """The numbers of a flag such as `1,3,6`. Raises InputError if they are not whole numbers of at least 0, or not
    `count` of them, or given twice.
    """
    numbers = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(numbers) != text.count(",") + 1 or count not in (None, len(numbers)) or len(set(numbers)) < len(numbers):
        wanted = "different whole numbers" if count is None else f"{count} different whole numbers"
        raise InputError(f"--{name} must be {wanted}, joined by commas, got {text!r}")
    return numbers
