"""Times, memory and the machine's rate.

Contestants alternate in one process, so that what the machine does beside meets all of them alike; two are compared
round by round. Every figure is a median with its quartiles.
"""

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from latent_cot.analysis.devices import synchronize

MIB = 2**20


def keep_memory() -> bool:
    """Have glibc keep what tensors give back instead of returning it to the kernel with every step.

    Both contestants otherwise wait for fresh pages: on a virtual machine that took anything between a tenth of a step
    and several steps, so that it decided the comparison. Returns whether it worked (it needs glibc).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    m_trim_threshold, m_mmap_max = -1, -4
    return mallopt is not None and bool(mallopt(m_mmap_max, 0)) and bool(mallopt(m_trim_threshold, -1))


def alternate(
    contestants: dict[str, Callable[[], object]],
    device: torch.device,
    rounds: int = 5,
    least: int = 3,
    budget: float = 30.0,
) -> dict[str, dict[str, list[float]]]:
    """Run all contestants in turn, round by round, each round starting with another one.

    Args:
        contestants: by name. What one returns, if it is a dictionary, is collected beside its seconds.
        rounds: at most so many (warm up before).
        least, budget: after `least` rounds, no further round starts once so many seconds have passed.

    Returns:
        Per contestant, `seconds` and its own numbers, one entry a round.
    """
    names, results, began = list(contestants), {name: {} for name in contestants}, time.perf_counter()
    for index in range(rounds):
        if index >= least and time.perf_counter() - began > budget:
            break
        gc.collect()
        for name in names[index % len(names) :] + names[: index % len(names)]:
            synchronize(device)
            start = time.perf_counter()
            own = contestants[name]()
            synchronize(device)
            seconds = {"seconds": time.perf_counter() - start}
            for key, value in (seconds | own if isinstance(own, dict) else seconds).items():
                results[name].setdefault(key, []).append(value)
    return results


def summary(values: list[float]) -> dict[str, float]:
    """Median, quartiles and how many values they are of."""
    first, median, third = statistics.quantiles(values, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "q1": first, "q3": third, "n": len(values)}


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """`over / under`, round by round."""
    return summary([a / b for a, b in zip(over, under, strict=True)])


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that `run` holds at once beside those that were there before it started.

    Before a training step there are the weights and, because every `.grad` exists already, their gradients: what is
    left is activations, logits, temporary copies and gradients on their way. On a CPU every allocation and release of
    torch's allocator is replayed from its profiler, so the figure does not depend on the process or its neighbours; on
    a GPU it is the allocator's own high-water mark.
    """
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with silent_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = []
    pending = list(profiler.profiler.kineto_results.experimental_event_tree())
    while pending:
        node = pending.pop()
        pending.extend(node.children)
        if node.tag.name == "Allocation":
            events.append((node.start_time_ns, node.extra_fields.alloc_size))
    held = peak = 0
    for _, size in sorted(events):  # at one time, releases (negative) first
        held += size
        peak = max(peak, held)
    return peak


@contextmanager
def silent_stderr():
    """Nothing on the file descriptor of stderr, where the profiler's C++ code says when it starts and stops."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def flops_of(run: Callable[[], object]) -> int:
    """FLOPs of the matrix products and of attention in `run`, as torch counts them; lookups, norms and losses are left out."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def make_gradients(model: torch.nn.Module) -> None:
    """Give every trainable parameter its `.grad`: steps then add to it, as when gradients are accumulated."""
    for weights in model.parameters():
        if weights.requires_grad and weights.grad is None:
            weights.grad = torch.zeros_like(weights)


def matrix_product(device: torch.device, size: int) -> tuple[Callable[[], None], int]:
    """The product of two square matrices, in bf16 on a GPU and float32 on a CPU, and its FLOPs."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    repeats = 8

    def run():
        for _ in range(repeats):
            left @ right

    return run, repeats * 2 * size**3
