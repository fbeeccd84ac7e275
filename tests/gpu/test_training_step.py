"""What a training step does to the device: waits, copies, memory; and checkpointing, LoRA and liger on it."""

import gc
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec

import pytest
import torch
from gpu_cases import (
    DEVICES,
    SETTING,
    losses_and_gradients,
    make_model,
    on_every_device,
    on_every_shape,
    worst_difference,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from benchmarks.speed.measure import make_gradients, peak_memory
from benchmarks.speed.workload import training_batch


class NoCopies(TorchDispatchMode):
    """Fails where an operation would bring numbers from the host to the device, which on a GPU waits; the device is `meta`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, torch.Tensor)]
        copies = func._overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        # A single number on the host is an argument of a kernel, unless it is copied.
        devices = {tensor.device.type for tensor in tensors if copies or tensor.ndim}
        assert devices != {"cpu", "meta"}, f"{func} takes numbers from the host"
        return result


class NoNewNumbers(TorchFunctionMode):
    """Fails where a tensor on the device is made of numbers on the host."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor)
        assert not (made and result.device.type == "meta"), "a tensor is made of numbers on the host"
        return result


@contextmanager
def no_waiting(device: str):
    """While this is open, whatever makes the host wait for the device is an error."""
    if device == "meta":
        with NoNewNumbers(), NoCopies():
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_meta(batch: dict) -> dict:
    return {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


QUICK = [("GPT-2 small", 0, True), ("Llama, 4 layers", 3, False)]  # shape, T, LoRA
WHOLE = [(shape, *case) for shape, *_ in QUICK for case in ((0, True), (3, False), (6, True))]


@pytest.mark.parametrize("device", [pytest.param("meta", id="cpu"), DEVICES[1]])
@pytest.mark.parametrize(
    ("shape", "iterations", "lora"),
    [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in WHOLE],
)
def test_a_step_never_waits(shape, device, lora, iterations, monkeypatch):
    """Forward and backward: nothing is read on the host, and nothing goes from the host to the device."""
    model = make_model(shape, "cpu" if device == "meta" else device, lora)
    batch = training_batch(model, SETTING)
    autocast = nullcontext()
    if device == "meta":  # where nothing can be read
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # not to be asked about this device
        model, batch = model.to("meta"), on_meta(batch)
    else:
        autocast = torch.autocast(device, torch.bfloat16)
    model(**batch, num_iterations=iterations).loss.backward()  # the first step may: it makes what is kept
    with no_waiting(device):
        with autocast:
            loss = model(**batch, num_iterations=iterations).loss
        loss.backward()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: torch.ones(3).to("meta"),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: torch.tensor([1, 2], device="meta"),
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: bool(x.any()),
    ],
)
def test_a_wait_is_noticed(wait):
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), no_waiting("meta"):
        wait(torch.ones(3, device="meta"))


@on_every_device
def test_a_batch_is_pinned_as_a_whole(device, monkeypatch):
    """Every tensor of a batch, with data loading processes and without; what is not a tensor stays what it is."""
    model = make_model("GPT-2 small", "cpu")
    batch = training_batch(model, SETTING)
    if device == "cuda":
        for workers in (0, 2):
            rows = DataLoader([batch, batch], batch_size=None, num_workers=workers, pin_memory=True)
            for pinned in rows:
                assert all(value.is_pinned() for value in pinned.values() if isinstance(value, torch.Tensor))
                assert pinned["thought_span"] == batch["thought_span"]
        return
    seen = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: seen.append(id(tensor)) or tensor)
    pinned = pin_memory(dict(batch))
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    assert len(tensors) > 8 and sorted(seen) == sorted(map(id, tensors.values()))
    assert {name: pinned[name] for name in batch.keys() - tensors} == {n: batch[n] for n in batch.keys() - tensors}


@on_every_device
@on_every_shape
@pytest.mark.parametrize("lora", [False, True], ids=["all", "lora"])
def test_checkpointing_changes_nothing(shape, device, lora):
    """Gradients of all weights and of adapters, with layers recomputed and without."""
    model = make_model(shape, device, lora)
    wanted_losses, wanted = losses_and_gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    losses, grads = losses_and_gradients(model)
    torch.testing.assert_close(losses, wanted_losses, rtol=1e-5, atol=0)
    assert worst_difference(grads, wanted) < 1e-4


@pytest.mark.parametrize("device", DEVICES[1:])  # tests/product/test_benchmarks.py asks a CPU
@on_every_shape
@pytest.mark.parametrize("lora", [False, True], ids=["all", "lora"])
def test_the_reference_trains_alike(shape, device, lora):
    """Straightforward code over the same weights, and PEFT's own layers: losses and gradients."""
    reference = pytest.importorskip("benchmarks.speed.reference", reason="needs peft")
    model = make_model(shape, device, lora)
    batch = training_batch(model, SETTING)
    losses, grads = losses_and_gradients(model, batch=batch)
    model.zero_grad()
    loss, parts = reference.Reference(model).step(batch, 3)
    loss.backward()
    assert losses.tolist() == pytest.approx([parts[name] for name in ("cot_loss", "ccot_loss", "kd_loss")], rel=1e-4)
    wanted = {name: w.grad.double().cpu() for name, w in model.named_parameters() if w.grad is not None}
    assert worst_difference(grads, wanted) < 1e-3


@pytest.mark.parametrize("device", DEVICES[1:])
def test_liger_trains_alike(device):
    """Its norms, rotary embeddings and MLPs; which of them are put where is asked without a GPU in tests/training/checkpoints/test_liger.py."""
    if find_spec("liger_kernel") is None:
        pytest.skip("needs liger-kernel")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    from latent_cot.training.checkpoints.liger import register_with_liger

    model = make_model("Llama, 4 layers", device)
    wanted_losses, wanted = losses_and_gradients(model)
    register_with_liger(model.config)
    MODEL_TYPE_TO_APPLY_LIGER_FN["pccot-llama"](model=model)
    losses, grads = losses_and_gradients(model)
    torch.testing.assert_close(losses, wanted_losses, rtol=1e-3, atol=0)
    assert worst_difference(grads, wanted) < 0.01


def count_tensors() -> int:
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


@on_every_device
def test_steps_of_many_shapes_leave_the_memory_as_it_was(device):
    """T, c and lengths change from step to step: nothing is held afterwards, and a GPU's allocator keeps no more than it needs."""
    model = make_model("Llama, 4 layers", device)
    make_gradients(model)
    shapes = [(t, c, q) for t in (1, 3, 6) for c in (6, 4) for q in (9, 30)]

    def step(shape) -> None:
        iterations, latents, question = shape
        model.config.num_latent_tokens = latents
        batch = training_batch(model, SETTING.but(question=question, latents=latents))
        model(**batch, num_iterations=iterations).loss.backward()

    step(shapes[0])
    if device == "cpu":
        before, held = peak_memory(lambda: step(shapes[1]), torch.device("cpu")), count_tensors()
        for shape in shapes:
            step(shape)
        assert count_tensors() <= held
        assert peak_memory(lambda: step(shapes[1]), torch.device("cpu")) == pytest.approx(before, rel=0.01)
        return
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(5):
        for shape in shapes:
            step(shape)
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.memory_reserved() < 1.5 * torch.cuda.max_memory_allocated() + 64 * 2**20
