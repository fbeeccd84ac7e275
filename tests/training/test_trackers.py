"""Trackers (`--report_to`): what transformers' callbacks get from a run of ours, without a network and without a tracker."""

import sys
import types
from importlib.util import find_spec

import pytest
from conftest import SHIPPED
from transformers.integrations import integration_utils

import run_ccot

RUN = ["--model_name_or_path", str(SHIPPED), "--dataset_name", "chain", "--do_train", "--do_eval", "--use_cpu"]
RUN += ["--task_args", "operations=4,train=16,validation=4,test=4", "--max_steps", "2", "--logging_steps", "1"]
RUN += ["--per_device_train_batch_size", "8", "--save_strategy", "no", "--max_new_tokens", "3", "--max_cot_tokens", "4"]


def fake_trackio() -> types.ModuleType:
    """What transformers' callback calls; `logged` and `config` are what it was given."""
    module = types.ModuleType("trackio")
    module.__version__, module.logged, module.runs, module.config = "0.43.0", [], [], Config()
    module.init = lambda **options: module.runs.append(options)
    module.log = lambda metrics, *args, **kwargs: module.logged.append(metrics)
    module.finish = lambda: None
    module.context_vars = types.SimpleNamespace(current_space_id=types.SimpleNamespace(get=lambda: None))
    return module


class Config(dict):
    def update(self, values, allow_val_change=False):
        super().update(values)


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA"])
def test_a_tracker_gets_losses_accuracy_and_settings(lora, monkeypatch, tmp_path):
    trackio = fake_trackio()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: True)
    more = ["--use_peft", "--lora_r", "2"] if lora else []
    run_ccot.main([*RUN, *more, "--report_to", "trackio", "--run_name", "mine", "--output_dir", str(tmp_path)])
    assert trackio.runs[0]["name"] == "mine"
    logged = {name for metrics in trackio.logged for name in metrics}
    assert {"train/loss", "train/ccot_loss", "train/kd_loss", "eval/ccot_exact_match"} <= logged
    assert trackio.config["num_latent_tokens"] == 3 and trackio.config["max_steps"] == 2
    assert ("peft_config" in trackio.config) == lora
    assert "pccot-gpt2" in (tmp_path / "README.md").read_text() and (tmp_path / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trackio", "tensorboard"])
def test_an_installed_tracker(name, monkeypatch, tmp_path):
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    for variable in ("TRACKIO_DIR", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "tracked"))
    run_ccot.main([*RUN, "--report_to", name, "--output_dir", str(tmp_path / "out")])
    assert any((tmp_path / "tracked").iterdir())
