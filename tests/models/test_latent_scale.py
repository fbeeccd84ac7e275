"""Latents on the scale of embeddings (`scale_latents`): where the gain starts, and that every door has it."""

import pytest
import torch
from batching import batched, generated, questions_of
from conftest import chain_model, make_model, question_batch, with_span
from reference import think_plainly
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from latent_cot import jacobi_pccot
from latent_cot.latent_gain import embedding_scale
from latent_cot.training.arguments import LoraArguments, ModelArguments
from latent_cot.training.checkpoints.loading import load_config
from latent_cot.training.checkpoints.lora import add_adapters
from latent_cot.training.checkpoints.read import load
from latent_cot.training.checkpoints.write import write_final_model
from latent_cot.training.errors import InputError

slow = pytest.mark.slow  # tests/engines/test_continuous_batching.py asks the engine on every backbone
some_backbones = pytest.mark.parametrize(
    "backbone", ["gpt2", "mistral", *(pytest.param(name, marks=slow) for name in ("llama", "qwen3"))]
)


def scaled(backbone: str = "gpt2", **changes):
    """A model with a gain that is no constant."""
    model = make_model(backbone, scale_latents=True, **changes)
    gain = model.base_model.gain_weight
    with torch.no_grad():
        gain.mul_(1 + 0.3 * torch.randn(gain.shape, generator=torch.Generator().manual_seed(1)))
    return model


def rms(tensor: torch.Tensor) -> float:
    return float(tensor.float().square().mean().sqrt())


@pytest.mark.parametrize("projection", [False, True], ids=["gain", "projection"])
def test_random_weights_start_at_the_size_of_embeddings(backbone, projection):
    model = make_model(backbone, scale_latents=True, use_projection=projection, initializer_range=0.1)
    base = model.base_model
    embeddings = model.get_input_embeddings().weight
    assert base.gain_weight.detach().allclose(torch.full_like(base.gain_weight, rms(embeddings)), rtol=1e-4)
    states = base(question_batch([9])[0], num_iterations=0).last_hidden_state
    assert 0.5 < rms(base.project(states)) / rms(embeddings) < 2
    assert rms(states) / rms(embeddings) > 5  # what they would be without


def test_without_the_field_nothing_is_added(backbone):
    model = make_model(backbone)
    assert not model.config.scale_latents and model.base_model.gain_weight is None
    assert not [name for name in model.state_dict() if "latent_gain" in name]


def test_a_pretrained_backbone_is_measured(tmp_path):
    """The gain of a family made of a stock model is the quotient of its own embeddings and final norm."""
    stock = GPT2LMHeadModel(GPT2LMHeadModel.config_class(n_embd=32, n_layer=2, n_head=4, vocab_size=40))
    with torch.no_grad():
        stock.transformer.wte.weight.mul_(3)
        stock.transformer.ln_f.weight.fill_(2)
        stock.transformer.ln_f.bias.fill_(1)
    stock.save_pretrained(tmp_path)
    config = make_model("gpt2", scale_latents=True, n_positions=1024, initializer_range=0.02).config
    model = AutoModelForCausalLM.from_pretrained(tmp_path, config=config)
    wanted = rms(stock.transformer.wte.weight) / 5**0.5
    assert float(model.transformer.latent_gain.weight.mean().detach()) == pytest.approx(wanted, rel=1e-5)
    assert embedding_scale(stock.transformer.wte, stock.transformer.ln_f) == pytest.approx(wanted, rel=1e-5)


def test_a_trained_projection_keeps_its_size(tmp_path):
    """A flag or an override that would change nothing is refused."""
    chain = make_model("gpt2", use_projection=True)
    chain.save_pretrained(tmp_path)
    for source, settings in (({"config_overrides": "scale_latents=true"}, {}), ({}, {"scale_latents": True})):
        with pytest.raises(
            InputError, match="scale_latents=True: the checkpoint's projection has its size from training"
        ):
            load_config(ModelArguments(model_name_or_path=str(tmp_path), **source), "pccot", settings)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = scaled()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.transformer.latent_gain.weight, model.transformer.latent_gain.weight)
    again.config.scale_latents = False
    again.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"no place for: transformer\.latent_gain\.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "other")


def test_the_window_thinks_what_the_whole_iteration_thinks(backbone):
    model = scaled(backbone)
    ids, mask = with_span(model, *question_batch([7, 4, 6]))
    with torch.no_grad():
        ours = model.base_model(ids, attention_mask=mask).last_hidden_state
        plain = think_plainly(model.base_model, ids, mask)
    assert (ours - plain)[mask.bool()].abs().max() <= 1e-5


@some_backbones
def test_the_batch_engine_answers_alike(backbone):
    model = scaled(backbone)
    questions = questions_of([5, 9, 3])
    assert batched(model, questions) == generated(model, questions)


def test_lora_trains_and_merges_it(characters, tmp_path):
    model = chain_model(characters, scale_latents=True)
    adapted = add_adapters(model, LoraArguments(use_peft=True, lora_r=2, lora_dropout=0.0))
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad and "latent_gain" in name]
    assert len(trained) == 1
    with torch.no_grad():
        dict(adapted.named_parameters())[trained[0]].fill_(0.25)
    write_final_model(adapted, characters, tmp_path, LoraArguments(use_peft=True))
    for folder in (tmp_path, tmp_path / "adapter"):
        merged, _ = load(str(folder))
        assert torch.equal(merged.transformer.latent_gain.weight.detach(), torch.full((32,), 0.25)), folder


# --- the other rule: a latent keeps its embedding, and its own state is added (`latent_update="add"`) ---


def add_in_full(run, embeds, bot, latents, iterations, project):
    """LOTUS' rule with the whole sequence in every pass, nothing kept."""
    first, eot = bot + 1, bot + 1 + latents
    inputs = embeds
    for _ in range(iterations):
        states = run(inputs[:, :eot], 0)
        inputs = torch.cat(
            [embeds[:, :first], embeds[:, first:eot] + project(states[:, first:], 0), embeds[:, eot:]], 1
        )
    return run(inputs, 0)


@pytest.mark.parametrize("iterations", [0, 1, 3, 9])
def test_adding_is_the_recomputation_in_full(backbone, iterations):
    """... at more passes than latents too, with gradients, in double precision."""
    model = scaled(backbone, latent_update="add").double()
    ids, mask = with_span(model, *question_batch([7, 4]))
    grads = []
    for plainly in (False, True):
        model.zero_grad()
        if plainly:
            states = think_plainly(model.base_model, ids, mask, iterations, method=add_in_full)
        else:
            states = model.base_model(ids, attention_mask=mask, num_iterations=iterations).last_hidden_state
        (states * mask[..., None]).square().sum().backward()
        grads.append([states.detach()[mask.bool()]] + [p.grad for p in model.parameters() if p.grad is not None])
    for ours, plain in zip(*grads, strict=True):
        assert (ours - plain).abs().max() <= 1e-9 * max(1, float(plain.abs().max()))


def test_adding_no_pass_is_final(backbone):
    """T beyond c still changes something, so it is not cut to c; rows do not depend on their neighbours."""
    model = scaled(backbone, latent_update="add")
    ids, mask = with_span(model, *question_batch([7, 4]))
    with torch.no_grad():
        at = [model.base_model(ids, attention_mask=mask, num_iterations=t).last_hidden_state for t in (6, 7)]
        alone = model.base_model(ids[1:, 3:], num_iterations=7).last_hidden_state
    assert (at[0] - at[1])[:, -1].abs().max() > 1e-4
    assert (at[1][1:, 3:] - alone).abs().max() <= 1e-5
    assert model.config.latent_rule.passes(9, 6) == 9 and not model.config.was_trained_at(7)


@some_backbones
def test_adding_in_every_door(backbone):
    model = scaled(backbone, latent_update="add", num_iterations=8)
    questions = questions_of([5, 9, 3])
    assert batched(model, questions) == generated(model, questions)
    ids, mask = question_batch([7, 4])
    traced = model.trace_thought(ids, mask).inputs[-1]
    given = model.generate(ids, attention_mask=mask, latent_embeds=traced, max_new_tokens=4, do_sample=False)
    assert torch.equal(given, model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False))
    with pytest.raises(ValueError, match="latent_tolerance needs latents that settle"):
        model.generate(ids, attention_mask=mask, latent_tolerance=0.1)


def test_the_plain_twin_is_the_papers_own():
    assert jacobi_pccot.jacobi is make_model("gpt2").config.latent_rule.plain
