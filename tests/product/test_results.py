"""The comparisons of docs/results.md: commands, records, tables and plots."""

import json
from dataclasses import replace

import pytest
from conftest import ROOT, SHIPPED
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerControl

import run_ccot
import run_cot
from benchmarks.results import depth, grid, reward, runs, scale, sweep, tolerance
from latent_cot import tasks
from latent_cot.training.arguments import DataArguments, ModelArguments
from latent_cot.training.cli import parse, read_recipe
from latent_cot.training.flags import pairs

SIZES = ("max_steps", "per_device_train_batch_size", "task_args", "dataset_name")
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def arguments_of(words: list[str]) -> tuple[ModelArguments, DataArguments]:
    """What a command line of a training says, which is read as the script reads it."""
    script, *argv = words
    parsed = parse({"run_ccot.py": run_ccot, "run_cot.py": run_cot}[script].ARGUMENTS, [*argv, "--output_dir", "x"])
    return parsed[0], next(one for one in parsed if isinstance(one, DataArguments))


def first_row(data: DataArguments) -> dict:
    few = "train=3,validation=1,test=1"
    return tasks.generate(data.dataset_name, f"{data.task_args.rpartition(',train=')[0]},{few}")["train"][0]


@pytest.mark.parametrize("task", grid.TASKS)
def test_methods_of_a_task_see_the_same_examples(task):
    """Those that start from the latent and the explicit recipe; iCoT's schedule needs more steps, as the table shows."""
    recipes = grid.TASKS[task].recipes
    latent, explicit = (read_recipe(ROOT / "configs/recipes" / f"{recipes[kind]}.yaml") for kind in ("pccot", "cot"))
    assert {name: latent[name] for name in SIZES} == {name: explicit[name] for name in SIZES}
    sizes = [json.loads((ROOT / recipe["config_name"]).read_text()) for recipe in (latent, explicit)]
    assert all(sizes[0][name] == value for name, value in sizes[1].items() if name != "model_type")


@pytest.mark.parametrize("task", grid.TASKS)
def test_no_method_of_a_task_repeats_another(task):
    """c = 3 of the chain of four is T = 3 already, and word problems have blocks of latents by themselves."""
    made = {name: run.words for name in grid.METHODS for run in grid.runs_of(task, name, 0)}
    recipes = {recipe for recipe in grid.TASKS[task].recipes.values()}
    assert {words[1] for words in made.values()} == {f"configs/recipes/{recipe}.yaml" for recipe in recipes}
    assert len(set(map(tuple, made.values()))) == len(made)
    settings = read_recipe(ROOT / made["pccot"][1])
    config = json.loads((ROOT / settings["config_name"]).read_text()) | pairs(settings.get("config_overrides"))
    assert ("pccot-T3" in made) == (str(config["num_iterations"]) != "3")
    assert ("pccot-blocks" in made) == ("pccot-range" in made) == (int(config.get("latents_per_step", 1)) == 1)


def test_the_page_has_the_tables_of_the_files():
    for task in grid.TASKS:
        assert grid.table(task) in PAGE
        assert (f"### {grid.TASKS[task].title}\n" in PAGE) == bool(runs.recorded(f"{task}/*/seed-*"))
    written = PAGE.partition(grid.BEGIN)[2].partition(grid.END)[0]
    assert written.count("|---") and "|  |" not in written
    assert depth.tables() in PAGE


def test_what_was_not_run_is_not_in_a_table(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    assert grid.table("chain") == ""
    row = {"exact_match": 0.5, "train_seconds": 1, "ms_per_answer_in_batches": 1.0, "new_tokens": 2}
    (tmp_path / "chain" / "icot").mkdir(parents=True)
    (tmp_path / "chain" / "icot" / "seed-0.json").write_text(json.dumps(row))
    assert [line for line in grid.table("chain").splitlines() if line.startswith("| ")][1:] == [
        "| iCoT | `chain_icot_gpt2-4x96` | 1 | 0.5000 | 0.5000 | 0.5000 | 1 | 1.00 | 2.0 |"
    ]


def test_a_file_holds_what_its_command_gives():
    files = [path for task in grid.TASKS for path in runs.RESULTS.glob(f"{task}/*/seed-*.json")]
    assert files
    for path in files:
        row = json.loads(path.read_text())
        (run,) = grid.runs_of(row["task"], row["method"], row["seed"])
        assert path == runs.RESULTS / f"{run.name}.json" and row.items() >= run.about.items()
        assert row["command"].split()[1:] == run.words and row["low"] <= row["exact_match"] <= row["high"]
    for path in runs.RESULTS.glob("depth/*/*.json"):
        row = json.loads(path.read_text())
        made = {run.name: run for run in depth.runs_of(row["form"], row["steps"])}
        run = made[path.relative_to(runs.RESULTS).with_suffix("").as_posix()]
        assert row["command"].split()[1:] == run.words and row.items() >= run.about.items()


@pytest.mark.slow
def test_a_run_writes_its_file_and_is_not_made_again(monkeypatch, tmp_path):
    page = tmp_path / "results.md"
    page.write_text(f"# Results\n\n{grid.BEGIN}\n{grid.END}\n\nmore\n")
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(grid, "PAGE", page)
    method = grid.METHODS["pccot-range"]
    few = "--max_steps 2 --teacher_warmup_steps 1 --task_args train=64,validation=4,test=8 --use_cpu"
    monkeypatch.setitem(grid.METHODS, "pccot-range", replace(method, flags=f"{method.flags} {few}"))
    argv = ["--task", "chain", "--methods", "pccot-range", "--seeds", "3", "--output_dir", str(tmp_path)]
    runs.command_line("", grid.AXES, grid.runs_of, grid.write_tables, argv=argv)
    path = tmp_path / "results" / "chain" / "pccot-range" / "seed-3.json"
    row = json.loads(path.read_text())
    assert row["seed"] == 3 and 0 <= row["exact_match"] <= 1 and row["recipe"].endswith("chain_pccot_gpt2-2x64.yaml")
    config = json.loads((tmp_path / "chain" / "pccot-range" / "seed-3" / "config.json").read_text())
    assert (config["num_latent_tokens"], config["num_iterations_range"], config["latents_per_step"]) == (6, [3, 6], 2)
    text = page.read_text()
    assert f"| {method.label} | `chain_pccot_gpt2-2x64` | 1 | {row['exact_match']:.4f}" in text
    assert "| iCoT |" not in text and text.endswith("\n\nmore\n")
    written = path.stat().st_mtime_ns
    runs.command_line("", grid.AXES, grid.runs_of, grid.write_tables, argv=argv)
    assert path.stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_run_on_the_model_of_another_and_with_another_gain(monkeypatch, tmp_path):
    """A sampled thought of an early model; a gain that is started elsewhere, whose size is in the record."""
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(sweep.SWEEPS["noise"], "stops", [2, 2, 2])
    few = "--teacher_warmup_steps 1 --use_cpu --per_device_train_batch_size 4 --task_args train=64,validation=4,test=8"
    (run,) = sweep.runs_of("noise", "noise 0.3", 0)
    early = replace(run.after, words=[*run.after.words, *few.split()])
    asked = [*run.words, "--task_args", "operations=4,train=1,validation=4,test=4"]
    runs.record(replace(run, words=asked, after=early), tmp_path)
    (row,) = runs.recorded("noise/*/seed-*")
    assert row["row"] == "noise 0.3" and row["pass@1"] <= row["pass@16"] and row["distinct answers"] >= 1
    sweep.show("noise", tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size > 5000

    (run,) = scale.runs_of("chain", "fixed-0.3", 0, "few", [*few.split(), "--max_steps", "2", "--logging_steps", "1"])
    runs.record(run, tmp_path)
    (row,) = runs.recorded("scale/chain/few/seed-0")
    assert row["variant"] == "few" and row["latent_scale"][-1][1] == pytest.approx(3, rel=0.3)


# --- what each asks ---


@pytest.mark.parametrize("name", depth.FORMS)
@pytest.mark.parametrize("steps", depth.STEPS)
def test_a_training_of_a_depth(name, steps, monkeypatch):
    """Every intermediate result has its latents, and the longest sequence has room."""
    monkeypatch.chdir(ROOT)
    model, data = arguments_of(depth.runs_of(name, steps)[0].words)
    overrides, row = pairs(model.config_overrides), first_row(data)
    latents = int(overrides.get("num_latent_tokens", 0))
    assert len(row["steps"]) == steps + 1 and latents == steps * {"none": 0, "blocks": 2}.get(name, 1)
    assert int(overrides["n_positions"]) >= len(row["question"]) + max(latents, steps) + 8


@pytest.mark.parametrize("row", sweep.SWEEPS["log_depth"]["rows"])
def test_affine_maps_in_few_passes(row, monkeypatch):
    """A row's name says what its command does; c holds all before the answer."""
    monkeypatch.chdir(ROOT)
    (run,) = sweep.runs_of("log_depth", row, 0)
    model, data = arguments_of(run.words)
    example, overrides = first_row(data), pairs(model.config_overrides)
    assert ("windows" in example) == row.startswith("windows")
    assert f"{len(example['steps'])} maps mod {pairs(data.task_args)['modulus']}" in row
    assert (overrides["n_layer"], overrides["n_embd"]) == ("3", "128")
    if "T = " in row:
        assert row.endswith(f"T = {overrides['num_iterations']}")
        assert int(overrides["num_latent_tokens"]) == len(example["steps"]) - 1


def test_sizes_of_latents():
    """Every variant changes something else, and what is recorded of chains of four operations can be made again."""
    commands = {name: " ".join(scale.runs_of("chain6", name, 0)[0].words) for name in scale.AXES["variants"][0]}
    own = "num_latent_tokens=5,num_iterations=5,loss_delta=0"
    recipe = "configs/recipes/chain6_pccot_gpt2-2x64.yaml"
    assert commands["learned"] == f"run_ccot.py {recipe} --config_overrides {own} --seed 0"
    assert commands["off"] == f"run_ccot.py {recipe} --scale_latents false --config_overrides {own} --seed 0"
    assert len(set(commands.values())) == len(commands) == 19
    recorded = {row["variant"] for row in runs.recorded("scale/chain/*/seed-*")}
    assert recorded <= commands.keys()


@pytest.mark.parametrize("task", reward.RECIPES)
def test_reward_goes_on_from_an_early_supervised_model(task, monkeypatch):
    """On the same questions; it is first asked once the student has begun, and ends above 0.6."""
    monkeypatch.chdir(ROOT)
    (run,) = reward.runs_of(task, "latents", 0.3, 0, "training")
    _, thought, _, data, *_, args = parse(run_ccot.ARGUMENTS, [*run.after.words[2:], "--output_dir", "x"])
    assert thought.loss_delta == 1 and args.eval_delay == thought.teacher_warmup_steps > 0 and args.eval_steps == 5
    assert thought.scale_latents is (False if task == "chain-off" else None)
    assert run.words[run.words.index("--task_args") + 1] == data.task_args and data.dataset_name in run.words

    early = reward.Early.__new__(reward.Early)
    early.control = TrainerControl()
    for right, ends in ((0.6, False), (0.602, True)):
        monkeypatch.setattr(reward.PCCoTTrainer, "evaluate", lambda self, right=right: {"eval_ccot_exact_match": right})
        early.evaluate()
        assert early.control.should_training_stop is ends


def test_tables_and_plots_of_what_is_recorded(tmp_path, capsys):
    scale.show(tmp_path / "scale.png")
    assert scale.table() in PAGE
    depth.show(tmp_path / "depth.png")
    assert depth.tables() in capsys.readouterr().out
    trained, sampled = reward.tables()
    assert (
        trained in PAGE
        and "| chain | temperature 2 | 3 | 0.606 to 0.636 | 50 to 75 | 44 to 65 | 125 to 200 | 107 to 169 | 0.9905 to 0.9985 |"
        in trained
    )
    assert sampled in PAGE and "| weights 0.3 | 1 | 0.408 | 0.73 | 0.924 |" in sampled
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("scale", "depth"))


def test_what_a_tolerance_saves():
    """On the shipped checkpoint: nothing as long as the answers stay right, and a pass at 3."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(SHIPPED).eval(), AutoTokenizer.from_pretrained(SHIPPED)
    examples = tasks.generate("chain", "operations=4,train=1,validation=1,test=20")["test"]
    found = {value: tolerance.measure(model, tokenizer, examples, value) for value in (None, 0.1, 3)}
    assert found[None] == found[0.1] and {passes for _, passes, _ in found[None]} == {3}
    assert all(right for *_, right in found[None]) and max(passes for _, passes, _ in found[3]) == 2
