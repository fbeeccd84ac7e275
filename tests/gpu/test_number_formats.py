"""float32 on the device, bf16 by autocast and as the weights' format: losses, gradients, and latents that are fed back."""

import pytest
import torch
from gpu_cases import (
    PARTS,
    SETTING,
    losses_and_gradients,
    make_model,
    on_every_device,
    on_every_shape,
    questions,
    thought_states,
    training_batch,
    twin,
    worst_difference,
)
from torch.nn import functional as F

from latent_cot.chunked_cross_entropy import mean_cross_entropies
from latent_cot.losses_pccot import distillation_loss


@on_every_device
@on_every_shape
@pytest.mark.parametrize("iterations", [3, 6])
def test_float32_is_that_of_the_cpu(shape, device, iterations):
    """Losses and gradients on the device in float32, and on the CPU in float64."""
    model = make_model(shape, device)
    losses, grads = losses_and_gradients(model, iterations=iterations)
    wanted_losses, wanted = losses_and_gradients(twin(model, "cpu", torch.float64), iterations=iterations)
    torch.testing.assert_close(losses, wanted_losses, rtol=1e-5, atol=0)
    assert worst_difference(grads, wanted) < 1e-4


@on_every_device
@on_every_shape
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["autocast", "bf16 weights"])
def test_bf16_is_float32_within_its_rounding(shape, device, weights):
    """A rounding is at most 2^-9 of a number; what layers make of it stays below a few percent."""
    model = make_model(shape, device)
    rounded = twin(twin(model, device, weights), device, torch.float32)  # the same weights in both
    losses, grads = losses_and_gradients(twin(rounded, device, weights), autocast=True)
    wanted_losses, wanted = losses_and_gradients(rounded)
    assert torch.isfinite(losses).all() and not torch.equal(losses, wanted_losses)
    torch.testing.assert_close(losses, wanted_losses, rtol=0.02, atol=0)
    whole, other = (torch.cat([grad.flatten() for grad in of.values()]) for of in (grads, wanted))
    assert (whole - other).norm() < 0.05 * other.norm()


@on_every_device
@on_every_shape
def test_losses_are_float32_in_bf16(shape, device):
    """Under autocast, and with weights in bf16."""
    model = twin(make_model(shape, device), device, torch.bfloat16)
    for autocast in (True, False):
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            output = model(**training_batch(model, SETTING))
        assert {getattr(output, name).dtype for name in (*PARTS, "loss", "teacher_std")} == {torch.float32}


@on_every_device
@pytest.mark.parametrize("layerwise", [False, True])
def test_the_distillation_deviates_in_float32(device, layerwise):
    """States far from zero, as some channels of large models are: the deviation of their roundings is not that in bf16."""
    source = torch.Generator().manual_seed(0)
    teacher = (100 + torch.randn(3, 4, 64, generator=source)).to(device, torch.bfloat16)
    student = teacher + torch.randn(3, 4, 64, generator=source).to(device, torch.bfloat16)
    with torch.autocast(device, torch.bfloat16):
        loss = distillation_loss(student, teacher, layerwise)
    states, others = student.double(), teacher.double()
    scale = others.flatten(1).std(dim=1)[:, None, None] if layerwise else others.std()
    wanted = (F.smooth_l1_loss(states, others, reduction="none") / scale).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)


@on_every_device
def test_the_cross_entropy_is_summed_in_float32(device):
    """As the same logits, which a product in bf16 rounds, give it in float64."""
    source = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(16, 5000, bias=False).to(device)
    states = (8 * torch.randn(32, 16, generator=source)).to(device, torch.bfloat16)
    labels = torch.randint(0, 5000, (32,), generator=source).to(device)
    with torch.autocast(device, torch.bfloat16):
        total, _ = mean_cross_entropies(head, [(1.0, states, labels)])
        logits = head(states)
    assert logits.dtype == torch.bfloat16 and total.dtype == torch.float32
    wanted = F.cross_entropy(logits.double(), labels)
    assert total.item() == pytest.approx(wanted.item(), rel=1e-5)


@on_every_device
@on_every_shape
@pytest.mark.parametrize("autocast", [False, True])
def test_latents_fed_back_in_bf16_over_24_passes(shape, device, autocast):
    """Each pass reads the last one's rounded states: the distance from float32 stays that of one pass, pass after pass."""
    setting = SETTING.but(latents=24, iterations=24)
    model = make_model(shape, device, setting=setting).eval()
    rounded = twin(twin(model, device, torch.bfloat16), device, torch.float32)
    ids, mask = questions(rounded, [9, 5, 7])
    exact = thought_states(rounded, ids, mask, 24)[:, 9:].float()
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        given = thought_states(rounded if autocast else twin(rounded, device, torch.bfloat16), ids, mask, 24)
    distance = ((given[:, 9:].float() - exact).norm(dim=-1) / exact.norm(dim=-1)).mean(dim=0)  # per column of the span
    assert 0 < distance.max() < 0.05, distance
    assert distance[-8:].mean() < 4 * distance[:4].mean() + 0.005, distance
