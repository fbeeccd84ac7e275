"""A checkpoint in a process that cannot import this repository: every family and backbone, and what is not trusted."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import CONFIGS, make_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import models

ICOT = {"start_token_id": 36, "pause_token_id": 37, "ready_token_id": 38, "answer_prompt_ids": [5]}
ICOT |= {"filler_mode": "prefilled", "num_fillers": 3, "num_internalized_tokens": -1}
KINDS = [f"pccot-{name}" for name in CONFIGS] + ["icot-gpt2", "icot-llama", "icot-mistral"]
QUESTIONS = [[0, 0, 9, 10, 11], [12, 13, 14, 15, 16]]
MASK = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]

ASK = """
import json, sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
folder, questions, mask, resaved = sys.argv[1], *map(json.loads, sys.argv[2:4]), sys.argv[4]
trusted = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trusted)
base = AutoModel.from_pretrained(folder, **trusted).eval()
model = AutoModelForCausalLM.from_pretrained(folder, **trusted).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, **trusted)
for loaded in (config, base, model):
    assert type(loaded).__module__.startswith("transformers_modules."), type(loaded)
inputs = {"input_ids": torch.tensor(questions), "attention_mask": torch.tensor(mask)}
with torch.no_grad():
    states = base(**inputs).last_hidden_state
answer = model.generate(**inputs, max_new_tokens=6, do_sample=False)
model.save_pretrained(resaved)
tokenizer.save_pretrained(resaved)
assert not any(name.split(".")[0] in ("models", "training") for name in sys.modules)
print(json.dumps([type(model).__name__, config.model_type, answer.tolist(), states[1].tolist(), tokenizer("1+2").input_ids]))
"""


def make(kind: str):
    """A small random model of any kind."""
    family, _, backbone = kind.partition("-")
    if family == "pccot":
        return make_model(backbone)
    fields = {name: value for name, value in CONFIGS[backbone]().to_dict().items() if name != "model_type"}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(fields | ICOT))).eval()


def fresh_process(tmp_path, script: str, *arguments: str, cwd=None) -> subprocess.CompletedProcess:
    """Run a script where nothing of this repository can be imported and no cache holds it."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    cwd = cwd or tmp_path
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_type(kind, characters, tmp_path):
    """Config, base model, language model and tokenizer load and answer as before saving; a second time from what the
    remote code saved again."""
    model = make(kind)
    inputs = {"input_ids": torch.tensor(QUESTIONS), "attention_mask": torch.tensor(MASK)}
    answer = model.generate(**inputs, max_new_tokens=6, do_sample=False).tolist()
    with torch.no_grad():
        states = model.base_model(**inputs).last_hidden_state[1]
    first, again, third = (tmp_path / name for name in ("first", "again", "third"))
    model.save_pretrained(first)
    characters.save_pretrained(first)
    for folder, resaved in ((first, again), (again, third)):
        done = fresh_process(tmp_path, ASK, str(folder), json.dumps(QUESTIONS), json.dumps(MASK), str(resaved))
        assert done.returncode == 0, done.stderr
        name, model_type, their_answer, their_states, ids = json.loads(done.stdout.splitlines()[-1])
        assert (name, model_type) == (type(model).__name__, kind)
        assert their_answer == answer
        assert torch.allclose(torch.tensor(their_states), states, atol=1e-5)
        assert ids == characters("1+2").input_ids
        shutil.rmtree(folder)  # the next one must not lean on it
    assert {path.name for path in third.glob("*.py")} >= {f"modeling_{kind.split('-')[0]}.py", "prompt_suffix.py"}


def test_without_trust_it_is_refused(tmp_path):
    """transformers' own refusal, and no code runs."""
    make_model("gpt2").save_pretrained(tmp_path / "model")
    source = tmp_path / "model" / "configuration_pccot.py"
    source.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + source.read_text())
    load = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM
for cls in (AutoConfig, AutoModelForCausalLM):
    try:
        cls.from_pretrained(sys.argv[1], **({} if len(sys.argv) < 3 else {"trust_remote_code": sys.argv[2] == "True"}))
    except ValueError as error:
        print(error)
"""
    for flag in (["False"], []):
        done = fresh_process(tmp_path, load, str(tmp_path / "model"), *flag)
        assert done.stdout.count("trust_remote_code=True") >= 2, done.stdout + done.stderr
        assert not (tmp_path / "ran").exists()
    done = fresh_process(tmp_path, load, str(tmp_path / "model"), "True")  # the trap itself works
    assert done.returncode == 0 and (tmp_path / "ran").exists(), done.stderr


def test_scripts_run_no_code_of_a_checkpoint(tmp_path, characters, monkeypatch):
    """Code in a checkpoint's folder is not imported unless --trust_remote_code is given, not even of a known type."""
    import run_ccot

    model = make_model("gpt2", vocab_size=len(characters), bos_token_id=None, pad_token_id=characters.pad_token_id)
    model.save_pretrained(tmp_path / "model")
    characters.save_pretrained(tmp_path / "model")
    for source in (tmp_path / "model").glob("*.py"):
        source.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + source.read_text())
    ask = ["--dataset_name", "chain", "--task_args", "train=1,validation=1,test=2", "--do_predict", "--use_cpu"]
    ask += ["--model_name_or_path", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out")]
    run_ccot.main(ask)
    assert not (tmp_path / "ran").exists()


def test_a_configuration_is_data(tmp_path):
    """Paths and code in a config.json change nothing: no file outside is read or run."""
    model = make_model("gpt2")
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "_name_or_path": "../evil.py",
        "auto_map": {"AutoModelForCausalLM": "../evil.Evil", "AutoConfig": "../evil.E"},
    }
    config |= {"answer_prompt": "__import__('os').system('true')", "base_model": "../evil.py", "num_latent_tokens": 2}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded) is models.PCCoTGPT2LMHeadModel and loaded.config.num_latent_tokens == 2
    assert type(AutoModel.from_pretrained(folder)) is models.PCCoTGPT2Model
    assert not (tmp_path / "ran").exists()
    config["num_latent_tokens"] = "__import__('os')"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match="num_latent_tokens"):
        AutoModelForCausalLM.from_pretrained(folder)
