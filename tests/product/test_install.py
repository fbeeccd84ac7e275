"""`pip install .`: the models under an import name of their own, away from the repository."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv

import pytest
from conftest import ROOT, SHIPPED

import run_grpo
from latent_cot.engines.gguf import export as export_gguf
from latent_cot.training.errors import InputError

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

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
        export_gguf.main([str(SHIPPED), str(tmp_path / "model.gguf")])


@pytest.mark.slow
def test_an_installed_package_answers(exported, tmp_path):
    """A new environment that knows only the dependencies, an empty folder, a checkpoint as the Hub would hold it."""
    source = tmp_path / "source"  # a build leaves files beside the code
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for room in ("models", "training", "analysis", "engines", "converters", "evals", "tasks"):
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    venv.create(tmp_path / "new", with_pip=True)
    python = tmp_path / "new" / "bin" / "python"
    (site,) = (tmp_path / "new" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", source], check=True)

    empty = tmp_path / "empty"
    empty.mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [python, "-c", ASK, str(exported), str(tmp_path / "again")]
    done = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['7+3*4-2+9=7', '1+1*2-3+4=5']"
    # What it saves carries its code, and loads where nothing is installed.
    alone = "import sys; from transformers import AutoModelForCausalLM as A; A.from_pretrained(sys.argv[1], trust_remote_code=True)"
    command = [sys.executable, "-c", alone, str(tmp_path / "again")]
    subprocess.run(command, cwd=empty, env=env, check=True, capture_output=True)
