"""Doors that could answer without a thought, or ignore what they are asked: each says so, refuses, or does it."""

import pytest
import torch
from batching import batched, questions_of
from conftest import make_any, make_model, question_batch, with_span
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging

OPTIONS = {"num_iterations": 1, "num_latent_tokens": 2, "latent_thought": False, "latent_tolerance": 1e9}


def answers(model, generation_config=None, **options):
    ids, mask = question_batch([7, 4, 9])
    options = {"max_new_tokens": 6, "do_sample": False} | options
    return model.generate(ids, generation_config, attention_mask=mask, **options)


@pytest.fixture
def says(monkeypatch):
    """What is said once, said every time, in a list."""
    said = []
    monkeypatch.setattr(logging.logging.Logger, "warning_once", lambda self, text, *a, **k: said.append(text))
    return said


@pytest.mark.parametrize("name", OPTIONS)
def test_a_configuration_of_generation_asks_as_an_argument_does(name, tmp_path, gpt2):
    """Handed over, as the model's own, and after it was saved; an argument wins."""
    asked = answers(gpt2, **{name: OPTIONS[name]})
    plain = answers(gpt2)
    assert not torch.equal(asked, plain)
    assert torch.equal(answers(gpt2, GenerationConfig(**{name: OPTIONS[name]}, eos_token_id=1, pad_token_id=0)), asked)
    setattr(gpt2.generation_config, name, OPTIONS[name])
    assert torch.equal(answers(gpt2), asked)
    own = {"num_iterations": 3, "num_latent_tokens": 6, "latent_thought": True, "latent_tolerance": 0.0}
    assert torch.equal(answers(gpt2, **{name: own[name]}), plain)
    gpt2.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert getattr(again.generation_config, name) == OPTIONS[name]
    assert torch.equal(answers(again), asked)


@pytest.mark.parametrize("name", ["num_iterations", "num_latent_tokens", "latent_thought"])
def test_the_batch_engine_reads_the_models_own_configuration(name, gpt2):
    setattr(gpt2.generation_config, name, OPTIONS[name])
    questions = questions_of([5, 9])
    asked = [gpt2.generate(torch.tensor([q]), max_new_tokens=6, do_sample=False)[0].tolist() for q in questions]
    assert batched(gpt2, questions) == asked


def test_wrong_values_in_a_configuration_are_refused(gpt2):
    with pytest.raises(ValueError, match="num_iterations must be a whole number"):
        answers(gpt2, GenerationConfig(num_iterations="3"))
    with pytest.raises(ValueError, match="latent_thought must be true or false"):
        answers(gpt2, GenerationConfig(latent_thought="no"))
    with pytest.raises(ValueError, match="num_latent_tokens must be a whole number of at least 1"):
        answers(gpt2, num_latent_tokens=0, latent_embeds=torch.zeros(3, 6, 32))


def test_an_icot_models_options_in_a_configuration():
    model = make_any("icot-gpt2")
    asked = answers(model, explicit_steps=True)
    assert not torch.equal(asked, answers(model))
    assert torch.equal(answers(model, GenerationConfig(explicit_steps=True, eos_token_id=1, pad_token_id=0)), asked)


def test_a_prefill_chunk_of_the_models_own_configuration_is_seen(gpt2):
    gpt2.generation_config.prefill_chunk_size = 5
    with pytest.raises(ValueError, match="prefill_chunk_size=5 would cut"):
        answers(gpt2)


def test_a_training_step_without_a_thought_says_so(says, gpt2):
    ids, mask = question_batch([9, 7])
    gpt2.train()(input_ids=ids, attention_mask=mask, labels=ids)
    assert any("without a thought span trains this model to answer without thinking" in text for text in says)


def test_a_training_step_with_a_thought_is_silent(says, gpt2):
    ids, mask = with_span(gpt2, *question_batch([9, 7]))
    gpt2.train()(input_ids=ids, attention_mask=mask, labels=ids)
    gpt2.eval()(input_ids=ids[:, :5], attention_mask=mask[:, :5], labels=ids[:, :5])
    assert not [text for text in says if "thought" in text]


def test_embeddings_without_ids_say_so(says, gpt2):
    ids, mask = with_span(gpt2, *question_batch([9, 7]))
    gpt2(inputs_embeds=gpt2.get_input_embeddings()(ids), attention_mask=mask)
    assert any("inputs_embeds show no thought span" in text for text in says)


@pytest.mark.parametrize("kind", ["pccot-gpt2", "pccot-llama", "icot-llama"])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_engine_of_its_own_is_refused(kind, engine):
    """As vLLM's and SGLang's backends for any transformers model call the base model: attention of theirs, no `generate()`."""
    config = make_any(kind).config
    base = AutoModel.from_config(config)
    given = {"vllm": {"attention_instances": {0: object()}}, "sglang": {"forward_batch": object()}}[engine]
    with pytest.raises(ValueError, match="an engine that this model does not know"):
        base(input_ids=question_batch([5])[0], use_cache=False, return_dict=False, **given)
    base.config._attn_implementation = engine
    with pytest.raises(ValueError, match=engine):
        base(input_ids=question_batch([5])[0], use_cache=False)


def test_a_cache_of_a_foreign_kind_is_refused():
    with pytest.raises(ValueError, match=r"\(object\)"):
        make_model("llama").base_model(input_ids=question_batch([5])[0], cache=object())


def test_the_batch_engine_needs_the_package(monkeypatch, gpt2):
    """A checkpoint's own code, where the package is not installed."""
    monkeypatch.setitem(__import__("sys").modules, "latent_cot.engines.batching.manager", None)
    monkeypatch.delattr("latent_cot.engines.batching.manager", raising=False)
    with pytest.raises(ImportError, match="needs the package latent-cot"):
        gpt2.generate_batch([[7, 8]], max_new_tokens=2)
