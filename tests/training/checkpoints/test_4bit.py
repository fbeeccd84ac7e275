"""`--load_in_4bit`: only with adapters, handed on to transformers, and saved in the usual format."""

import importlib.util
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import SHIPPED
from safetensors.torch import load_file

import run_ccot
from latent_cot.training.arguments import LoraArguments, ModelArguments
from latent_cot.training.checkpoints import loading
from latent_cot.training.errors import InputError

RUN = ["--dataset_name", "chain", "--task_args", "train=16,validation=2,test=8", "--use_cpu", "--do_train"]
RUN += ["--do_predict", "--max_steps", "2", "--per_device_train_batch_size", "8", "--disable_tqdm", "true"]
RUN += ["--use_peft", "--lora_r", "4"]


def test_without_adapters_or_the_package_it_is_refused(monkeypatch):
    with pytest.raises(InputError, match="pass --use_peft"):
        LoraArguments(load_in_4bit=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--load_in_4bit needs: pip install bitsandbytes"):
        LoraArguments(load_in_4bit=True, use_peft=True)


def test_it_is_handed_on(monkeypatch, tmp_path):
    """From the flag to `from_pretrained`, with a stand-in for the package; random weights have nothing to load."""
    asked, real = [], importlib.util.find_spec

    def stop(*args, **options):
        asked.append(options["quantization_config"])
        raise InputError("stopped here")

    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: SimpleNamespace() if name == "bitsandbytes" else real(name)
    )
    monkeypatch.setattr(loading, "load_weights", stop)
    with pytest.raises(InputError, match="stopped here"):
        run_ccot.main([*RUN, "--model_name_or_path", str(SHIPPED), "--load_in_4bit", "--output_dir", str(tmp_path)])
    (quantization,) = asked
    assert quantization.load_in_4bit and quantization.bnb_4bit_quant_type == "nf4"
    assert quantization.bnb_4bit_compute_dtype == torch.float32 or torch.cuda.is_available()
    with pytest.raises(InputError, match="--load_in_4bit needs a checkpoint"):
        loading.load_model(ModelArguments(config_name="gpt2"), None, None, in_4bit=True)


def test_what_is_saved_needs_no_package(tmp_path):
    """With bitsandbytes itself: an ordinary model, whose frozen weights are those that 4 bits can hold. Adapters that are trained
    beside these, loaded whole, are the same.
    """
    pytest.importorskip("bitsandbytes")
    four, whole, base = (tmp_path / name for name in ("four", "whole", "base"))
    argv = [*RUN, "--model_name_or_path", str(SHIPPED), "--lora_dropout", "0", "--learning_rate", "0.01"]
    run_ccot.main([*argv, "--load_in_4bit", "--output_dir", str(four)])
    assert "quantization_config" not in json.loads((four / "config.json").read_text())
    name, shipped = "transformer.h.0.attn.c_proj.weight", load_file(SHIPPED / "model.safetensors")
    held = load_file(four / "adapter" / "model.safetensors")
    assert held[name].dtype == torch.float32 and held.keys() == shipped.keys()
    assert 0 < (held[name] - shipped[name]).abs().max() < 0.2 * shipped[name].abs().max()
    shutil.copytree(four / "adapter", base, ignore=shutil.ignore_patterns("adapter_*"))
    run_ccot.main([*argv, "--model_name_or_path", str(base), "--output_dir", str(whole)])
    trained, again = (load_file(folder / "model.safetensors") for folder in (four, whole))
    for key, weight in trained.items():
        torch.testing.assert_close(again[key], weight, atol=2e-4, rtol=0)
    assert (trained[name] - held[name]).abs().max() > 1e-3
