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
from latent_cot.training.checkpoints.loading import load_config
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
    "a list": ("a.yaml", "report_to: [a, b]\nlabel_names:\n- c", {"report_to": ["a", "b"], "label_names": ["c"]}),
    "a mapping": ("a.yaml", "task_args:\n  train: 8", {"task_args": {"train": 8}}),
    "both in JSON": ("a.json", '{"a": ["b"], "c": {"d": 1}}', {"a": ["b"], "c": {"d": 1}}),
}


@pytest.mark.parametrize("case", READ)
def test_a_recipe_is_read(case, tmp_path):
    name, text, wanted = READ[case]
    assert read_recipe(write(tmp_path, name, text)) == wanted


REFUSED = {
    "twice in YAML": ("a.yaml", "seed: 1\nmax_steps: 2\nseed: 1", "'seed' is there twice"),
    "twice in JSON": ("a.json", '{"seed": 1, "seed": 2}', "'seed' is there twice"),
    "twice in a mapping": ("a.yaml", "task_args: {train: 1, train: 2}", "'train' is there twice"),
    "twice in a mapping in JSON": ("a.json", '{"task_args": {"train": 1, "train": 2}}', "'train' is there twice"),
    "no value in a list": ("a.yaml", "report_to: [a, ]\nlabel_names: [~]", "'label_names' has no value"),
    "no value in a mapping": ("a.yaml", "task_args: {train: }", "'train' has no value"),
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


SEVERAL = {
    "a list of texts": ("label_names: [a, b]", "label_names", ["a", "b"]),
    "a list of numbers": ("include_for_metrics: [1, 2]", "include_for_metrics", ["1", "2"]),
    "a list where a text would do": ("report_to: [none]", "report_to", []),
    "a mapping": ("lr_scheduler_kwargs: {num_cycles: 2}", "lr_scheduler_kwargs", {"num_cycles": 2}),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_lists_and_mappings_are_several_values(case, tmp_path):
    text, name, wanted = SEVERAL[case]
    path = write(tmp_path, "a.yaml", text)
    args = parse(run_ccot.ARGUMENTS, [str(path), "--output_dir", str(tmp_path)])[-1]
    assert getattr(args, name) == wanted
    told = write(tmp_path, "b.yaml", f"{text}\nreport_to: tensorboard" if name != "report_to" else text)
    args = parse(run_ccot.ARGUMENTS, [str(told), "--output_dir", str(tmp_path), "--report_to", "none"])[-1]
    assert args.report_to == []  # later flags win


def test_settings_may_be_a_mapping(tmp_path):
    text = "config_overrides:\n  n_layer: 3\n  loss_delta: 0.5\ntask_args: {train: 8, test: 2}"
    model, _, _, data, *_ = parse(run_ccot.ARGUMENTS, [str(write(tmp_path, "a.yaml", text))])
    assert (model.config_overrides, data.task_args) == ("n_layer=3,loss_delta=0.5", "train=8,test=2")


@pytest.mark.parametrize(
    "text",
    [
        "seed: [1, 2]",
        "seed:\n  first: 1",
        "run_name: {a: b}",
        "run_name: [a]",
        "config_overrides: [a]",
        "task_args: {a: [1]}",
    ],
)
def test_several_values_of_a_flag_that_takes_one(text, tmp_path):
    name = text.partition(":")[0]
    with pytest.raises(InputError, match=rf"a.yaml: '{name}' must be a text, a number, true or false, not a"):
        parse(run_ccot.ARGUMENTS, [str(write(tmp_path, "a.yaml", text))])


OVERRIDES = "config_overrides: num_latent_tokens=7,num_iterations=7,n_embd=64\n"
MERGED = {
    "added": (
        OVERRIDES,
        ["--config_overrides", "loss_delta=0"],
        "num_latent_tokens=7,num_iterations=7,n_embd=64,loss_delta=0",
        None,
    ),
    "the later one": (
        OVERRIDES,
        ["--config_overrides=n_embd=32"],
        "num_latent_tokens=7,num_iterations=7,n_embd=32",
        None,
    ),
    "twice": ("seed: 1", ["--config_overrides", "a=1,b=2", "--config_overrides", "a=3"], "b=2,a=3", None),
    "taken away": (OVERRIDES, ["--config_overrides="], "", None),
    "a flag after an override": (OVERRIDES, ["--num_iterations", "3"], "num_latent_tokens=7,n_embd=64", 3),
    "an override after a flag": (
        "num_iterations: 3",
        ["--config_overrides", "num_iterations=5"],
        "num_iterations=5",
        None,
    ),
}


@pytest.mark.parametrize("case", MERGED)
def test_overrides_are_added_to_a_recipes(case, tmp_path):
    """By name, and the last one counts; a flag of the same setting too."""
    text, flags, overrides, iterations = MERGED[case]
    model, thought, *_ = parse(run_ccot.ARGUMENTS, [str(write(tmp_path, "a.yaml", text)), *flags])
    assert (model.config_overrides, thought.num_iterations) == (overrides, iterations)


def test_flags_of_the_configuration(tmp_path):
    """Each reaches it; those left out do not."""
    flags = {"num_iterations": 2, "loss_alpha": 0.5, "loss_beta": 2.0, "loss_gamma": 0.0, "loss_delta": 1.0}
    flags |= {"use_projection": True, "use_layerwise_std": False, "num_latent_tokens": 5, "latents_per_step": 2}
    argv = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    model, thought, *_ = parse(run_ccot.ARGUMENTS, ["--config_name", str(ROOT / "configs/pccot_gpt2_tiny.json"), *argv])
    config = load_config(model, "pccot", thought.configuration_settings())
    assert {name: getattr(config, name) for name in flags} == flags
    model.config_overrides = "num_iterations=4"  # in Python there is no order of the two
    with pytest.raises(InputError, match="num_iterations is 2, and config_overrides say 4: leave one out"):
        load_config(model, "pccot", thought.configuration_settings())
    _, left_out, *_ = parse(run_ccot.ARGUMENTS, [])
    assert set(left_out.configuration_settings().values()) == {None}
    assert flags.keys() < left_out.configuration_settings().keys()


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


# The first one of every method and variant; the others are slow, and parsed by tests/product/test_docs.py.
QUICK = {path.stem.split("_")[1]: path for path in reversed(LOCAL)}.values()


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[] if path in QUICK else pytest.mark.slow) for path in LOCAL]
)
def test_every_recipe_runs(path: Path, tmp_path):
    """A few steps of each, small data; tests/product/test_docs.py runs those that name the Hub or data files, on stand-ins."""
    recipe, script = read_recipe(path), script_of(path)
    small = ["--max_steps", "2", "--output_dir", str(tmp_path), "--eval_steps", "2"]
    small += ["--per_device_train_batch_size", "8", "--max_cot_tokens", "8", "--max_new_tokens", "4"]
    if recipe.get("bf16"):  # which some processors compute a thousand times slower
        small += ["--bf16", "false"]
    if path.stem.endswith("x768"):  # the same code at an eighth of the width, in an eighth of the time
        small += ["--config_overrides", "n_embd=96"]
    small += {run_ccot: ["--teacher_warmup_steps", "1"], run_icot: ["--partial_removal"], run_cot: []}[script]
    sizes = re.sub(r"(train|validation|test)=\d+", "", recipe["task_args"]) + ",train=64,validation=8,test=8"
    assert len(LOCAL) >= 7
    script.main([str(path), *small, "--task_args", sizes, "--use_cpu"])
    assert (tmp_path / "model.safetensors").exists()


def test_the_index_knows_what_was_trained():
    """A recipe with results is among those that were trained, and only these have a result in the table."""
    page = (ROOT / "configs" / "recipes" / "README.md").read_text()
    tables = {part.partition("\n")[0]: part for part in page.split("\n## ")[1:]}
    rows = {
        title: re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]+) \|", part, re.MULTILINE) for title, part in tables.items()
    }
    assert set(rows) == {"Trained here", "Published settings", "Not trained yet"} and all(rows.values())
    for title, entries in rows.items():
        for name, result in entries:
            assert result.startswith("not run") == (title != "Trained here"), name
    used = set()
    for path in (ROOT / "results").glob("*/*/*.json"):
        command = json.loads(path.read_text()).get("command", "")
        chain = re.findall(r"--no_cot (true|false)", command)
        for recipe in (path for path in RECIPES if path.name in command):
            if chain in ([], [str(read_recipe(recipe).get("no_cot", False)).lower()]):  # else it is another method
                used.add(recipe.name)
    assert len(used) > 5 and used <= {name for name, _ in rows["Trained here"]}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_every_configuration_builds(path: Path):
    assert "model_type" in json.loads(path.read_text())
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
