"""`latent-cot`: one command for everything. A subcommand's module is imported when it is asked for."""

import os
import sys
from importlib import import_module

# Subcommand: module and function that take its arguments, and what it does.
COMMANDS = {
    "train pccot": ("commands.train_pccot:main", "train and evaluate PCCoT, a latent chain of thought"),
    "train cot": ("commands.train_cot:main", "train and evaluate the baselines: an explicit chain of thought, or none"),
    "train icot": ("commands.train_icot:main", "train and evaluate iCoT, whose chain is removed step by step"),
    "train grpo": ("commands.train_grpo:main", "train a PCCoT model by reward"),
    "compare": ("commands.compare:main", "train several methods on your data, and say which is better"),
    "ask": ("commands.ask:main", "ask a model questions"),
    "inspect": ("commands.inspect_thoughts:main", "a page that shows what is inside a thought"),
    "faithfulness": ("analysis.faithfulness:main", "whether the answer is read from the thought"),
    "serve": ("commands.serve:serve", "an OpenAI-style server"),
    "chat": ("commands.serve:chat", "talk to a server"),
    "export": ("commands.export:main", "write a model as a Hub page would hold it, or as a GGUF file"),
    "convert": ("commands.convert:main", "turn a checkpoint of other code into one of ours"),
    "lm_eval": ("evals.command:main", "lm-evaluation-harness with our model class and our tasks"),
}
HELP = ("-h", "--help")
# These need none of the packages of an extra, and say by themselves what is wrong.
WITHOUT_EXTRA = ("ask", "serve", "chat", "lm_eval")


def usage(group: str = "") -> str:
    lines = [f"  {name:14} {summary}" for name, (_, summary) in COMMANDS.items() if name.startswith(group)]
    return "\n".join(["usage: latent-cot COMMAND ... (each has its own --help)", "", *lines])


def find(words: list[str]) -> tuple[str, list[str]]:
    """The subcommand that a command line begins with, and the arguments after it. Raises SystemExit for one that is
    none, with one line.
    """
    for count in (1, 2):
        name = " ".join(words[:count])
        if name in COMMANDS:
            return name, words[count:]
    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    asked = " ".join(words[: 1 + bool(group)])
    sys.exit(f"error: latent-cot has no command {asked!r}: there are {', '.join(group or COMMANDS)}")


def main() -> None:
    try:
        call(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has read enough: `latent-cot --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is written at the interpreter's exit


def call(words: list[str]) -> None:
    if not words or words[0] in HELP:
        print(usage())
        return
    if words[0] == "train" and (words[1:2] == [] or words[1] in HELP):
        print(usage("train "))
        return
    name, argv = find(words)
    sys.argv = [f"latent-cot {name}", *argv]  # what a usage line and a model card say
    place, _, function = COMMANDS[name][0].partition(":")
    try:
        command = getattr(import_module(f"latent_cot.{place}"), function)
        if name in WITHOUT_EXTRA:
            command(argv)
            return
        from latent_cot.training.cli import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "latent_cot":
            raise
        sys.exit(f"error: latent-cot {name} needs {error.name}: pip install 'latent-cot[training]'")
    run(command)


if __name__ == "__main__":
    main()
