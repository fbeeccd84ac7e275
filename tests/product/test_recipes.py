"""Recipes (`configs/recipes/`) and configurations: how they are read, and that each runs (tests/product/test_docs.py: and is in the index)."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from transformers import AutoConfig, AutoModelForCausalLM

import run_ccot
import run_cot
import run_grpo
import run_icot
from latent_cot.training.cli import parse, read_recipe
from latent_cot.training.errors import InputError

RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))
LOCAL = [path for path in RECIPES if "tokenizer_name" in read_recipe(path)]  # the others name the Hub or data files
SCRIPTS = {"pccot": run_ccot, "cot": run_cot, "nocot": run_cot, "icot": run_icot, "fillers": run_icot, "grpo": run_grpo}


def script_of(path: Path):
    """The script that a recipe is for, from its name TASK_METHOD_MODEL; a method may have a variant: `icot-whole`."""
    return SCRIPTS[path.stem.split("_")[1].partition("-")[0]]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


READ = {
    "comments": ("a.yaml", "# what it is\nseed: 3  # which\n\nuse_cpu: true\n", {"seed": 3, "use_cpu": True}),
    "another suffix": ("a.yml", "seed: 3", {"seed": 3}),
    "texts": ("a.yaml", 'answer_prompt: "#"\nsave_strategy: "no"', {"answer_prompt": "#", "save_strategy": "no"}),
    "numbers": ("a.yaml", "warmup_steps: 0.03\nmax_steps: -1", {"warmup_steps": 0.03, "max_steps": -1}),
    "JSON": ("a.json", '{"seed": 3, "use_cpu": true}', {"seed": 3, "use_cpu": True}),
}


@pytest.mark.parametrize("case", READ)
def test_a_recipe_is_read(case, tmp_path):
    name, text, wanted = READ[case]
    assert read_recipe(write(tmp_path, name, text)) == wanted


REFUSED = {
    "twice in YAML": ("a.yaml", "seed: 1\nmax_steps: 2\nseed: 1", "'seed' is there twice"),
    "twice in JSON": ("a.json", '{"seed": 1, "seed": 2}', "'seed' is there twice"),
    "a list": ("a.yaml", "seed: [1, 2]", "'seed' must be a text, a number"),
    "a mapping": ("a.yaml", "seed:\n  first: 1", "'seed' must be a text, a number"),
    "a list in JSON": ("a.json", '{"seed": [1]}', "'seed' must be a text, a number"),
    "a mapping in JSON": ("a.json", '{"seed": {}}', "'seed' must be a text, a number"),
    "no mapping": ("a.yaml", "- seed\n- 1", "expected arguments"),
    "only a text": ("a.yaml", "seed", "expected arguments"),
    "nothing": ("a.yaml", "# nothing\n", "expected arguments"),
    "no mapping in JSON": ("a.json", '[["seed", 1]]', "expected arguments"),
    "nothing in JSON": ("a.json", "{}", "expected arguments"),
    "an empty list in JSON": ("a.json", "[]", "expected arguments"),
    "no value": ("a.yaml", "answer_prompt: #\nseed: 1", "'answer_prompt' has no value (a text that begins with #"),
    "null in JSON": ("a.json", '{"seed": null}', "'seed' has no value"),
    "a date": ("a.yaml", "run_name: 2020-01-01", "'run_name' must be a text, a number"),
    "a list as a key": ("a.yaml", "? [seed]\n: 1", "must be a text, a number"),
    "broken YAML": ("a.yaml", 'seed: "1', "not YAML"),
    "two documents": ("a.yaml", "seed: 1\n---\nseed: 2", "not YAML"),
    "code": ("a.yaml", "seed: !!python/object/apply:os.getpid []", "not YAML"),
    "broken JSON": ("a.json", '{"seed": 1', "not JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_recipe_is_refused(case, tmp_path):
    name, text, said = REFUSED[case]
    path = write(tmp_path, name, text)
    with pytest.raises(InputError, match=re.escape(str(path)) + ".*" + re.escape(said)):
        read_recipe(path)


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize("name", ["recipe.yaml", "recipe.json"])
def test_an_unknown_key_is_named(name, tmp_path):
    path = write(tmp_path, name, '{"learning_rat": 1}')  # which is YAML too
    with pytest.raises(InputError, match=rf"{name}: 'learning_rat' is not an argument"):
        parse(run_ccot.ARGUMENTS, [str(path)])


def test_flags_change_a_recipe(tmp_path):
    path = write(tmp_path, "recipe.yaml", "seed: 3\nmax_steps: 7\nlearning_rate: 1e-5\nuse_cpu: true\n")
    args = parse(run_ccot.ARGUMENTS, [str(path), "--seed", "4", "--output_dir", str(tmp_path)])[-1]
    assert (args.seed, args.max_steps, args.learning_rate) == (4, 7, 1e-5)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("torch_dtype: bfloat61", "--torch-dtype: invalid choice: 'bfloat61'"),
        ("max_steps: true", "--max-steps: invalid int value: 'true'"),
        ("max_steps: 1.5", "--max-steps: invalid int value: '1.5'"),
        ("do_train: maybe", "Truthy value expected: got maybe"),
    ],
)
def test_a_recipes_values_are_checked_as_flags_are(entry, said, tmp_path):
    path = write(tmp_path, "recipe.yaml", entry)
    with pytest.raises(InputError, match=re.escape(said)):
        parse(run_ccot.ARGUMENTS, [str(path), "--output_dir", str(tmp_path)])


def test_what_yaml_would_read_as_something_else(tmp_path):
    """`no` is a strategy here, and a number may be a text."""
    path = write(tmp_path, "recipe.yaml", "save_strategy: no\nanswer_prompt: 5\nlearning_rate: 5e-5\nmax_steps: -1")
    _, thought, *_, args = parse(run_ccot.ARGUMENTS, [str(path), "--output_dir", str(tmp_path)])
    assert (args.save_strategy, thought.answer_prompt, args.learning_rate, args.max_steps) == ("no", "5", 5e-5, -1)


@pytest.mark.parametrize("path", LOCAL, ids=lambda path: path.stem)
def test_every_recipe_runs(path: Path, tmp_path):
    """A few steps of each, small data; tests/product/test_docs.py runs those that name the Hub or data files, on stand-ins."""
    recipe, script = read_recipe(path), script_of(path)
    small = ["--max_steps", "2", "--output_dir", str(tmp_path), "--eval_steps", "1"]
    small += ["--per_device_train_batch_size", "8"]
    small += {run_ccot: ["--teacher_warmup_steps", "1"], run_icot: ["--partial_removal"], run_cot: []}[script]
    sizes = re.sub(r"(train|validation|test)=\d+", "", recipe["task_args"]) + ",train=64,validation=8,test=8"
    assert len(LOCAL) >= 7
    script.main([str(path), *small, "--task_args", sizes, "--use_cpu"])
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_every_configuration_builds(path: Path):
    assert "model_type" in json.loads(path.read_text())
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
