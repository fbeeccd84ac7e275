"""The comparison of methods (`make results`): commands, files, and the tables of docs/results.md."""

import json

import pytest
from conftest import ROOT

import run_ccot
import run_cot
from benchmarks.results import depth, grid
from latent_cot import tasks
from latent_cot.training.arguments import DataArguments
from latent_cot.training.cli import parse, read_recipe

SIZES = ("max_steps", "per_device_train_batch_size", "task_args", "dataset_name")


@pytest.mark.parametrize("task", grid.TASKS)
def test_methods_of_a_task_see_the_same_examples(task):
    """Those that start from the latent and the explicit recipe; iCoT's schedule needs more steps, as the table shows."""
    recipes = grid.TASKS[task].recipes
    latent, explicit = (read_recipe(ROOT / "configs/recipes" / f"{recipes[kind]}.yaml") for kind in ("pccot", "cot"))
    assert {name: latent[name] for name in SIZES} == {name: explicit[name] for name in SIZES}
    sizes = [json.loads((ROOT / recipe["config_name"]).read_text()) for recipe in (latent, explicit)]
    assert all(sizes[0][name] == value for name, value in sizes[1].items() if name != "model_type")


def test_a_method_that_changes_nothing_is_not_run():
    """c = 3 of the chain of four is T = 3 already, and word problems have blocks of latents by themselves."""
    three, blocks = grid.METHODS["pccot-T3"], grid.METHODS["pccot-blocks"]
    assert not grid.applies(grid.TASKS["chain"], three) and grid.applies(grid.TASKS["chain16"], three)
    assert not grid.applies(grid.TASKS["word_problems"], blocks) and grid.applies(grid.TASKS["chain"], blocks)


def test_the_page_has_the_tables_of_the_files():
    text = grid.PAGE.read_text(encoding="utf-8")
    for task in grid.TASKS:
        assert grid.table(task) in text
        assert (f"### {grid.TASKS[task].title}\n" in text) == any(grid.rows_of(task).values())
    written = text.partition(grid.BEGIN)[2].partition(grid.END)[0]
    assert written.count("|---") and "|  |" not in written


def test_what_was_not_run_is_not_in_a_table(monkeypatch, tmp_path):
    monkeypatch.setattr(grid, "RESULTS", tmp_path)
    assert grid.table("chain") == ""
    row = {"exact_match": 0.5, "train_seconds": 1, "ms_per_answer_in_batches": 1.0, "new_tokens": 2}
    (tmp_path / "chain" / "icot").mkdir(parents=True)
    (tmp_path / "chain" / "icot" / "seed-0.json").write_text(json.dumps(row))
    assert [line for line in grid.table("chain").splitlines() if line.startswith("| ")][1:] == [
        "| iCoT | `chain_icot_gpt2-4x96` | 1 | 0.5000 | 0.5000 | 0.5000 | 1 | 1.00 | 2.0 |"
    ]


def test_a_file_holds_what_its_command_gives():
    files = sorted(grid.RESULTS.glob("*/*/seed-*.json"))
    assert files
    for path in files:
        row = json.loads(path.read_text())
        assert path.parts[-3:] == (row["task"], row["method"], f"seed-{row['seed']}.json")
        command = grid.command_of(grid.TASKS[row["task"]], grid.METHODS[row["method"]], row["seed"])
        assert row["command"].split()[1:] == command and row["low"] <= row["exact_match"] <= row["high"]


@pytest.mark.slow
def test_a_run_writes_its_file_and_is_not_made_again(monkeypatch, tmp_path):
    page = tmp_path / "results.md"
    page.write_text(f"# Results\n\n{grid.BEGIN}\n{grid.END}\n\nmore\n")
    monkeypatch.setattr(grid, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(grid, "PAGE", page)
    method = grid.METHODS["pccot-range"]
    few = "--max_steps 2 --teacher_warmup_steps 1 --task_args train=64,validation=4,test=8 --use_cpu"
    monkeypatch.setitem(
        grid.METHODS,
        "pccot-range",
        grid.Method(method.label, "pccot", "ccot", f"{method.flags} {few}", method.overrides),
    )
    argv = ["grid.py", "--task", "chain", "--methods", "pccot-range", "--seeds", "3", "--output_dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", argv)
    grid.main()
    path = tmp_path / "results" / "chain" / "pccot-range" / "seed-3.json"
    row = json.loads(path.read_text())
    assert row["seed"] == 3 and 0 <= row["exact_match"] <= 1 and row["recipe"].endswith("chain_pccot_gpt2-2x64.yaml")
    config = json.loads((tmp_path / "chain" / "pccot-range" / "seed-3" / "config.json").read_text())
    assert (config["num_latent_tokens"], config["num_iterations_range"], config["latents_per_step"]) == (6, [3, 6], 2)
    text = page.read_text()
    assert f"| {method.label} | `chain_pccot_gpt2-2x64` | 1 | {row['exact_match']:.4f}" in text
    assert "| iCoT |" not in text and text.endswith("\n\nmore\n")
    written = path.stat().st_mtime_ns
    grid.main()
    assert path.stat().st_mtime_ns == written


# --- how deep ---


@pytest.mark.parametrize("name", depth.FORMS)
@pytest.mark.parametrize("steps", depth.STEPS)
def test_a_training_of_a_depth(name, steps, monkeypatch):
    """Its arguments are read; every intermediate result has its latents, and the longest sequence has room."""
    monkeypatch.chdir(ROOT)
    form = depth.FORMS[name]
    script, *argv = depth.command_of(form, steps, form.passes(steps)[-1])
    arguments = {"run_ccot.py": run_ccot.ARGUMENTS, "run_cot.py": run_cot.ARGUMENTS}[script]
    parsed = parse(arguments, [*argv, "--output_dir", "outputs/x"])
    model, data = parsed[0], next(one for one in parsed if isinstance(one, DataArguments))
    overrides = grid.pairs(model.config_overrides)
    settings = data.task_args.replace("train=40000", "train=3,validation=1,test=1")
    row = tasks.generate("chain", settings)["train"][0]
    latents = int(overrides.get("num_latent_tokens", 0))
    assert len(row["steps"]) == steps + 1 and latents == steps * form.per_step * form.thinks
    assert int(overrides["n_positions"]) >= len(row["question"]) + max(latents, steps) + 8


def test_the_page_has_the_table_of_depths():
    assert depth.tables() in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for path in depth.RESULTS.glob("*/*.json"):
        row = json.loads(path.read_text())
        passes = max(map(int, row["exact_match"]))
        assert path == depth.path_of(row["form"], row["steps"], passes)
        assert row["command"].split()[1:] == depth.command_of(depth.FORMS[row["form"]], row["steps"], passes)
