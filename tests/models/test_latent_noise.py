"""Sampled thoughts: different ones for each sample of a question, the same for each question in every batch."""

import pytest
import torch
from conftest import CONFIGS, question_batch

from latent_cot.latent_noise import LatentNoise

LENGTHS = [5, 3, 7, 5]


def ask(model, ids, mask, **options):
    """New tokens, and the logits of the first."""
    options = {"latent_noise": 0.5, "latent_seed": 3, "max_new_tokens": 3} | options
    output = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **options)
    return output.sequences[:, ids.shape[1] :], output.logits[0]


KINDS = [{}, {"latent_dropout": 0.3, "latent_noise": 0.0}, {"latent_tolerance": 0.0}]


@pytest.mark.parametrize(("backbone", "options"), zip(CONFIGS, [*KINDS, {}]))  # noqa: B905
def test_a_row_has_the_same_samples_alone_and_in_a_batch(model, options):
    ids, mask = question_batch(LENGTHS)
    _, together = ask(model, ids, mask, num_return_sequences=3, do_sample=True, **options)
    for row, length in enumerate(LENGTHS):
        _, alone = ask(model, ids[row : row + 1, -length:], None, num_return_sequences=3, do_sample=True, **options)
        assert (alone - together[3 * row : 3 * row + 3]).abs().max() < 1e-4
        for one, two in ((0, 1), (0, 2), (1, 2)):
            assert (alone[one] - alone[two]).abs().max() > 1e-3, "samples of a question must differ"


def test_padding_makes_no_other_samples_without_a_mask(gpt2):
    """The mask that `generate()` assumes is the one that samples go by too."""
    ids, mask = question_batch(LENGTHS)
    _, masked = ask(gpt2, ids, mask)
    _, assumed = ask(gpt2, ids.masked_fill(mask == 0, gpt2.config.pad_token_id), None)
    assert (masked - assumed).abs().max() < 1e-5


def test_twins_in_a_batch_have_the_same_samples(gpt2):
    """Two rows with one question are two askings of it, not its first and second sample."""
    ids, mask = question_batch([5])
    _, logits = ask(gpt2, ids.repeat(2, 1), mask.repeat(2, 1))
    assert (logits[0] - logits[1]).abs().max() < 1e-5


def test_what_decides_a_sample(gpt2):
    ids, mask = question_batch([5, 4])
    _, first = ask(gpt2, ids, mask)
    assert torch.equal(first, ask(gpt2, ids, mask)[1])
    assert not torch.allclose(first, ask(gpt2, ids, mask, latent_seed=4)[1])
    _, plain = ask(gpt2, ids, mask, latent_noise=0.0)
    assert torch.equal(plain, gpt2.generate(
        ids, attention_mask=mask, max_new_tokens=3, return_dict_in_generate=True, output_logits=True
    ).logits[0])  # fmt: skip
    _, faint = ask(gpt2, ids, mask, latent_noise=1e-4)
    assert 0 < (faint - plain).abs().max() < (first - plain).abs().max() / 100
    torch.manual_seed(0)
    one = ask(gpt2, ids, mask, latent_seed=None)[1]
    two = ask(gpt2, ids, mask, latent_seed=None)[1]
    torch.manual_seed(0)
    assert not torch.equal(one, two) and torch.equal(one, ask(gpt2, ids, mask, latent_seed=None)[1])


def test_enough_passes_are_the_sequential_thought_under_the_same_noise(model):
    """A draw belongs to a latent and not to a pass, so c passes and more are one computation."""
    ids, mask = question_batch([5, 4])
    latents = model.config.num_latent_tokens
    _, exact = ask(model, ids, mask, num_iterations=latents)
    for options in ({"num_iterations": latents + 3}, {"num_iterations": latents, "latent_tolerance": 0.0}):
        assert (ask(model, ids, mask, **options)[1] - exact).abs().max() < 1e-4


def test_the_size_of_the_noise():
    """Relative to a latent's input: its root mean square is what `latent_noise` times the input's is."""
    inputs = 7 * torch.ones(2, 5, 4096)
    noisy = LatentNoise(0.1, 0.0, [1, 2]).after(lambda states, first: states, 8, inputs)(inputs, 2) - inputs
    assert noisy.square().mean().sqrt() == pytest.approx(0.7, rel=0.02)
    dropped = LatentNoise(0.0, 0.25, [1, 2]).after(lambda states, first: states, 8, inputs)(inputs, 2)
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.02)
    assert dropped.mean() == pytest.approx(7, rel=0.02)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"latent_noise": -1.0}, "latent_noise must be a number of at least 0"),
        ({"latent_noise": float("nan")}, "latent_noise must be a number"),
        ({"latent_dropout": 1.0}, "latent_dropout must be at least 0 and below 1"),
        ({"num_beams": 2}, "need num_beams=1"),
        ({"latent_seed": 1.5}, "latent_seed must be a whole number"),
    ],
)
def test_what_is_refused(gpt2, options, message):
    ids, mask = question_batch([5])
    with pytest.raises(ValueError, match=message):
        ask(gpt2, ids, mask, **options)
