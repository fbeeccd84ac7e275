"""A checkpoint in a process that cannot import this repository: every family and backbone, and what is not trusted."""

import copy
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import chain_model, make_any, make_model
from transformers import AutoModel, AutoModelForCausalLM

import latent_cot
from latent_cot.converters.export import export
from latent_cot.training.checkpoints.loading import registered_types
from latent_cot.training.checkpoints.write import write_model_files

QUESTIONS = [[0, 0, 9, 10, 11], [12, 13, 14, 15, 16]]
MASK = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]

ASK = """
import json, sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
questions, mask, folders = map(json.loads, sys.argv[1:4])
trusted, found = {"trust_remote_code": True}, []
for folder, resaved in folders:
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
    found.append([type(model).__name__, config.model_type, answer.tolist(), states[1].tolist(), tokenizer("1+2").input_ids])
assert not any(name.split(".")[0] in ("models", "training") for name in sys.modules)
print(json.dumps(found))
"""


def fresh_process(tmp_path, script: str, *arguments: str, cwd=None) -> subprocess.CompletedProcess:
    """Run a script where nothing of this repository can be imported and no cache holds it."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    cwd = cwd or tmp_path
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )  # fmt: skip


@pytest.mark.slow  # tests/training/checkpoints/test_hub.py loads one by name in a fresh process
def test_every_model_type(characters, tmp_path):
    """Config, base model, language model and tokenizer load and answer as before saving; a second time from what the
    remote code saved again. Each from a folder of its own."""
    kinds, times = registered_types(), 2
    inputs, wanted = {"input_ids": torch.tensor(QUESTIONS), "attention_mask": torch.tensor(MASK)}, []
    for kind in kinds:
        model = make_any(kind)
        model.save_pretrained(tmp_path / "0" / kind)
        characters.save_pretrained(tmp_path / "0" / kind)
        answer = model.generate(**inputs, max_new_tokens=6, do_sample=False).tolist()
        with torch.no_grad():
            wanted.append((type(model).__name__, answer, model.base_model(**inputs).last_hidden_state[1]))
    for time in range(times):
        here, there = tmp_path / str(time), tmp_path / str(time + 1)
        folders = [(str(here / kind), str(there / kind)) for kind in kinds]
        done = fresh_process(tmp_path, ASK, *map(json.dumps, (QUESTIONS, MASK, folders)))
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        for kind, (name, answer, states), theirs in zip(kinds, wanted, found, strict=True):
            their_name, model_type, their_answer, their_states, ids = theirs
            assert (their_name, model_type) == (name, kind)
            assert their_answer == answer
            assert torch.allclose(torch.tensor(their_states), states, atol=1e-5)
            assert ids == characters("1+2").input_ids
        shutil.rmtree(here)  # the next one must not lean on it
    for kind in kinds:
        names = {path.name for path in (tmp_path / str(times) / kind).glob("*.py")}
        assert names >= {f"modeling_{kind.split('-')[0]}.py", "prompt_suffix.py"}


@pytest.mark.slow  # tests/training/checkpoints/test_hub.py::test_transformers_refuses_as_ever has the refusal
def test_without_trust_it_is_refused(tmp_path):
    """transformers' own refusal, and no code runs."""
    make_model("gpt2").save_pretrained(tmp_path / "model")
    source, ran = tmp_path / "model" / "configuration_pccot.py", tmp_path / "ran"
    source.write_text(f"open({str(ran)!r}, 'w')\n" + source.read_text())
    load = """
import json, os, sys
from transformers import AutoConfig, AutoModelForCausalLM
folder, ran = sys.argv[1:]
refusals = []
for trust in ({"trust_remote_code": False}, {}, {"trust_remote_code": True}):
    for cls in (AutoConfig, AutoModelForCausalLM):
        try:
            cls.from_pretrained(folder, **trust)
        except ValueError as error:
            refusals.append(str(error))
            assert not os.path.exists(ran), trust
print("\\n" + json.dumps(refusals))  # after transformers' question
"""
    done = fresh_process(tmp_path, load, str(tmp_path / "model"), str(ran))
    assert done.returncode == 0, done.stderr
    refusals = json.loads(done.stdout.splitlines()[-1])
    assert len(refusals) == 4 and all("trust_remote_code=True" in refusal for refusal in refusals)
    assert ran.exists()  # the trap itself works


def test_scripts_run_no_code_of_a_checkpoint(tmp_path, characters, monkeypatch):
    """Code in a checkpoint's folder is not imported unless --trust_remote_code is given, not even of a known type."""
    import run_ccot

    chain_model(characters, num_latent_tokens=3).save_pretrained(tmp_path / "model")
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
    assert type(loaded) is latent_cot.PCCoTGPT2LMHeadModel and loaded.config.num_latent_tokens == 2
    assert type(AutoModel.from_pretrained(folder)) is latent_cot.PCCoTGPT2Model
    assert not (tmp_path / "ran").exists()
    config["num_latent_tokens"] = "__import__('os')"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match="num_latent_tokens"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_checkpoint_names_no_code_of_others(characters, tmp_path):
    """What a base's tokenizer and configuration say of code elsewhere is not handed on; our own code is."""
    tokenizer, model = copy.deepcopy(characters), make_model("gpt2", vocab_size=len(characters))
    tokenizer.init_kwargs["auto_map"] = {"AutoTokenizer": ["someone/evil--evil.Slow", None]}
    model.config.auto_map = {"AutoModelForSequenceClassification": "someone/evil--evil.Evil", "AutoModel": "gone.Evil"}
    model.config.custom_pipelines = {"text-generation": {"impl": "evil.Evil", "pt": ["AutoModelForCausalLM"]}}
    write_model_files(model, tokenizer, tmp_path / "model")
    fields = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "auto_map" not in fields and fields["split_special_tokens"] is True
    assert config["auto_map"] == {
        "AutoConfig": "configuration_pccot.PCCoTGPT2Config",
        "AutoModel": "modeling_pccot.PCCoTGPT2Model",
        "AutoModelForCausalLM": "modeling_pccot.PCCoTGPT2LMHeadModel",
    }
    assert "custom_pipelines" not in config
    (tmp_path / "model" / "tokenizer_config.json").write_text(
        json.dumps(fields | {"auto_map": {"AutoTokenizer": ["someone/evil--evil.Slow", None]}})
    )
    export(str(tmp_path / "model"), tmp_path / "exported")
    for path in (tmp_path / "exported").glob("*.json"):
        assert "evil" not in path.read_text(), path.name
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "exported")) is latent_cot.PCCoTGPT2LMHeadModel
