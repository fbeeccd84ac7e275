"""Thoughts with other value matrices: the same alone and in a batch, equal to weights that are written, and no weight changed."""

import copy
from contextlib import contextmanager

import pytest
import torch
from conftest import make_model, question_batch

from latent_cot import value_noise
from latent_cot.jacobi_pccot import jacobi
from latent_cot.latent_noise import seeds_of_samples
from latent_cot.passes_pccot import Passes
from latent_cot.positions import positions_from_mask
from latent_cot.prefix_cache import PrefixCache
from latent_cot.spans_pccot import find_thought_spans
from latent_cot.training.arguments import LoraArguments
from latent_cot.training.checkpoints.lora import add_adapters
from latent_cot.value_noise import value_matrix, value_projections

LENGTHS = [5, 3, 7, 5]
real = value_noise.singular_vectors
STRENGTH = 0.6


def sources(*keys):
    return torch.tensor([[key, row] for row, key in enumerate(keys)])


def answer_logits(model, ids, mask, keys, **options):
    """Of the last prompt token and of one more: `(rows, 2, vocabulary)`, prefilled and decoded by `generate()`."""
    output = model.generate(
        ids,
        attention_mask=mask,
        value_noise=STRENGTH,
        latent_sources=sources(*keys),
        max_new_tokens=2,
        return_dict_in_generate=True,
        output_logits=True,
        suppress_tokens=[model.config.eos_token_id],
        **options,
    )
    return torch.stack(output.logits, dim=1)


@contextmanager
def written(model, seed):
    """The noisy value matrices of one row in the weights themselves."""
    source, before = torch.Generator().manual_seed(seed), []
    with torch.no_grad():
        for projection in value_projections(model.base_model):
            matrix = value_matrix(projection)
            left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
            factors = 1 + STRENGTH * torch.randn(len(sizes), generator=source)
            before.append((matrix, matrix.clone()))
            matrix.copy_(left @ torch.diag(sizes * factors) @ right)
    try:
        yield
    finally:
        with torch.no_grad():
            for matrix, old in before:
                matrix.copy_(old)


@torch.no_grad()
def logits_of_loop(model, ids, mask, keys, iterations):
    """The plain loop over rollouts: the last prompt token's logits, row by row, with weights that are really other ones."""
    rows = []
    for row, seed in enumerate(seeds_of_samples(sources(*keys), len(keys))):
        question = ids[row : row + 1, mask[row].argmax() :]
        opened = model.open_thought(question)
        (span,) = find_thought_spans(opened["input_ids"], model.config, False)
        embeds = model.base_model.get_input_embeddings()(opened["input_ids"])
        seen = opened["attention_mask"]
        passes = Passes(model.base_model, seen, positions_from_mask(seen), PrefixCache())

        def run(inputs, start, passes=passes, span=span, seed=seed):
            if start > span.bot + span.num_latents:  # the answer
                return passes(inputs, start)
            with written(model, seed):
                return passes(inputs, start)

        states = jacobi(run, embeds, span.bot, span.num_latents, iterations, model.base_model.project)
        rows.append(model.lm_head(states[0, -1]))
    return torch.stack(rows)


@pytest.mark.parametrize("iterations", [3, 6])
@pytest.mark.parametrize("backbone", ["gpt2", "llama", "qwen3"])
def test_the_plain_loop_gives_the_same(backbone, iterations):
    model = make_model(backbone, num_iterations=iterations)
    with torch.no_grad():
        for projection in value_projections(model.base_model):  # a bias that noise on the weights must not scale
            if projection.bias is not None:
                projection.bias.uniform_(-1, 1)
    ids, mask = question_batch(LENGTHS)
    keys = [11, 12, 13, 11]
    batched, loop = answer_logits(model, ids, mask, keys)[:, 0], logits_of_loop(model, ids, mask, keys, iterations)
    assert (batched - loop).abs().max() < 1e-4
    clean = model.generate(ids, attention_mask=mask, max_new_tokens=1, return_dict_in_generate=True, output_logits=True)
    assert (batched - clean.logits[0]).abs().max() > 0.01, "the noise must matter"


def test_a_rollout_is_the_same_alone_in_a_batch_and_in_another_order(model):
    ids, mask = question_batch(LENGTHS)
    keys, order = [1, 2, 3, 4], [2, 0, 3, 1]
    together = answer_logits(model, ids, mask, keys)
    turned = answer_logits(model, ids[order], mask[order], [keys[row] for row in order])
    assert (turned - together[order]).abs().max() < 1e-4
    for row, length in enumerate(LENGTHS):
        alone = answer_logits(model, ids[row : row + 1, -length:], None, keys[row : row + 1])
        assert (alone - together[row]).abs().max() < 1e-4
    assert (answer_logits(model, ids, mask, [5, 2, 3, 4])[0] - together[0]).abs().max() > 1e-3


def test_no_weight_is_changed(gpt2):
    """Bytes before and after 100 rollouts, one of which is interrupted in the middle of its thought; and no hook is left."""
    model = copy.deepcopy(gpt2)
    ids, mask = question_batch(LENGTHS)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    plain = model.generate(ids, attention_mask=mask, max_new_tokens=3)

    def interrupt(*_):
        raise KeyboardInterrupt

    for rollout in range(25):
        hook = model.transformer.h[1].attn.register_forward_hook(interrupt) if rollout == 12 else None
        try:
            answer_logits(model, ids, mask, range(4 * rollout, 4 * rollout + 4))
            assert hook is None
        except KeyboardInterrupt:
            hook.remove()
    after = model.state_dict()
    assert all(torch.equal(weight.view(torch.uint8), after[name].view(torch.uint8)) for name, weight in before.items())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=3), plain)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"value_noise": -1.0}, "value_noise must be a number of at least 0"),
        ({"num_beams": 2}, "value_noise need num_beams=1"),
        ({"num_iterations": 0}, "with num_iterations=0 there is none"),
    ],
)
def test_what_is_refused(gpt2, options, said):
    ids, mask = question_batch([5])
    with pytest.raises(ValueError, match=said):
        gpt2.generate(ids, attention_mask=mask, max_new_tokens=2, **({"value_noise": STRENGTH} | options))
    adapted = make_model("gpt2")
    add_adapters(adapted, LoraArguments(use_peft=True, lora_target_modules="c_attn"))
    with pytest.raises(ValueError, match="needs value matrices without adapters"):
        adapted.generate(ids, attention_mask=mask, value_noise=STRENGTH)
    twice = make_model("gpt2").train()
    twice.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(ValueError, match="leave gradient checkpointing out"):
        twice(**twice.open_thought(ids, mask), value_noise=STRENGTH)


def test_a_basis_is_kept_for_as_long_as_its_weights_stay(monkeypatch):
    """Written past autograd's own counter too, and moved to another type."""
    computed = []
    monkeypatch.setattr(value_noise, "singular_vectors", lambda matrix: computed.append(matrix) or real(matrix))
    projection = value_projections(make_model("gpt2").base_model)[0]
    first = value_noise.basis_of(projection)
    assert value_noise.basis_of(projection) is first and len(computed) == 1
    projection.weight.data[0].mul_(3)
    assert not torch.equal(value_noise.basis_of(projection), first) and len(computed) == 2
    assert value_noise.basis_of(projection.double()).dtype == torch.float64


def test_a_basis_of_inference_mode_is_good_for_training():
    model, (ids, mask) = make_model("gpt2"), question_batch([5])
    opened = model.open_thought(ids, mask)
    with torch.inference_mode():
        model(**opened, value_noise=STRENGTH)
    model(**opened, value_noise=STRENGTH).logits.sum().backward()
