"""Thought and decoding compiled over a static cache: with CUDA graphs on a GPU, with torch's eager backend on a CPU."""

import pytest
import torch
from gpu_cases import DEVICES, make_model, questions
from torch._dynamo.utils import counters
from transformers import CompileConfig

CASES = [("Llama, 4 layers", 3), ("GPT-2 small", 6)]
# The CPU, where compiling takes its time, has tests with more passes and every backbone: tests/models/test_generation.py.
on_a_device = [pytest.param("cpu", "Llama, 4 layers", 1, marks=pytest.mark.slow)]
on_a_device += [pytest.param("cuda", *case, marks=DEVICES[1].marks) for case in CASES]


def static_options(device: str) -> dict:
    """What transformers compiles by itself on a GPU, and on a CPU when told to."""
    compilation = CompileConfig() if device == "cuda" else CompileConfig(backend="eager")
    compilation._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": compilation}


@pytest.mark.parametrize(("device", "shape", "iterations"), on_a_device)
def test_compiled_is_plain(device, shape, iterations):
    """The same tokens for other questions at every replay: a graph that hands out its old memory would show.

    Questions of any length share the compilations; other batch sizes bring new ones twice, and a fourth one none.
    """
    torch._dynamo.reset()
    counters.clear()
    model, graphs = make_model(shape, device).eval(), []
    for seed, lengths in enumerate(([5, 3], [9, 2], [7] * 3, [8, 1, 6, 4], [5] * 5)):
        ids, mask = questions(model, lengths, seed)
        options = {"attention_mask": mask, "num_iterations": iterations, "max_length": 32, "do_sample": False}
        plain = model.generate(ids, **options)
        assert torch.equal(model.generate(ids, **options, **static_options(device)), plain)
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] == graphs[1], graphs
    assert graphs[3] == graphs[4] <= 3 * graphs[0], graphs
