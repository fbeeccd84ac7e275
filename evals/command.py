"""`latent-cot lm_eval`: the harness's own command line, with our model class and our task files in it."""

import sys
from pathlib import Path

TASKS = Path(__file__).parent


def main(argv: list[str]) -> None:
    """Arguments are those of `lm_eval`; `--model latent-cot` and our `--include_path` are there unless given."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        sys.exit(f"error: latent-cot lm_eval needs {error.name}: pip install lm_eval")
    from . import latent_lm  # noqa: F401  registers the class; later releases find it by its entry point

    if argv[:1] in (["run"], ["ls"], ["validate"]):
        command, argv = argv[:1], argv[1:]
    else:
        command = ["run"]
    given = {word.partition("=")[0] for word in argv}
    if command == ["run"] and not given & {"--model", "-M", "--help", "-h", "--config", "-C"}:
        argv = ["--model", "latent-cot", *argv]
    if not given & {"--include_path", "--config", "-C"}:
        argv = [*argv, "--include_path", str(TASKS)]
    sys.argv = ["lm_eval", *command, *argv]
    cli_evaluate()
