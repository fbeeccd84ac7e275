"""An update and a loss of one's own, each added by this file alone (CONTRIBUTING.md)."""

import pytest
import torch
from batching import batched, generated, questions_of
from conftest import chain_model, make_model, question_batch
from test_training import make_trainer  # noqa: F401  a fixture
from torch import nn
from transformers import AutoModelForCausalLM

from latent_cot.latent_update import UPDATES, LatentUpdate
from latent_cot.losses_pccot import LOSSES, register_loss
from latent_cot.training.checkpoints.loading import apply_overrides
from latent_cot.training.errors import InputError


class Gate(nn.Module):
    """Mixes what a latent reads with the input that it had."""

    def __init__(self, config):
        super().__init__()
        self.mix = nn.Linear(2 * config.hidden_size, config.hidden_size)

    def forward(self, projected, embeds, last):
        return last + self.mix(torch.cat([projected, last], dim=-1)).sigmoid() * (projected - last)


@pytest.fixture
def gated(monkeypatch):
    monkeypatch.setitem(UPDATES, "gate", LatentUpdate("gate", weights=Gate))


def test_an_update_in_every_door(gated, tmp_path):
    model = make_model("gpt2", latent_update="gate", num_iterations=3)
    questions, (ids, mask) = questions_of([5, 9, 3]), question_batch([7, 4])
    assert batched(model, questions) == generated(model, questions)
    answer = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    wanted = model.generate(ids, **answer)
    assert torch.equal(model.generate(ids, latent_embeds=model.trace_thought(ids, mask).inputs[-1], **answer), wanted)
    with pytest.raises(ValueError, match="latent_update='gate' has none"):
        model.generate(ids, latent_tolerance=0.1, **answer)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.generate(ids, **answer), wanted)
    torch.nn.init.constant_(model.base_model.latent_update.mix.bias, -50)  # a closed gate lets nothing through
    inputs = model.trace_thought(ids, mask).inputs
    assert torch.equal(inputs[0], inputs[-1])


def test_an_update_is_trained(gated, make_trainer, characters):  # noqa: F811
    model = chain_model(characters, num_latent_tokens=3, latent_update="gate", num_iterations=2)
    before = model.base_model.latent_update.mix.weight.detach().clone()
    make_trainer(model=model).train()
    assert not torch.equal(model.base_model.latent_update.mix.weight, before)


def test_a_rule_that_contradicts_itself():
    for wrong in ({}, {"settles": True, "weights": Gate}, {"settles": True, "reads_before": False}):
        with pytest.raises(ValueError, match="one that settles"):
            LatentUpdate("wrong", **wrong)


def test_a_loss_is_weighed_logged_and_a_mean_over_rows(monkeypatch, make_trainer, characters):  # noqa: F811
    monkeypatch.setitem(LOSSES, "small", None)
    register_loss("small")(lambda step: step.latent_states.square().mean(dim=(1, 2)).mean())
    model = chain_model(characters, num_latent_tokens=3)
    assert model.config.loss_small == 0
    apply_overrides(model.config, "loss_small=0.5")
    entries = []
    for batch, accumulated in ((8, 1), (4, 2)):
        trainer = make_trainer(
            model=chain_model(characters, num_latent_tokens=3, loss_small=0.5),
            **{"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated, "logging_steps": 1},
        )
        trainer.train()
        entries.append(trainer.state.log_history[0])
    (whole, parts) = entries
    weighed = sum(whole[name] for name in ("cot_loss", "ccot_loss", "kd_loss")) + 0.5 * whole["small_loss"]
    assert whole["small_loss"] > 0 and float(whole["loss"]) == pytest.approx(weighed, rel=1e-4)
    assert parts["small_loss"] == pytest.approx(whole["small_loss"], rel=1e-4)
    with pytest.raises(ValueError, match="loss_small must be a number of at least 0"):
        chain_model(characters, loss_small=-1)
    monkeypatch.delitem(LOSSES, "small")
    with pytest.raises(InputError, match="no loss 'small' is registered"):
        make_trainer(model=model)
