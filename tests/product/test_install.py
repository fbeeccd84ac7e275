"""`pip install .`: models, trainers and the command, away from the repository."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable

import pytest
from conftest import ROOT, SHIPPED

import run_grpo
from latent_cot.commands import export
from latent_cot.commands.__main__ import COMMANDS
from latent_cot.training.errors import InputError

FILE = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETUPTOOLS = FILE["project"], FILE["tool"]["setuptools"]

ASK = """
import sys
import latent_cot
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
folder, again = sys.argv[1:]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
assert type(model) is latent_cot.PCCoTGPT2LMHeadModel and type(AutoModel.from_pretrained(folder)) is latent_cot.PCCoTGPT2Model
assert AutoConfig.for_model("icot-mistral").family == "icot"
assert "models" not in sys.modules and "training" not in sys.modules
inputs = tokenizer(["7+3*4-2+9=", "1+1*2-3+4="], padding=True, return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=6), skip_special_tokens=True))
model.save_pretrained(again)
"""


def test_what_is_pinned_is_what_the_package_needs():
    """Each dependency of a user has a tested newest version, and requirements.txt installs this clone."""
    needed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["training"]]
    lines = (ROOT / "constraints" / "newest.txt").read_text().splitlines()
    pinned = {re.split("[=><]", line)[0] for line in lines if not line.startswith("#")}
    assert pinned >= {re.split("[=><]", line)[0] for line in needed}
    assert (ROOT / "requirements.txt").read_text().splitlines()[-1] == "-e .[training]"


def test_training_by_reward_names_what_it_needs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs: pip install '\.\[rl\]'"):
        run_grpo.main([])


def test_gguf_names_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs: pip install '\.\[gguf\]'"):
        export.main(["--model", str(SHIPPED), str(tmp_path / "model.gguf")])


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Callable[..., str]:
    """Runs a command of a new environment that knows the dependencies and the package, as a wheel; what it prints."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"  # a build leaves files beside the code
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for room in sorted({place.partition("/")[0] for place in SETUPTOOLS["package-dir"].values()}):
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    venv.create(folder / "new", with_pip=True)
    programs = folder / "new" / "bin"
    (site,) = (folder / "new" / "lib").glob("python*/site-packages")
    # In a file of paths the editable install of this clone is not followed.
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
    (folder / "empty").mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run(program: str, *words: str) -> str:
        command = [programs / program, *words]
        done = subprocess.run(command, cwd=folder / "empty", env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        return done.stdout

    run("python", "-m", "pip", "install", "--quiet", "--no-deps", str(source))
    return run


@pytest.mark.slow
def test_an_installed_package_answers(installed, exported, tmp_path):
    """A new environment that knows only the dependencies, an empty folder, a checkpoint as the Hub would hold it."""
    printed = installed("python", "-c", ASK, str(exported), str(tmp_path / "again"))
    assert printed.strip() == "['7+3*4-2+9=7', '1+1*2-3+4=5']"
    # What it saves carries its code, and loads where nothing is installed.
    alone = "import sys; from transformers import AutoModelForCausalLM as A; A.from_pretrained(sys.argv[1], trust_remote_code=True)"
    command = [sys.executable, "-c", alone, str(tmp_path / "again")]
    env = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)


TRAIN = """
import sys
from importlib.metadata import entry_points
from pathlib import Path
from datasets import Dataset
from latent_cot import tasks
from latent_cot.training import CoTTrainingArguments, ModelArguments, PCCoTArguments, PCCoTTrainer
config, folder = sys.argv[1:]
assert "site-packages" in tasks.__file__
(harness,) = entry_points(group="lm_eval.models", name="latent-cot")
assert harness.value == "latent_cot.evals.latent_lm:LatentHFLM"
assert (Path(tasks.__file__).parent.parent / "evals" / "own_latent.yaml").is_file()
rows = Dataset.from_list(tasks.generate("chain", "train=64,validation=1,test=1")["train"])
args = CoTTrainingArguments(output_dir="run", use_cpu=True, max_steps=20, save_strategy="no", report_to="none")
model = ModelArguments(config_name=config, tokenizer_name="characters")
trainer = PCCoTTrainer(model, args, train_dataset=rows, method=PCCoTArguments(answer_prompt="#"))
trainer.train()
assert trainer.state.global_step == 20
trainer.save_model(folder)
"""


@pytest.mark.slow
def test_an_installed_package_trains(installed, tmp_path):
    """In an empty folder, on rows of a `datasets.Dataset`; what is saved answers where the package is not."""
    folder = tmp_path / "model"
    help = installed("latent-cot", "--help")
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", help, flags=re.MULTILINE), name
    installed("python", "-c", TRAIN, str(ROOT / "configs" / "pccot_gpt2_tiny.json"), str(folder))
    files = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "modeling_pccot.py", "example.py"} <= files
    question = "1+2*3-4+5="
    asked = installed("latent-cot", "ask", "--model", str(folder), "--max_new_tokens", "3", question)
    assert asked.startswith(f"{question}  ->  ")
    installed("python", "-m", "pip", "uninstall", "--quiet", "--yes", "latent-cot")
    gone = "import importlib.util; print(importlib.util.find_spec('latent_cot'))"
    assert installed("python", "-c", gone).strip() == "None"
    example = ["--trust_remote_code", "--max_new_tokens", "3", question]
    assert installed("python", str(folder / "example.py"), *example) == asked
