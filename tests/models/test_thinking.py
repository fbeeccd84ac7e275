"""The iteration against its plain twin, and what must not change an example's thought."""

import pytest
import torch
from conftest import CONFIGS, make_model, question_batch, with_span
from reference import one_after_the_other, think_plainly
from transformers import AutoModel, DynamicCache, StaticCache

from latent_cot.jacobi_pccot import jacobi
from latent_cot.spans_pccot import ThoughtSpan, find_thought_spans


def assert_close(got, wanted, tolerance=1e-5):
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= tolerance


def wide(backbone):
    """Mistral's sliding window is narrow in most tests; here it must hold the whole prompt."""
    return {"sliding_window": 64} if backbone == "mistral" else {}


WINDOWS = [("gpt2", iterations) for iterations in range(9)]
WINDOWS += [
    pytest.param(backbone, iterations, marks=[] if iterations in (0, 1, 3, 6) else pytest.mark.slow)
    for backbone in list(CONFIGS)[1:]
    for iterations in range(9)
]


@pytest.mark.parametrize(("backbone", "iterations"), WINDOWS)
def test_window_is_plain_is_recomputation(backbone, iterations):
    """Outputs and gradients, in double precision, for T = 0 to c + 2 and left-padded rows: the model (the window over its
    cache), `jacobi` over the same cache, and `jacobi` with every pass recomputed."""
    # The RMS norms of the other backbones round to float32 inside, backwards too.
    grad_tolerance = 1e-8 if backbone == "gpt2" else 1e-4
    model = make_model(backbone, num_iterations=iterations, use_projection=iterations % 2 == 0).double()
    ids, mask = with_span(model, *question_batch([3, 7, 5]))
    real = mask.bool()
    results = []
    base = model.base_model
    ways = (
        lambda: base(input_ids=ids, attention_mask=mask).last_hidden_state,
        lambda: jacobi(base.passes(mask), base.get_input_embeddings()(ids), 7, 6, iterations, base.project),
        lambda: think_plainly(base, ids, mask),
    )
    for think in ways:
        model.zero_grad()
        hidden = think()[real]
        hidden.square().sum().backward()
        results.append((hidden, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    *others, (plain, plain_grads) = results
    for ours, our_grads in others:
        assert_close(ours, plain, 1e-10)
        assert our_grads.keys() == plain_grads.keys()
        for name, grad in our_grads.items():
            assert_close(grad, plain_grads[name], grad_tolerance * max(1, plain_grads[name].abs().max().item()))


def test_enough_iterations_are_sequential_thought(model):
    """T >= c gives what filling in one latent after the other gives."""
    ids, mask = with_span(model, *question_batch([4, 6]))
    with torch.no_grad():
        wanted = think_plainly(model.base_model, ids, mask, method=one_after_the_other)[mask.bool()]
        for iterations in (6, 7, 50):
            got = model.base_model(input_ids=ids, attention_mask=mask, num_iterations=iterations).last_hidden_state
            assert_close(got[mask.bool()], wanted)


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 50), marks=pytest.mark.slow)], ids=["3", "50"])
def test_rows_are_independent(backbone, seeds):
    """50 random left-padded batches: each row's logits and answer are those it has alone."""
    model = make_model(backbone)
    for seed in seeds:
        lengths = torch.randint(2, 12, (4,), generator=torch.Generator().manual_seed(seed)).tolist()
        ids, mask = question_batch(lengths, seed)
        full, full_mask = with_span(model, ids, mask, seed=seed)
        with torch.no_grad():
            logits = model(input_ids=full, attention_mask=full_mask).logits
            answers = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
            for row, length in enumerate(lengths):
                start = full.shape[1] - (length + full.shape[1] - ids.shape[1])
                alone = model(input_ids=full[row : row + 1, start:]).logits[0]
                assert_close(logits[row, start:], alone, 1e-4)
                answer = model.generate(ids[row : row + 1, -length:], max_new_tokens=4, do_sample=False)[0, length:]
                new = answers[row, ids.shape[1] :][: len(answer)]
                assert new.tolist() == answer.tolist()


def test_spans_in_different_columns(model):
    """Right padding and unequal continuations: the same logits as each row alone, and a cache to go on with."""
    rows = []
    for length, tail in ((3, 2), (7, 5), (5, 0)):
        ids, mask = question_batch([length], seed=length)
        rows.append(with_span(model, ids, mask, tail)[0][0])
    longest = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in rows])
    mask = torch.stack([torch.arange(longest) < len(row) for row in rows]).long()
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, use_cache=True, output_hidden_states=True)
        for row, alone in enumerate(rows):
            wanted = model(input_ids=alone[None], use_cache=True, output_hidden_states=True)
            assert_close(output.logits[row, : len(alone)], wanted.logits[0])
            for ours, theirs in zip(output.hidden_states, wanted.hidden_states, strict=True):
                assert_close(ours[row, : len(alone)], theirs[0])
        # left padded instead, and continued from the cache
        left = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])
        left_mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long()
        cache = model(input_ids=left, attention_mask=left_mask, use_cache=True).past_key_values
        next_ids = torch.tensor([[8], [9], [10]])
        next_mask = torch.nn.functional.pad(left_mask, (0, 1), value=1)
        got = model(input_ids=next_ids, attention_mask=next_mask, past_key_values=cache).logits[:, -1]
        for row, alone in enumerate(rows):
            wanted = model(input_ids=torch.cat([alone, next_ids[row]])[None]).logits[0, -1]
            assert_close(got[row], wanted)


def test_two_spans_one_after_the_other(backbone):
    """A conversation with two thoughts in one call equals the second turn continued from the cache of the first."""
    model = make_model(backbone, **wide(backbone))
    first, _ = with_span(model, *question_batch([4, 4], seed=3))
    second, _ = with_span(model, *question_batch([5, 5], seed=4))
    with torch.no_grad():
        together = model(input_ids=torch.cat([first, second], dim=1)).logits
        step = model(input_ids=first, use_cache=True)
        after = model(input_ids=second, past_key_values=step.past_key_values).logits
    assert_close(together, torch.cat([step.logits, after], dim=1))


@pytest.mark.parametrize("backbone", CONFIGS)
def test_a_thought_after_any_cache(backbone):
    """A cached prefix of either kind, then a thought span."""
    model = make_model(backbone, **wide(backbone))
    ids, mask = with_span(model, *question_batch([6, 6]))
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=40)):
            model(input_ids=ids[:, :3], past_key_values=cache)
            got = model(input_ids=ids[:, 3:], past_key_values=cache, attention_mask=mask).logits
            assert_close(got, wanted[:, 3:])
            assert int(cache.get_seq_length()) == ids.shape[1]


def test_a_full_sliding_window_is_refused():
    model = make_model("mistral")
    ids, _ = with_span(model, *question_batch([12]))
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), pytest.raises(ValueError, match="sliding window is full"):
        model(input_ids=ids[:, :12], past_key_values=cache)
        model(input_ids=ids[:, 12:], past_key_values=cache)


def test_tolerance_stops_rows_on_their_own(model):
    """Zero changes nothing, a huge one is T = 1, and a row's result does not depend on its neighbours."""
    ids, mask = with_span(model, *question_batch([4, 6, 3]))
    with torch.no_grad():
        run = lambda ids, mask, **options: model(input_ids=ids, attention_mask=mask, **options).logits  # noqa: E731
        assert_close(run(ids, mask, latent_tolerance=0.0), run(ids, mask))
        real = mask.bool()
        assert_close(run(ids, mask, latent_tolerance=1e9)[real], run(ids, mask, num_iterations=1)[real])
        middling = run(ids, mask, latent_tolerance=0.35, num_iterations=6)
        for row, length in enumerate((4, 6, 3)):
            alone = run(ids[row : row + 1, 6 - length :], None, latent_tolerance=0.35, num_iterations=6)[0]
            assert_close(middling[row, 6 - length :], alone)


def test_base_model_thinks(backbone):
    """AutoModel gives the hidden states after thinking."""
    model = make_model(backbone, use_projection=True)
    base = AutoModel.from_config(model.config)
    base.load_state_dict(model.base_model.state_dict())
    ids, mask = with_span(model, *question_batch([4, 6]))
    with torch.no_grad():
        hidden = base.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
        assert_close(model.lm_head(hidden), model(input_ids=ids, attention_mask=mask).logits)
        assert not torch.allclose(hidden, base(input_ids=ids, attention_mask=mask, num_iterations=0).last_hidden_state)


def test_hidden_states_and_attentions(model):
    ids, mask = with_span(model, *question_batch([4, 6]))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    length = ids.shape[1]
    assert [tuple(layer.shape) for layer in output.hidden_states] == [(2, length, 32)] * 3
    assert [tuple(layer.shape) for layer in output.attentions] == [(2, 4, length, length)] * 2
    assert_close(model.lm_head(output.hidden_states[-1]), output.logits)
    sums = output.attentions[0].sum(dim=-1)[:, 0][mask.bool()]
    assert_close(sums, torch.ones_like(sums))


def test_gradient_checkpointing_changes_nothing(model):
    """Gradients of a training step with and without, in double precision."""
    model = model.double().train()
    ids, mask = with_span(model, *question_batch([4, 6]))
    batch = {
        "input_ids": ids, "attention_mask": mask, "labels": ids, "cot_input_ids": ids[:, :14],
        "cot_attention_mask": mask[:, :14], "cot_labels": ids[:, :14], "question_length": 6,
        "kd_indices": torch.tensor([15, 15]), "cot_kd_indices": torch.tensor([9, 11]), "thought_span": ThoughtSpan(6, 6),
    }  # fmt: skip
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**batch).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        assert_close(checkpointed, plain, 1e-6)
    with torch.no_grad():  # answering meanwhile uses the cache as ever
        assert model.generate(ids[:, :6], attention_mask=mask[:, :6], max_new_tokens=2).shape[1] > 6
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant"):
        model(**batch)


def test_step_supervision_reads_the_state_that_becomes_the_latent(model):
    """Latent i's word is read off the position before it, in the last pass of the plain twin."""
    model.config.loss_delta = 1.0
    ids, mask = with_span(model, *question_batch([6, 4]))
    steps = torch.randint(7, 36, (2, 6), generator=torch.Generator().manual_seed(3))
    steps[1, 4:] = -100
    with torch.no_grad():
        output = model(
            input_ids=ids, attention_mask=mask, labels=ids, cot_input_ids=ids[:, :14], cot_labels=ids[:, :14],
            cot_attention_mask=mask[:, :14], question_length=6, kd_indices=torch.tensor([15, 15]),
            cot_kd_indices=torch.tensor([9, 11]), thought_span=ThoughtSpan(6, 6), step_labels=steps,
        )  # fmt: skip
        hidden = think_plainly(model.base_model, ids, mask)[:, 6:12]  # <bot> and the first five latents
        logits = model.lm_head(hidden)
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), steps.flatten(), ignore_index=-100)
    assert_close(output.step_loss, wanted)
    assert_close(output.loss, output.cot_loss + output.ccot_loss + output.kd_loss + output.step_loss)


def test_without_cache_and_without_labels(model):
    ids, mask = with_span(model, *question_batch([4, 6]))
    model.config.use_cache = False
    output = model(input_ids=ids, attention_mask=mask)
    assert output.loss is None and output.past_key_values is None
    assert model(input_ids=ids, attention_mask=mask, labels=ids).loss.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: ids[:, :-3], "cut off"),
        (lambda ids: torch.cat([ids[:1], ids[1:].flip(1)]), "row 0 has 1, row 1 has 0"),
        (
            lambda ids: torch.where((torch.arange(ids.shape[1]) == 12) & (torch.arange(2) == 1)[:, None], 37, ids),
            "latents",
        ),
    ],
)
def test_ragged_spans_are_named(gpt2, change, message):
    ids, _ = with_span(gpt2, *question_batch([6, 6]), tail=0)
    with pytest.raises(ValueError, match=message):
        gpt2(input_ids=change(ids))


def test_find_thought_spans(gpt2):
    ids, _ = with_span(gpt2, *question_batch([6, 6]))
    assert find_thought_spans(ids, gpt2.config) == [ThoughtSpan(6, 6)]
    assert find_thought_spans(ids[:, :6], gpt2.config) == []
    assert find_thought_spans(ids[:, :9], gpt2.config, has_past=True) == []


def test_impossible_settings(gpt2):
    ids, _ = with_span(gpt2, *question_batch([6]))
    with pytest.raises(ValueError, match="num_iterations"):
        gpt2(input_ids=ids, num_iterations=-1)
    for name, value in (("num_latent_tokens", 0), ("num_iterations", -1), ("latents_per_step", 0)):
        with pytest.raises(ValueError, match=name):
            CONFIGS["gpt2"](**{name: value})
