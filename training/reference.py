"""docs/reference.md, made of the flags' help texts and the configurations' docstrings.

python -m latent_cot.training.reference docs/reference.md
"""

import inspect
import re
from dataclasses import MISSING, Field, fields
from importlib import import_module
from pathlib import Path

import latent_cot

from .cli import SUCCESSORS, run
from .families import FAMILIES

# Where a command's ARGUMENTS are, by what the page calls the command. Named only: this file is below them.
COMMANDS = {"ccot": "run_ccot", "cot": "run_cot", "icot": "run_icot", "grpo": "run_grpo"}
COMMANDS |= {"faithfulness": "latent_cot.analysis.faithfulness"}

HEAD = """# Reference

Every field of a configuration and every flag that this project adds, from their docstrings and help texts (`make reference`).
[Training](training.md) and [answering](answering.md) show them in use.

## Configuration

Everything that the weights depend on is in `config.json`. The fields below are added to those of the backbone. Change them
in a file (`configs/*.json`), by a flag where there is one, with `--config_overrides n_layer=3,n_positions=512`, or in
Python. A trained checkpoint brings its own values; a flag that contradicts one wins, with a warning.
"""
FLAGS = """## Flags

`--help` lists all flags of a command: first those of a first run, then the others, those of transformers'
[`TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments)
included (and for reward TRL's `GRPOConfig`, where `--num_iterations` is the number of updates per sample). A flag that a
command cannot use is none of its flags. `ccot`, `cot`, `icot` and `grpo` below are `run_ccot.py` and so on.

In a recipe a flag is a line `name: value`; a list is several values, and `config_overrides` and `task_args` may be mappings.
Flags after a recipe win, and `--config_overrides` adds to the recipe's own by name.
"""
OLD = """## Flags of other scripts

Flags of the original scripts, of `run_clm.py` and of older versions that are none here; a command says what to use.

| flag | now |
|---|---|
"""


def page() -> str:
    """The whole page."""
    shared = next(
        base for base in latent_cot.PCCoTConfigMixin.__mro__ if "answer_prompt_ids" in vars(base)["__annotations__"]
    )
    families = {"All families": shared}
    families |= {f"{family.title} (`{name}-*`)": family.config for name, family in FAMILIES.items()}
    parts = [HEAD, *(configuration_table(title, family) for title, family in families.items()), FLAGS, *flag_tables()]
    old = "".join(f"| `{name}` | {instead} |\n" for name, instead in SUCCESSORS.items())
    return "\n".join([*parts, OLD + old])


def configuration_table(title: str, family: type) -> str:
    """The fields that a class of configurations adds, with what its docstring says of them."""
    told = inspect.getdoc(family).partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w[\w, ]*): (.+(?:\n        .+)*)", told, flags=re.MULTILINE)
    meanings = {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}
    own = [field for field in fields(family) if field.name in vars(family)["__annotations__"]]
    rows = "".join(f"| `{field.name}` | {default_of(field)} | {meanings[field.name]} |\n" for field in own)
    return f"### {title}\n\n| field | default | meaning |\n|---|---|---|\n{rows}"


def flag_tables() -> list[str]:
    """A table for each dataclass of arguments: its flags, and which commands have them."""
    tables: dict[type, dict[str, tuple[Field, list[str]]]] = {}
    for command, place in COMMANDS.items():
        module = import_module(place)
        for group in module.argument_classes() if hasattr(module, "argument_classes") else module.ARGUMENTS:
            for field in filter(lambda field: field.init, fields(group)):
                owner = next(base for base in group.__mro__ if field.name in vars(base).get("__annotations__", ()))
                if owner.__module__.startswith("latent_cot."):
                    tables.setdefault(owner, {}).setdefault(field.name, (field, []))[1].append(command)
    return [
        f"### {inspect.getdoc(owner).splitlines()[0].rstrip('.')}\n\n| flag | default | of | meaning |\n|---|---|---|---|\n"
        + "".join(
            f"| `--{name}` | {default_of(field)} | {', '.join(commands)} | {in_table(field.metadata['help'])} |\n"
            for name, (field, commands) in rows.items()
        )
        for owner, rows in tables.items()
    ]


def default_of(field: Field) -> str:
    """As a flag would give it; nothing for none."""
    value = None if field.default is MISSING else field.default
    return "" if value in (None, "") else {True: "on", False: "off"}[value] if isinstance(value, bool) else f"`{value}`"


def in_table(text: str) -> str:
    return text.replace("|", "\\|")


def main(argv: list[str]) -> None:
    """Write the page into the file that is named."""
    Path(argv[0]).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    run(main)
