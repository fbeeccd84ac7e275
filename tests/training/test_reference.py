"""What a user reads of flags: `--help`, and docs/reference.md, which is made of the same texts."""

import re
from dataclasses import fields

import pytest
from conftest import ROOT

import run_ccot
import run_cot
import run_icot
from latent_cot.training import reference
from latent_cot.training.cli import FIRST_RUN, SUCCESSORS, ArgumentParser

SCRIPTS = {"ccot": run_ccot, "cot": run_cot, "icot": run_icot}
ABOUT_LATENTS = {"num_samples", "latent_noise", "latent_dropout", "eval_iterations", "latent_tolerance"}
ABSENT = {
    "ccot": set(),
    "cot": ABOUT_LATENTS | {"faithfulness", "explicit_cot"},
    "icot": ABOUT_LATENTS | {"streaming", "shuffle_buffer"},
    "grpo": ABOUT_LATENTS - {"latent_tolerance"}
    | {"faithfulness", "streaming", "shuffle_buffer", "block_size", "drop_long", "keep_last_step"}
    | {"preprocessing_num_workers"},
}
REMOVED = {"logging_dir", "save_safetensors", "include_inputs_for_metrics", "on_nan"}


def arguments(name: str) -> tuple[type, ...]:
    if name == "grpo":
        pytest.importorskip("trl", reason="trl is not installed: pip install '.[rl]'")
        import run_grpo

        return run_grpo.argument_classes()
    return SCRIPTS[name].ARGUMENTS


def test_the_page_is_current():
    """If not: make reference."""
    pytest.importorskip("trl", reason="trl is not installed: pip install '.[rl]'")
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == reference.page()


@pytest.mark.parametrize("name", ABSENT)
def test_help_has_no_flag_that_the_script_refuses(name):
    known = {field.name for group in run_ccot.ARGUMENTS for field in fields(group)}
    flags = {action.dest for action in ArgumentParser(arguments(name))._actions}
    assert not flags & (ABSENT[name] | REMOVED)
    assert ABSENT[name] <= known and SUCCESSORS.keys() >= REMOVED


@pytest.mark.parametrize("name", ABSENT)
def test_help_begins_with_a_first_run(name):
    text = ArgumentParser(arguments(name)).format_help()
    titles = re.findall(r"^(\w.*):$", text, flags=re.MULTILINE)
    assert titles[0] == "A first run" and len(titles) >= 7
    first = text.partition("A first run:")[2].partition(f"{titles[1]}:")[0]
    assert re.findall(r"^  --(\w+) ", first, flags=re.MULTILINE) == list(FIRST_RUN)
    for flag in FIRST_RUN:
        assert len(re.findall(rf"^  --{flag}[ ,]", text, flags=re.MULTILINE)) == 1
    assert text.index("How answers are generated") < text.index("TrainingArguments of transformers:")
