"""Masks: left padding and frozen prefixes under sdpa, eager attention and flash attention 2."""

import pytest
import torch
from gpu_cases import (
    flash,  # noqa: F401  a fixture
    losses_and_gradients,
    make_model,
    on_every_device,
    on_every_shape,
    questions,
    thought_states,
)
from torch.nn import functional as F
from transformers import StaticCache

from latent_cot.passes_pccot import static_forward


def formed(model, device: str):
    """In the number format that a comparison with flash attention needs: a GPU's kernels know half precision alone, and of
    float32 queries transformers asks for a Linear layer, which GPT-2 has not."""
    if "flash" not in model.config._attn_implementation:
        return model
    return model.to(torch.float64 if device == "cpu" else torch.bfloat16)


@pytest.fixture(params=["sdpa", "eager", "flash"])
def attention(request, device) -> str:
    return request.getfixturevalue("flash") if request.param == "flash" else request.param


@on_every_device
@on_every_shape
@pytest.mark.parametrize("iterations", [0, 3])
def test_rows_are_independent(shape, device, attention, iterations):
    """The hidden states of a question and its thought are the same alone and in a left-padded batch."""
    model = formed(make_model(shape, device, attention=attention), device).eval()
    ids, mask = questions(model, [9, 4, 6, 1])
    together = thought_states(model, ids, mask, iterations)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = thought_states(model, ids[row : row + 1, -length:], mask[row : row + 1, -length:], iterations)
        near = dict.fromkeys(("atol", "rtol"), 0.1 if model.dtype == torch.bfloat16 else 1e-4)
        torch.testing.assert_close(together[row : row + 1, 9 - length :], alone, **near)


@on_every_device
@on_every_shape
@pytest.mark.parametrize(("iterations", "checkpointed"), [(0, False), (3, True), (6, False)])
def test_kernels_train_alike(shape, device, flash, iterations, checkpointed):  # noqa: F811
    """Losses and gradients of a padded batch, whose passes start from frozen prefixes."""
    results = {}
    for name in ("eager", "sdpa", flash):
        model = formed(make_model(shape, device, attention=name), device)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        results[name] = losses_and_gradients(model, iterations=iterations)
    wanted_losses, wanted = results.pop("eager")
    for losses, grads in results.values():
        torch.testing.assert_close(losses, wanted_losses, rtol=1e-4 if device == "cpu" else 0.05, atol=0)
        whole, other = (torch.cat([grad.flatten() for grad in of.values()]) for of in (grads, wanted))
        assert grads.keys() == wanted.keys()
        assert (whole - other).norm() < (1e-4 if device == "cpu" else 0.1) * other.norm()


@on_every_device
@on_every_shape
@pytest.mark.parametrize("iterations", [2])
def test_answers_under_flash_attention(shape, device, flash, iterations):  # noqa: F811
    """Padded and unpadded questions, with an ordinary cache: the tokens that sdpa gives."""
    answers = []
    for name in ("sdpa", flash):
        model = formed(make_model(shape, device, attention=name), device).eval()
        for lengths in ([7, 3], [5, 5], [4]):
            ids, mask = questions(model, lengths)
            options = {"max_new_tokens": 5, "do_sample": False, "num_iterations": iterations}
            answers.append(model.generate(ids, attention_mask=mask, **options).tolist())
    if device == "cpu":  # in half precision a near tie may fall to either side
        assert answers[:3] == answers[3:]
    assert [torch.tensor(rows).shape for rows in answers[:3]] == [torch.tensor(rows).shape for rows in answers[3:]]


@on_every_device
@on_every_shape
@pytest.mark.parametrize("lengths", [[7, 3], [5, 5]], ids=["padded", "equal"])
def test_a_static_cache_under_flash_attention(shape, device, flash, lengths):  # noqa: F811
    """Its free columns hold nothing, and the pass that would be compiled lengthens the mask by them."""
    states = []
    for name in ("sdpa", flash):
        model = formed(make_model(shape, device, attention=name), device).eval()
        ids, mask = questions(model, lengths)
        span = torch.tensor(model.thought_ids(), device=ids.device).expand(len(ids), -1)
        ids, mask = torch.cat([ids, span], dim=1), F.pad(mask, (0, span.shape[1]), value=1)
        cache = StaticCache(config=model.config, max_cache_len=40)
        with torch.no_grad():
            output = model.base_model(
                ids, attention_mask=mask, past_key_values=cache, num_iterations=3, compiled_forward=static_forward
            )
        states.append(output.last_hidden_state[mask.bool()].double())
    near = dict.fromkeys(("atol", "rtol"), 0.1 if device == "cuda" else 1e-4)
    torch.testing.assert_close(states[1], states[0], **near)
