"""What the tests of this folder share. They need torch, transformers and pytest, and nothing of `tests/conftest.py`.

Each test has a twin on the CPU, which emulates what a CPU can; those marked `gpu` ask the device and skip without one.
"""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, modeling_flash_attention_utils
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import flash_attention_mask
from transformers.utils import is_flash_attn_2_available

from benchmarks.speed.workload import TINY_SHAPES, Setting, build_model, training_batch
from latent_cot.positions import positions_from_mask

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
    ),
]
on_every_device = pytest.mark.parametrize("device", DEVICES)
on_every_shape = pytest.mark.parametrize("shape", ["GPT-2 small", "Llama, 4 layers"], ids=["gpt2", "llama"])
SETTING = Setting(question=9, cot=14, prompt=2, answer=4, latents=6, batch=3, unequal=True)
PARTS = ("cot_loss", "ccot_loss", "kd_loss")


def make_model(shape: str, device: str, lora: bool = False, attention: str | None = None, setting: Setting = SETTING):
    """A tiny model in training; its weights are the same on every device."""
    model = build_model(dict(TINY_SHAPES[shape]), setting, lora)
    if attention is not None:
        model.set_attn_implementation(attention)
    return model.to(device).train()


def twin(model, device: str, dtype: torch.dtype):
    """A copy on another device or in another number format."""
    return copy.deepcopy(model).to(device, dtype)


def losses_and_gradients(model, setting: Setting = SETTING, iterations: int = 3, autocast: bool = False, batch=None):
    """Of one training step: the parts of the loss, and each gradient, all in float64 on the CPU."""
    batch = training_batch(model, setting) if batch is None else batch
    model.zero_grad()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
        output = model(**batch, num_iterations=iterations)
    output.loss.backward()
    losses = torch.stack([getattr(output, name) for name in PARTS]).double().cpu()
    grads = {name: w.grad.double().cpu() for name, w in model.named_parameters() if w.grad is not None}
    return losses, grads


def worst_difference(ours: dict, theirs: dict) -> float:
    """The largest distance of a gradient from its twin, relative to the twin's norm."""
    assert ours.keys() == theirs.keys() and ours
    return max(((ours[name] - theirs[name]).norm() / theirs[name].norm().clamp(min=1e-12)).item() for name in ours)


def questions(model, lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded random questions and their mask, `(batch, longest)`."""
    source, longest = torch.Generator().manual_seed(seed), max(lengths)
    ids = torch.full((len(lengths), longest), model.config.pad_token_id)
    for row, length in enumerate(lengths):
        ids[row, longest - length :] = torch.randint(3, 50, (length,), generator=source)
    return ids.to(model.device), (ids != model.config.pad_token_id).long().to(model.device)


def thought_states(model, ids: torch.Tensor, mask: torch.Tensor, iterations: int) -> torch.Tensor:
    """Last hidden states `(batch, length, hidden)` of questions with their thought span."""
    span = torch.tensor(model.thought_ids(), device=ids.device).expand(len(ids), -1)
    ids, mask = torch.cat([ids, span], dim=1), F.pad(mask, (0, span.shape[1]), value=1)
    with torch.no_grad():
        return model.base_model(
            ids, attention_mask=mask, position_ids=positions_from_mask(mask), num_iterations=iterations
        ).last_hidden_state


# --- flash attention: the package's own on a GPU; elsewhere its two functions as they are documented, in plain torch ---

EMULATED = "emulated_flash"


def plain_flash(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
    """Attention over `(batch, length, heads, size)`, causal so that the last query meets the last key."""
    assert q.shape[1] > 0 and k.shape[1] >= q.shape[1], "flash attention has no rule for more queries than keys"
    q, k, v = (states.transpose(1, 2) for states in (q, k, v))
    k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for states in (k, v))
    keep = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2]) if causal else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep, scale=softmax_scale).transpose(1, 2)


def plain_varlen(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
):
    """The same for sequences that stand one after the other, `(tokens, heads, size)`."""
    rows = [
        plain_flash(q[None, a:b], k[None, c:d], v[None, c:d], dropout_p, softmax_scale, causal)[0]
        for (a, b), (c, d) in zip(
            zip(cu_seqlens_q.tolist()[:-1], cu_seqlens_q.tolist()[1:], strict=True),
            zip(cu_seqlens_k.tolist()[:-1], cu_seqlens_k.tolist()[1:], strict=True),
            strict=True,
        )
    ]
    return torch.cat(rows)


@pytest.fixture
def flash(device, monkeypatch) -> str:
    """The name of an attention implementation: everything of transformers' flash attention, on a CPU without the kernels."""
    if device == "cuda":
        if not is_flash_attn_2_available():
            pytest.skip("needs flash-attn")
        return "flash_attention_2"
    helpers = modeling_flash_attention_utils
    functions = (plain_flash, plain_varlen, None, helpers._pad_input, helpers._unpad_input)
    real = helpers._lazy_imports

    def lazy_imports(implementation, *args, **kwargs):
        if implementation != EMULATED:
            return real(implementation, *args, **kwargs)
        return functions

    monkeypatch.setattr(helpers, "_lazy_imports", lazy_imports)
    monkeypatch.setattr(helpers, "_loaded_implementation", None)
    AttentionInterface.register(EMULATED, flash_attention_forward)
    AttentionMaskInterface.register(EMULATED, flash_attention_mask)
    return EMULATED
