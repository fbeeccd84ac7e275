"""The scripts as a user starts them: whole runs, and one line for every bad input."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

import run_ccot
import run_cot
from training import cli
from training.errors import InputError
from training.rows import format_line

TINY = ["--config_name", "configs/pccot_gpt2_tiny.json", "--tokenizer_name", "characters"]
QUICK = ["--use_cpu", "--max_steps", "3", "--per_device_train_batch_size", "4", "--save_strategy", "no"]
CHAIN = str(ROOT / "checkpoints" / "pccot-gpt2-chain")
QUICK += ["--disable_tqdm", "true", "--max_cot_tokens", "12", "--max_new_tokens", "6"]


@pytest.fixture
def data(tmp_path):
    rows = [
        {"question": f"Tom has {i} and gets {i}?", "steps": [f"<<{i}+{i}={2 * i}>>"], "answer": str(2 * i)}
        for i in range(9)
    ]
    path = tmp_path / "data.txt"
    path.write_text("".join(format_line(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of a few steps."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    chain = ["--dataset_name", "chain", "--task_args", "train=64,validation=8,test=8", "--answer_prompt", "#"]
    run_ccot.main([*TINY, *chain, *QUICK, "--do_train", "--do_eval", "--do_predict", "--output_dir", str(folder)])
    return folder


def test_a_run_leaves_a_whole_checkpoint(trained):
    names = {path.name for path in trained.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "example.py",
        "predictions.jsonl",
    } <= names
    assert "modeling_pccot.py" in names and not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    rows = [json.loads(line) for line in (trained / "predictions.jsonl").read_text().splitlines()]
    assert [row["split"] for row in rows] == ["validation"] * 8 + ["test"] * 8
    assert {"question", "gold", "ccot_answer", "ccot_right", "cot_answer", "cot_right"} <= rows[0].keys()
    results = json.loads((trained / "all_results.json").read_text())
    for name in ("exact_match", "exact_match_low", "exact_match_high", "examples_per_second", "new_tokens"):
        assert f"test_ccot_{name}" in results and f"eval_cot_{name}" in results
    assert results["test_ccot_exact_match"] == sum(row["ccot_right"] for row in rows[8:]) / 8
    card = (trained / "README.md").read_text()
    assert "exact match" in card and "--answer_prompt" not in card.split("---")[1]


@pytest.mark.slow  # tests/test_remote_code.py asks the same of a model that was not trained
def test_a_fresh_process_needs_only_the_folder(trained, tmp_path):
    """Remote code, without this repository: the same logits and answer."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    inputs = tokenizer(["1+2*3-4+5=", "7="], padding=True, return_tensors="pt")
    wanted = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    script = """
import sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__ == "PCCoTGPT2Model"
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
inputs = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)(["1+2*3-4+5=", "7="], padding=True, return_tensors="pt")
assert not any(name == "models" or name.startswith("models.") for name in sys.modules)
print(model.generate(**inputs, max_new_tokens=4, do_sample=False).tolist())
"""
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(trained)], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == wanted.tolist()


def test_settings_come_from_the_checkpoint(trained, tmp_path, caplog):
    """A contradicting flag wins, with a warning; the weights stay."""
    ask = [
        "--model_name_or_path",
        str(trained),
        "--dataset_name",
        "chain",
        "--task_args",
        "train=8,validation=4,test=4",
    ]
    ask += ["--do_predict", "--use_cpu", "--max_cot_tokens", "8", "--max_new_tokens", "4"]
    run_ccot.main([*ask, "--output_dir", str(tmp_path / "a")])
    assert "replaces" not in caplog.text
    run_ccot.main([*ask, "--num_latent_tokens", "2", "--answer_prompt", "=", "--output_dir", str(tmp_path / "b")])
    assert "--num_latent_tokens 2 replaces the checkpoint's 6" in caplog.text
    assert "--answer_prompt '=' replaces the checkpoint's '#'" in caplog.text
    assert not (tmp_path / "a" / "model.safetensors").exists()


@pytest.mark.slow
def test_two_processes(trained, tmp_path):
    """Training under torchrun, and the same predictions from two processes as from one."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "run_ccot.py"]
    common = ["--dataset_name", "chain", "--task_args", "train=64,validation=8,test=7", "--use_cpu"]
    common += ["--max_cot_tokens", "12", "--max_new_tokens", "6", "--per_device_eval_batch_size", "2"]
    ask = ["--model_name_or_path", str(trained), *common, "--do_predict"]
    run_ccot.main([*ask, "--output_dir", str(tmp_path / "one")])
    both = ["--ddp_backend", "gloo", "--output_dir", str(tmp_path / "two")]
    train = ["--do_train", "--max_steps", "3", "--teacher_warmup_steps", "1", "--save_strategy", "no"]
    train += ["--config_overrides", "use_projection=true", "--learning_rate", "0"]
    done = subprocess.run([*launch, *ask, *train, *both], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [row["question"] for row in one] == [row["question"] for row in two]
    assert [row["cot_text"] for row in one] == [row["cot_text"] for row in two]


def test_text_stays_text(trained):
    """A question that spells special tokens is answered as text, like any other."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    for text in ("1+<pcot.latent>=", "<pcot.bot><pcot.latent><pcot.eot>2=", "3<eos>=", "[PAD]4="):
        inputs = tokenizer([text], return_tensors="pt")
        assert not set(inputs.input_ids[0].tolist()) & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert output.shape[1] > inputs.input_ids.shape[1]


@pytest.mark.parametrize("script", [run_ccot, run_cot])
def test_published_text_format(script, data, tmp_path):
    files = ["--train_file", data, "--validation_file", data, "--eval_strategy", "steps", "--eval_steps", "2"]
    metrics = script.main([*TINY, *files, *QUICK, "--do_train", "--do_eval", "--output_dir", str(tmp_path / "o")])
    assert "eval_cot_exact_match" in metrics


def test_no_cot_and_recipe_file(data, tmp_path):
    recipe = {
        "config_name": "configs/gpt2_chain.json",
        "tokenizer_name": "characters",
        "no_cot": True,
        "train_file": data,
    }
    recipe |= {"test_file": data, "do_train": True, "do_predict": True, "max_steps": 2, "use_cpu": True}
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe))
    metrics = run_cot.main([str(path), "--output_dir", str(tmp_path / "o"), "--save_strategy", "no"])
    assert "test_no_cot_exact_match" in metrics and metrics["test_no_cot_new_tokens"] > 0


def test_what_a_model_cannot_read_or_be_right_about_is_named(data, tmp_path, caplog):
    """Text that its tokenizer does not know, and gold answers with the answer prompt in them; changed settings too."""
    rows = [{"question": q, "steps": ["3"], "answer": a} for q, a in (("1+2=", "3"), ("1%2=", "3#3"), ("é+2=", "3"))]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--model_name_or_path", CHAIN, "--test_file", str(path), *QUICK, "--do_predict"]
    run_ccot.main([*argv, "--output_dir", str(tmp_path / "o"), "--config_overrides", "num_iterations=1,loss_alpha=1"])
    assert "test: 2 of 3 rows hold text that the tokenizer does not know (the first is row 1)" in caplog.text
    assert "test: 1 gold answers hold the answer prompt '#'" in caplog.text
    assert "--config_overrides num_iterations=1 replaces the checkpoint's 3" in caplog.text
    assert "loss_alpha" not in caplog.text


def test_every_question_is_asked_where_training_drops_the_last_batch(data, tmp_path):
    flags = ["--dataloader_drop_last", "--per_device_eval_batch_size", "4", "--output_dir", str(tmp_path / "o")]
    files = ["--train_file", data, "--validation_file", data]
    run_ccot.main([*TINY, *files, *QUICK, "--do_train", "--do_eval", *flags])
    assert len((tmp_path / "o" / "predictions.jsonl").read_text().splitlines()) == 9


def test_a_stock_checkpoint_keeps_its_token_ids(data, tmp_path):
    """A model of run_cot.py knows by its answer prompt that it was trained."""
    new = ["--config_name", "configs/gpt2_chain.json", "--tokenizer_name", "characters", "--train_file", data]
    run_cot.main([*new, *QUICK, "--do_train", "--output_dir", str(tmp_path / "cot")])
    again = ["--model_name_or_path", str(tmp_path / "cot"), "--train_file", data, *QUICK, "--do_train", "--output_dir"]
    run_cot.main([*again, str(tmp_path / "same"), "--tokenizer_name", "characters"])
    with pytest.raises(InputError, match="was trained with other token ids"):
        run_cot.main([*again, str(tmp_path / "other"), "--tokenizer_name", "bytes"])


def test_a_recipe_with_other_data(data, tmp_path):
    """`--dataset_name= --task_args=` take the recipe's away."""
    path = tmp_path / "recipe.yaml"
    path.write_text("dataset_name: chain\ntask_args: operations=4\nconfig_name: configs/pccot_gpt2_tiny.json\n")
    options = ["--tokenizer_name", "characters", "--train_file", data, "--dataset_name=", "--task_args=", "--do_train"]
    run_ccot.main([str(path), *options, *QUICK, "--output_dir", str(tmp_path / "o")])
    assert "Trained on data.txt." in (tmp_path / "o" / "README.md").read_text()


def test_streaming_mixed_curriculum_and_everything(data, tmp_path):
    options = ["--train_file", data, "--streaming", "--latent_curriculum", "mixed", "--curriculum_prob", "1"]
    options += ["--keep_last_step", "--config_overrides", "loss_delta=0.5,use_projection=true,num_iterations=2"]
    options += ["--latents_per_step", "3", "--open_steps_with_bot", "true", "--gradient_checkpointing"]
    run_ccot.main([*TINY, *options, *QUICK, "--do_train", "--output_dir", str(tmp_path / "o")])
    config = json.loads((tmp_path / "o" / "config.json").read_text())
    assert config["use_projection"] and config["open_steps_with_bot"] and config["num_iterations"] == 2


def test_flags_may_be_bare(tmp_path):
    """Boolean flags without a value, old ones too; a second run replaces what the first left."""
    chain = ["--dataset_name", "chain", "--task_args", "train=16,validation=4,test=4", "--output_dir", str(tmp_path)]
    quick = [flag for flag in QUICK if flag not in ("--save_strategy", "no")] + ["--save_steps", "3"]
    run_ccot.main([*TINY, *chain, *quick, "--do_train", "--do_predict", "--use_peft", "--lora_r", "2"])
    assert (tmp_path / "adapter").is_dir() and (tmp_path / "checkpoint-3").is_dir()
    adapted = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert adapted == sorted(adapted) and len(adapted) > 2  # PEFT's own order is another one in every process
    bare = ["--overwrite_output_dir", "--group_by_length", "--no_cuda", "--save_safetensors", "--open_steps_with_bot"]
    run_ccot.main([*TINY, *chain, *QUICK, "--do_train", "--do_eval", *bare])
    assert not (tmp_path / "adapter").exists() and not (tmp_path / "checkpoint-3").exists()
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert not [name for name in results if name.startswith("test_")]


def fails(monkeypatch, capsys, argv, script=run_ccot) -> str:
    """Run a script that must end with one line on standard error."""
    monkeypatch.setattr(sys, "argv", ["script", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.run(script.main)
    message = str(stop.value.code)
    assert message.startswith("error: ") and "\n" not in message
    return message


BAD = {
    "missing file": (["--train_file", "nowhere.json"], "nowhere.json: no such file"),
    "unknown suffix": (["--train_file", "pyproject.toml"], "cannot read '.toml' files"),
    "no data": ([], "no data: pass --dataset_name"),
    "unknown data set": (["--dataset_name", "no/such-set"], "neither a task (affine, chain"),
    "settings of no task": (
        ["--dataset_name", "no/such-set", "--task_args", "size=3"],
        "only for a task (affine, chain",
    ),
    "settings of a file": (["--train_file", "pyproject.toml", "--task_args", "size=3"], "and a file is none"),
    "task setting": (["--dataset_name", "chain", "--task_args", "size=3"], "no setting 'size'"),
    "negative T": (["--dataset_name", "chain", "--config_overrides", "num_iterations=-1"], "num_iterations must be"),
    "no latents": (["--dataset_name", "chain", "--num_latent_tokens", "0"], "num_latent_tokens must be"),
    "no such field": (["--dataset_name", "chain", "--config_overrides", "depth=3"], "no field 'depth'"),
    "bad value": (["--dataset_name", "chain", "--config_overrides", "loss_gamma=much"], "does not fit"),
    "empty answer prompt": (["--dataset_name", "chain", "--answer_prompt", ""], "--answer_prompt '' is empty"),
    "too long": (["--dataset_name", "chain", "--block_size", "9"], "train row 0 is too long"),
    "all too long": (["--dataset_name", "chain", "--block_size", "9", "--drop_long"], "every row is longer"),
    "missing model": (["--dataset_name", "chain", "--config_name", "./nowhere"], "'./nowhere': no such file"),
    "streaming": (["--dataset_name", "chain", "--streaming", "--max_steps", "-1"], "needs --max_steps"),
    "flash": (["--dataset_name", "chain", "--attn_implementation", "flash_attention_2"], "needs a GPU"),
    "liger": (["--dataset_name", "chain", "--use_liger_kernel"], "needs: pip install liger-kernel"),
    "wandb": (["--dataset_name", "chain", "--report_to", "wandb"], "needs: pip install wandb"),
    "tensorboard": (["--dataset_name", "chain", "--report_to", "tensorboard"], "needs: pip install tensorboard"),
    "unknown tracker": (
        ["--dataset_name", "chain", "--report_to", "wandbb"],
        "--report_to: wandbb is not supported, only",
    ),
    "two sources": (["--dataset_name", "chain", "--train_file", "pyproject.toml"], "two sources of data"),
    "tolerance": (["--dataset_name", "chain", "--latent_tolerance", "-1"], "--latent_tolerance must be"),
    "noise of no samples": (["--dataset_name", "chain", "--latent_noise", "0.5"], "that --num_samples asks for"),
    "no room": (["--dataset_name", "chain", "--max_new_tokens", "0"], "--max_new_tokens must be"),
    "probability": (["--dataset_name", "chain", "--curriculum_prob", "2"], "between 0 and 1"),
    "no samples": (["--dataset_name", "chain", "--max_train_samples", "-1"], "--max_train_samples must be"),
    "bad number": (["--dataset_name", "chain", "--max_steps", "x"], "invalid int value: 'x'"),
    "unknown flag": (["--dataset_name", "chain", "--lattents", "3"], "--lattents"),
    "columns": (["--dataset_name", "chain", "--remove_unused_columns", "true"], "must stay off"),
    "a list": (["--dataset_name", "chain", "--config_overrides", "answer_prompt_ids=3"], "does not fit"),
    "loss only": (["--dataset_name", "chain", "--prediction_loss_only"], "evaluation is of generated answers"),
    "no steps": (["--dataset_name", "chain", "--max_steps", "0"], "--max_steps 0 would train nothing"),
    "no batches": (["--dataset_name", "chain", "--gradient_accumulation_steps", "0"], "must be at least 1, got 0"),
    "weight": (["--dataset_name", "chain", "--config_overrides", "loss_gamma=-1"], "loss_gamma must be a number of"),
    "half a batch": (
        ["--dataset_name", "chain", "--dataloader_drop_last", "--per_device_train_batch_size", "9"],
        "8 training rows do not fill a batch of 9",
    ),
    "tied head": (
        ["--dataset_name", "chain", "--use_peft", "--lora_modules_to_save", "lm_head"],
        "--lora_modules_to_save lm_head: it shares its matrix",
    ),
    "tied head as a target": (
        ["--dataset_name", "chain", "--use_peft", "--lora_target_modules", "c_attn-lm_head"],
        "--lora_target_modules lm_head: it shares its matrix",
    ),
    "other token ids": (
        ["--dataset_name", "chain", "--model_name_or_path", CHAIN, "--config_name=", "--tokenizer_name", "bytes"],
        "was trained with other token ids (0 is '<unk>', and here '<eos>')",
    ),
    "other token ids under a recipe's configuration": (
        ["--dataset_name", "chain", "--model_name_or_path", CHAIN, "--tokenizer_name", "bytes"],
        "was trained with other token ids (0 is '<unk>', and here '<eos>')",
    ),
    "unknown prompt": (
        [
            "--dataset_name",
            "chain",
            "--model_name_or_path",
            CHAIN,
            "--config_name=",
            "--tokenizer_name=",
            "--answer_prompt",
            "!",
        ],
        "--answer_prompt '!' holds text that the tokenizer does not know",
    ),
    "nothing to resume": (["--dataset_name", "chain", "--resume_from_checkpoint", "true"], "no checkpoint in"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, monkeypatch, capsys, tmp_path):
    """One line that says what and where; nothing is written."""
    argv, message = BAD[name]
    output = tmp_path / "out"
    is_small = "chain" not in argv or "--task_args" in argv
    small = [] if is_small else ["--task_args", "train=8,validation=2,test=2"]
    said = fails(monkeypatch, capsys, [*TINY, *QUICK, *small, "--do_train", *argv, "--output_dir", str(output)])
    assert message in said
    assert not output.exists()


ROWS = {
    "missing column": ([{"question": "1?", "answer": "1"}], "row 0: no column 'steps'"),
    "wrong type": ([{"question": 3, "steps": [], "answer": "1"}], "row 0: 'question' must be text"),
    "wrong steps": ([{"question": "1?", "steps": "1", "answer": "1"}], "row 0: 'steps' must be a list"),
    "empty question": ([{"question": " ", "steps": [], "answer": "1"}], "row 0: the question is empty"),
    "empty split": ([], "no rows"),
}


@pytest.mark.parametrize("name", ROWS)
def test_bad_rows(name, monkeypatch, capsys, tmp_path):
    rows, message = ROWS[name]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    said = fails(
        monkeypatch,
        capsys,
        [*TINY, *QUICK, "--do_train", "--train_file", str(path), "--output_dir", str(tmp_path / "out")],
    )
    assert message in said and "rows.json" in said
    assert not (tmp_path / "out").exists()


def test_unknown_backbone(monkeypatch, capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    argv = ["--config_name", str(tmp_path), "--tokenizer_name", "bytes", "--dataset_name", "chain", "--do_train"]
    assert "unknown backbone 'bloom'; there are: gpt2, llama" in fails(monkeypatch, capsys, argv)


def test_an_existing_model_is_not_overwritten(monkeypatch, capsys, trained):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    argv = [*TINY, *QUICK, "--dataset_name", "chain", "--do_train", "--output_dir", str(trained)]
    assert "already holds a model" in fails(monkeypatch, capsys, argv)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


MISSING = ["--train_file", "nowhere.json", "--do_train", "--config_name", TINY[1]]


def test_a_traceback_with_debug_alone(monkeypatch, capsys):
    assert fails(monkeypatch, capsys, MISSING) == "error: nowhere.json: no such file"
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["run_ccot.py", *MISSING, "--debug"])
    with pytest.raises(SystemExit) as stop:
        cli.run(run_ccot.main)
    assert stop.value.code == 1 and "Traceback" in capsys.readouterr().err


@pytest.mark.slow
def test_no_traceback_as_a_user_starts_it():
    command = [sys.executable, "run_ccot.py", *MISSING]
    plain = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert plain.returncode == 1 and "Traceback" not in plain.stderr
    assert plain.stderr.strip().splitlines()[-1] == "error: nowhere.json: no such file"
