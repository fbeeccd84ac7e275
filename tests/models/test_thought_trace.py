"""Thoughts that are traced and given: what `generate()` reads, pass by pass, and what it does with another thought."""

import pytest
import torch
from conftest import make_model, question_batch, with_span

LENGTHS = [5, 3, 7, 5]


def first_logits(model, ids, mask, **options):
    options = {"max_new_tokens": 2, "do_sample": False} | options
    output = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **options)
    return output.logits[0]


@pytest.mark.parametrize("iterations", [0, 1, 3, 6, 8])
def test_a_traced_thought_is_the_one_that_is_answered_from(model, iterations):
    ids, mask = question_batch(LENGTHS)
    trace = model.trace_thought(ids, mask, num_iterations=iterations)
    assert trace.inputs.shape == trace.sources.shape == (iterations + 1, len(LENGTHS), 6, 32)
    for at in {0, 1, iterations} & set(range(iterations + 1)):  # each of its passes, not the last alone
        thought = first_logits(model, ids, mask, num_iterations=at)
        assert (first_logits(model, ids, mask, latent_embeds=trace.inputs[at]) - thought).abs().max() < 1e-4


def test_another_thought_is_another_answer_in_its_row_alone(model):
    """In whatever cache and padding; the rows beside it do not move."""
    ids, mask = question_batch(LENGTHS)
    latents = model.trace_thought(ids, mask).inputs[-1]
    changed = latents.clone()
    changed[1] = latents[2]
    plain, swapped = (first_logits(model, ids, mask, latent_embeds=given) for given in (latents, changed))
    moved = (plain - swapped).abs().amax(dim=1)
    assert moved[1] > 1e-2 and moved[[0, 2, 3]].max() == 0
    for row, length in enumerate(LENGTHS):
        given = changed[row : row + 1]
        alone = first_logits(model, ids[row : row + 1, -length:], None, latent_embeds=given)
        assert (alone - swapped[row]).abs().max() < 1e-4
    static = first_logits(model, ids, mask, latent_embeds=changed, cache_implementation="static", disable_compile=True)
    assert (static - swapped).abs().max() < 1e-4


def test_samples_and_beams_of_a_row_share_its_thought(gpt2):
    ids, mask = question_batch([5, 4])
    latents = gpt2.trace_thought(ids, mask).inputs[-1].flip(0)
    plain = first_logits(gpt2, ids, mask, latent_embeds=latents)
    several = first_logits(gpt2, ids, mask, latent_embeds=latents, num_return_sequences=2, do_sample=True)
    beams = first_logits(gpt2, ids, mask, latent_embeds=latents, num_beams=2)
    assert (several - plain.repeat_interleave(2, dim=0)).abs().max() < 1e-5
    assert (beams - plain.repeat_interleave(2, dim=0)).abs().max() < 1e-5


def test_spans_in_different_columns(gpt2):
    """As right padding brings them; the embeddings of nothing else are touched."""
    ids, mask = question_batch([3, 5])
    latents = gpt2.trace_thought(ids, mask).inputs[-1]
    opened, _ = with_span(gpt2, ids, mask)
    rows = [opened[0, 2:], opened[1]]
    ragged = torch.stack([torch.nn.functional.pad(row, (0, opened.shape[1] - len(row))) for row in rows])
    real = torch.stack([torch.arange(opened.shape[1]) < len(row) for row in rows]).long()
    got = gpt2(ragged, attention_mask=real, latent_embeds=latents).logits
    thought = gpt2(ragged, attention_mask=real).logits
    after = ragged.eq(gpt2.config.eot_token_id).cumsum(dim=1).bool() & real.bool()
    assert after.any() and (got - thought)[after].abs().max() < 1e-4


def test_a_thought_after_a_cached_prefix(gpt2):
    """The given one is answered from there too."""
    ids, mask = question_batch([5, 5])
    latents = gpt2.trace_thought(ids, mask).inputs[-1].flip(0)
    opened = gpt2.open_thought(ids, mask)["input_ids"]
    wanted = gpt2(opened, latent_embeds=latents).logits[:, -1]
    cache = gpt2(opened[:, :3], use_cache=True).past_key_values
    got = gpt2(opened[:, 3:], past_key_values=cache, latent_embeds=latents).logits[:, -1]
    assert (got - wanted).abs().max() < 1e-4
    assert (gpt2(opened).logits[:, -1] - wanted).abs().max() > 1e-2


def test_a_projection_is_traced_on_both_sides():
    model = make_model("llama", use_projection=True)
    trace = model.trace_thought(*question_batch([5, 4]))
    assert (model.base_model.project(trace.sources[1:]) - trace.inputs[1:]).abs().max() < 1e-6
    assert (trace.sources[1:] - trace.inputs[1:]).abs().max() > 1e-2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"latent_embeds": torch.zeros(2, 32)}, r"must be \(batch, c, hidden\)"),
        ({"latent_embeds": torch.zeros(1, 6, 32)}, r"= \(2, 6, 32\), got \(1, 6, 32\)"),
        ({"latent_embeds": torch.zeros(2, 6, 16)}, r"= \(2, 6, 32\), got \(2, 6, 16\)"),
        ({"latent_embeds": torch.zeros(2, 5, 32), "num_latent_tokens": 6}, r"= \(2, 6, 32\), got \(2, 5, 32\)"),
        ({"latent_embeds": torch.zeros(2, 6, 32), "latent_thought": False}, "leave latent_thought on"),
        ({"latent_embeds": torch.zeros(2, 6, 32), "latent_noise": 0.3}, "latent_noise"),
    ],
)
def test_what_is_refused(gpt2, options, message):
    ids, mask = question_batch([5, 4])
    with pytest.raises(ValueError, match=message):
        first_logits(gpt2, ids, mask, **options)


def test_a_prompt_without_a_thought_span_is_refused(gpt2):
    with pytest.raises(ValueError, match="one thought span per row, and there are 0"):
        gpt2(torch.tensor([[7, 8, 9]]), latent_embeds=torch.zeros(1, 6, 32))
    with pytest.raises(ValueError, match="one thought span per row, and there are 0"):
        gpt2(torch.tensor([[7]]), latent_embeds=torch.zeros(1, 6, 32))
    with pytest.raises(ValueError, match="one thought span per row, and there are 0"):
        gpt2(inputs_embeds=torch.zeros(1, 3, 32), latent_embeds=torch.zeros(1, 6, 32))
    with pytest.raises(ValueError, match="num_iterations"):
        gpt2.trace_thought(torch.tensor([[7, 8, 9]]), num_iterations=-1)


@pytest.mark.parametrize("rule", ["shift", "add"])
def test_sources_are_what_step_supervision_reads(rule):
    """The states before the latents, whichever states the rule makes inputs of: those of a whole pass over these inputs."""
    model = make_model("gpt2", num_iterations=8, latent_update=rule)
    ids, mask = question_batch(LENGTHS)
    trace, (opened, real) = model.trace_thought(ids, mask), with_span(model, ids, mask)
    bot = ids.shape[1]
    for number in (1, 8):
        embeds = model.get_input_embeddings()(opened)
        embeds[:, bot + 1 : bot + 7] = trace.inputs[number - 1]
        positions = (real.cumsum(dim=1) - 1).clamp(min=0)
        states = model.base_model.plain_forward(inputs_embeds=embeds, attention_mask=real, position_ids=positions)[0]
        torch.testing.assert_close(trace.sources[number], states[:, bot : bot + 6], atol=1e-4, rtol=0)
