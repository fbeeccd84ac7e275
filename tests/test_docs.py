"""What the documents promise: every command runs, every flag and field is described, code blocks work."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, ROOT, ROPE, SMALL, THOUGHT, question_batch, with_span
from datasets import Dataset, DatasetDict
from reference import think_plainly
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import models
import run_cot
import run_icot
import tasks
from run_ccot import ARGUMENTS
from training.arguments import CoTTrainingArguments
from training.small_tokenizers import byte_tokenizer

README = (ROOT / "README.md").read_text()
TEMPLATES = sorted(ROOT.glob("*.sh.template"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[str]:
    """The commands of a script: continued lines joined, comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]


README_COMMANDS = [command for block in blocks(README, "bash") for command in commands(block)]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> dict[str, str]:
    """Small local folders instead of what the commands name on the Hub, and places for what they write."""
    folder = tmp_path_factory.mktemp("docs")
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder / "gpt2")
    config = GPT2Config(
        n_embd=32, n_head=2, n_layer=1, n_positions=1024, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    small = json.loads((ROOT / "configs" / "pccot_gpt2_small.json").read_text()) | {
        "n_embd": 32, "n_head": 2, "n_layer": 1, "vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    (folder / "pccot_gpt2_small.json").write_text(json.dumps(small))
    splits = tasks.generate("chain", "train=32,validation=4,test=4")
    DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(folder / "gsm8k-aug")
    (folder / "9_by_9_mult").mkdir()
    for name in ("train", "valid", "9_by_9_mult/train", "9_by_9_mult/valid", "9_by_9_mult/test_bigbench"):
        (folder / f"{name}.txt").write_text("How many are 1 and 1?||<<1+1=2>> #### 2\n" * 8)
    return {
        "--model_name_or_path gpt2": f"--model_name_or_path {folder}/gpt2",
        "configs/pccot_gpt2_small.json": f"{folder}/pccot_gpt2_small.json",
        "whynlp/gsm8k-aug": f"{folder}/gsm8k-aug",
        "whynlp/pccot-gpt2": str(FIXTURES / "parity" / "peft_checkpoint" / "checkpoint"),
        "data/": f"{folder}/",
        "outputs/": f"{folder}/outputs/",
        "train_models/": f"{folder}/train_models/",
        "generation_logs/": f"{folder}/generation_logs/",
    }


def run(command: str, stand_ins: dict[str, str]) -> str:
    """Run a command on the stand-ins for a few steps; returns what it printed."""
    for name, local in stand_ins.items():
        command = re.sub(
            rf"(?<![\w/]){re.escape(name)}(?![\w-])" if name.endswith("gpt2") else re.escape(name), local, command
        )
    # bf16 flash attention and the like are for GPUs
    for flag in ("--bf16", "--torch_dtype bfloat16"):
        command = command.replace(flag, "")
    words = shlex.split(command)
    if words[:2] == ["accelerate", "launch"]:
        words = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", *words[2:]]
    elif words[0] == "python":
        words[0] = sys.executable
    elif words[0] == "lm_eval":
        words[0] = str(Path(sys.executable).parent / "lm_eval")
    if any(script in words for script in ("run_ccot.py", "run_cot.py", "run_icot.py")):
        words += ["--use_cpu", "--max_new_tokens", "2", "--max_cot_tokens", "4", "--overwrite_output_dir"]
        words += ["--max_steps", "2", "--save_steps", "2", "--eval_steps", "2", "--per_device_train_batch_size", "4"]
        words += ["--lora_r", "2"] if "run_icot.py" not in words else []
        if "icot.py" in command and "--do_predict" not in words:
            words += ["--partial_removal"]
        if "chain" in command:
            words += ["--task_args", "train=32,validation=4,test=4"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{words}\n{done.stderr[-3000:]}"
    return done.stdout


def test_readme_commands(stand_ins):
    """In their order, since later ones use what earlier ones made."""
    for command in README_COMMANDS:
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        elif "convert_icot" in command:
            pass  # tests/test_icot.py::test_an_original_checkpoint_is_converted
        elif "serve.py" in command:
            pass  # tests/test_serving.py
        elif command.startswith(("cp ", "bash ")):
            assert Path(ROOT / command.split()[1]).exists() or command == "bash run_ccot.sh"
        else:
            run(command, stand_ins)


@pytest.mark.parametrize("kind", ["ccot", "cot", "icot"])
def test_templates(kind, stand_ins):
    """The originals' templates: train, then test what was trained."""
    for stage in ("run", "test"):
        lines = commands((ROOT / f"{stage}_{kind}.sh.template").read_text())
        values = dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))
        (command,) = [line for line in lines if not line.startswith("export ")]
        for _ in range(2):  # some values hold others
            for name, value in values.items():
                command = command.replace(f"${{{name}}}", value.strip('"'))
        run(command, stand_ins)


def test_demo(stand_ins):
    """`make demo`, a few steps of it."""
    folder = Path(stand_ins["outputs/"]) / "demo"
    printed = run("python demo.py --output_dir outputs/demo --max_steps 2 --use_cpu", stand_ins)
    for row in ("explicit chain of thought", "no chain of thought", *(f"latent thought, T = {t}" for t in range(4))):
        assert re.search(rf"^{row} +[01]\.\d\d\d +\d+\.\d$", printed, flags=re.MULTILINE)
    assert printed.count("  ->  ") == 3
    assert (folder / "accuracy_against_T.png").stat().st_size > 5_000


def test_readme_python(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for block in blocks(README, "python"):
        exec(block, {})
    assert "7+3*4-2+9=7" in capsys.readouterr().out


def test_new_backbone_from_the_document():
    """The document's block makes a backbone that agrees with the plain twin."""
    (block,) = blocks((ROOT / "docs" / "adding-a-backbone.md").read_text(), "python")
    assert len([line for line in block.splitlines() if line.strip()]) <= 20
    scope = {"__name__": "models.documented"}
    exec(block, scope)
    config = AutoConfig.for_model("pccot-olmo2", **(SMALL | ROPE | THOUGHT))
    model = AutoModelForCausalLM.from_config(config).eval()
    assert isinstance(model, scope["PCCoTOlmo2ForCausalLM"])
    ids, mask = with_span(model, *question_batch([3, 6]))
    with torch.no_grad():
        got = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
        assert (got - think_plainly(model.base_model, ids, mask)[mask.bool()]).abs().max() < 1e-5
    assert model.generate(ids[:, :6], attention_mask=mask[:, :6], max_new_tokens=3, do_sample=False).shape[1] <= 9


def test_every_flag_and_field_is_described():
    groups = {*ARGUMENTS, *run_cot.ARGUMENTS, *run_icot.ARGUMENTS} - {CoTTrainingArguments}
    for group in groups:
        for field in fields(group):
            assert f"`--{field.name}" in README, field.name
            assert field.metadata["help"]
    for field in fields(models.PCCoTConfigMixin):
        assert f"`{field.name}`" in README, field.name


def test_the_table_of_features_names_tests():
    rows = re.findall(r"^\| (.+) \| (`(?:tests/|make ).+) \|$", README, flags=re.MULTILINE)
    assert len(rows) > 20
    for what, names in rows:
        for name in re.findall(r"`([^`]+)`", names):
            path, _, test = name.partition("::")
            if name.startswith("make "):
                assert f"\n{name.split()[1]}:" in (ROOT / "Makefile").read_text()
            else:
                assert f"def {test}" in (ROOT / path).read_text() or (not test and (ROOT / path).exists()), what


def test_links_and_rooms_exist():
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
    for room in re.findall(r"^(\w+)/", README, flags=re.MULTILINE):
        assert (ROOT / room).is_dir()
