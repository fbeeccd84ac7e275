"""Checkpoints that are damaged, incomplete or another model's: refused in one line that names the tensor or the file."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ask_example, chain_model, make_any
from safetensors.torch import load_file, save_file
from test_example import refusal
from transformers import AutoModel, AutoModelForCausalLM, GPT2LMHeadModel
from transformers.utils import logging

from latent_cot.training.arguments import LoraArguments
from latent_cot.training.checkpoints import read as checkpoint
from latent_cot.training.checkpoints.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, add_adapters
from latent_cot.training.checkpoints.write import write_final_model, write_model_files
from latent_cot.training.errors import InputError

FIRST = "transformer.h.0.attn.c_attn.weight"


@pytest.fixture
def folder(tmp_path, characters) -> Path:
    write_model_files(chain_model(characters), characters, tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, changes: dict, file: str = "model.safetensors") -> None:
    """Replace tensors of a file by name; None takes one away."""
    tensors = load_file(folder / file) | changes
    save_file(
        {k: v.contiguous() for k, v in tensors.items() if v is not None}, folder / file, metadata={"format": "pt"}
    )


def test_what_is_whole_answers(folder, monkeypatch, capsys):
    assert len(ask_example(monkeypatch, capsys, "--model", str(folder), "--max_new_tokens", "2", "1+1=")) == 1


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda w: {FIRST: None}, r"lacks the tensor (transformer\.)?h.0.attn.c_attn.weight"),
        (lambda w: {FIRST: None, "transformer.h.0.x": w}, r"lacks the tensor (transformer\.)?h.0.attn.c_attn.weight"),
        (lambda w: {"transformer.h.2.attn.c_attn.weight": w}, "no place for: transformer.h.2.attn.c_attn.weight"),
        (lambda w: {FIRST: w[:-1]}, rf"{FIRST} has the shape \[31, 96\], and config.json makes it \[32, 96\]"),
        (lambda w: {FIRST: w.long()}, f"{FIRST} is of the type I64"),
    ],
)
def test_tensors_are_checked_whoever_loads(folder, damage, words, monkeypatch, capsys, caplog):
    """`from_pretrained` itself refuses, the base model's too; nothing prints a table."""
    change(folder, damage(load_file(folder / "model.safetensors")[FIRST]))
    for load in (AutoModelForCausalLM.from_pretrained, AutoModel.from_pretrained, checkpoint.load):
        with pytest.raises(ValueError, match=words) as error:
            load(str(folder))
        assert "\n" not in str(error.value)
    assert str(folder) in refusal(monkeypatch, capsys, "--model", str(folder), "1+1=")
    assert "LOAD REPORT" not in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(folder, value, monkeypatch, capsys):
    weight = load_file(folder / "model.safetensors")[FIRST]
    weight[3, 5] = value
    change(folder, {FIRST: weight})
    message = refusal(monkeypatch, capsys, "--model", str(folder), "1+1=")
    assert f"{FIRST} holds numbers that are not finite" in message


def test_large_finite_weights_are_no_error(folder):
    """Their sum overflows, they do not."""
    model, _ = checkpoint.load(str(folder))
    checkpoint.check_finite(torch.nn.ParameterDict({"a": torch.full((4,), 3e38)}), "here")
    checkpoint.check_finite(model, "here")


@pytest.mark.parametrize(
    ("file", "cut"),
    [(file, cut) for file in ("model.safetensors", "tokenizer.json", "config.json") for cut in (0, 3, 200, -2)],
)
def test_files_that_are_cut_off(folder, file, cut, monkeypatch, capsys):
    path = folder / file
    path.write_bytes(path.read_bytes()[:cut])
    assert file in refusal(monkeypatch, capsys, "--model", str(folder), "1+1=")


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"model_type": "pccot-gpt2", "n_embd": "wide"}'])
def test_configurations_that_are_none(folder, text, monkeypatch, capsys):
    (folder / "config.json").write_text(text)
    assert str(folder) in refusal(monkeypatch, capsys, "--model", str(folder), "1+1=")


def test_a_size_of_another_model_takes_no_memory(folder):
    """Refused from the files' headers: 16 GB of embedding are never made."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 2**24, "n_embd": 2**10}))
    with pytest.raises(ValueError, match=r"has the shape \[.*\], and config.json makes it"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_backbone_may_lack_what_is_new(tmp_path, characters):
    """The projection; a checkpoint of ours may not."""
    ours = chain_model(characters, use_projection=True)
    fields = {k: v for k, v in ours.config.to_dict().items() if k not in ("model_type", "architectures")}
    stock = GPT2LMHeadModel.config_class.from_dict(fields)
    GPT2LMHeadModel(stock).save_pretrained(tmp_path / "stock")
    assert checkpoint.load_weights(str(tmp_path / "stock"), ours.config).base_model.prj is not None
    ours.save_pretrained(tmp_path / "ours")
    change(tmp_path / "ours", {"transformer.prj.0.weight": None})
    with pytest.raises(ValueError, match=r"lacks the tensor transformer.prj.0.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    change(tmp_path / "stock", {"transformer.ln_f.weight": None})
    with pytest.raises(ValueError, match=r"lacks the tensor transformer.ln_f.weight"):
        checkpoint.load_weights(str(tmp_path / "stock"), ours.config)


def test_a_stock_model_is_checked_by_our_loaders(tmp_path, characters):
    fields = {
        k: v for k, v in chain_model(characters).config.to_dict().items() if k not in ("model_type", "architectures")
    }
    model = GPT2LMHeadModel(GPT2LMHeadModel.config_class.from_dict(fields))
    write_model_files(model, characters, tmp_path / "stock")
    checkpoint.load(str(tmp_path / "stock"))
    whole = load_file(tmp_path / "stock" / "model.safetensors")
    for damage, words in (
        ({FIRST: None}, f"lacks the tensor {FIRST}"),
        ({FIRST: whole[FIRST].long()}, f"{FIRST} is of the type I64"),
    ):
        change(tmp_path / "stock", whole | damage)
        with pytest.raises(InputError, match=words):
            checkpoint.load(str(tmp_path / "stock"))


@pytest.fixture
def adapter(tmp_path, characters) -> Path:
    model = chain_model(characters)
    adapted = add_adapters(model, LoraArguments(use_peft=True, lora_r=2), fast=False)
    write_final_model(adapted, characters, tmp_path, LoraArguments(use_peft=True, save_merged=False))
    return tmp_path / "adapter"


def test_adapters_are_checked(adapter, monkeypatch, capsys):
    assert len(ask_example(monkeypatch, capsys, "--model", str(adapter), "--max_new_tokens", "2", "1+1=")) == 1
    AutoModelForCausalLM.from_pretrained(adapter)
    whole = load_file(adapter / ADAPTER_WEIGHTS)
    name = next(key for key in whole if "lora_A" in key)
    elsewhere = {key: None for key in whole} | {f"other.{key}": value for key, value in whole.items()}
    for damage, words, direct in (
        (elsewhere, "the adapter lacks the tensor", True),
        ({name: None}, f"the adapter lacks the tensor {name}", True),
        ({f"{name}.more": whole[name]}, f"{name}.more fits nowhere", True),
        ({name: whole[name][:, :-1]}, f"{name} has the shape", False),
        ({name: whole[name].long()}, f"{name} is of the type I64", True),
        ({name: whole[name] * float("nan")}, "not finite", False),
    ):
        save_file(whole, adapter / ADAPTER_WEIGHTS)
        change(adapter, damage, ADAPTER_WEIGHTS)
        assert words in refusal(monkeypatch, capsys, "--model", str(adapter), "1+1=")
        if direct:
            with pytest.raises(ValueError, match=r"adapter_model|adapter:"):
                AutoModelForCausalLM.from_pretrained(adapter)
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        before = (adapter / file).read_bytes()
        (adapter / file).write_bytes(before[:50])
        assert file in refusal(monkeypatch, capsys, "--model", str(adapter), "1+1=")
        (adapter / file).write_bytes(before)


@pytest.mark.parametrize("kind", ["icot-gpt2", "icot-llama", "pccot-qwen3"])
def test_every_family_is_checked(kind, tmp_path):
    make_any(kind).save_pretrained(tmp_path)
    name = next(key for key in load_file(tmp_path / "model.safetensors") if ".0." in key)
    change(tmp_path, {name: None})
    for load in (AutoModel, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="lacks the tensor"):
            load.from_pretrained(tmp_path)


def test_the_copy_beside_a_checkpoint(exported, tmp_path, monkeypatch, capsys):
    """`example.py` where this repository is not, with transformers alone: it answers, and refuses what is damaged."""
    shutil.copytree(exported, tmp_path / "alone")
    monkeypatch.setitem(sys.modules, "latent_cot.training.checkpoints.read", None)
    monkeypatch.setattr(sys, "argv", ["example.py", "--trust_remote_code", "7+3*4-2+9=", "1+1*2-3+4="])
    verbosity = logging.get_verbosity()
    runpy.run_path(str(tmp_path / "alone" / "example.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == ["7+3*4-2+9=  ->  7", "1+1*2-3+4=  ->  5"]
    weight = load_file(tmp_path / "alone" / "model.safetensors")[FIRST]
    weight[0, 0] = float("nan")
    change(tmp_path / "alone", {FIRST: weight})
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(tmp_path / "alone" / "example.py"), run_name="__main__")
    logging.set_verbosity(verbosity)
    assert f"{FIRST} is not finite" in stop.value.code and "\n" not in stop.value.code
