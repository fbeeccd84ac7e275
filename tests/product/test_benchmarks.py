"""The measuring instrument: the reference computes what ours does, the counts are right, every table runs."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from benchmarks.speed import measure, report, table_scaling
from benchmarks.speed.measure import alternate, flops_of, peak_memory, ratio, summary
from benchmarks.speed.reference import Reference
from benchmarks.speed.workload import (
    TINY_SHAPES,
    Bench,
    Setting,
    build_model,
    end_token_id,
    machine,
    merged,
    question_batch,
    training_batch,
)
from latent_cot.training.runs.plan import new_positions

CPU = torch.device("cpu")
SMALL = Setting(question=9, cot=14, prompt=2, answer=4, latents=6, batch=3)
PARTS = ("cot_loss", "ccot_loss", "kd_loss", "teacher_std")


@pytest.fixture(params=TINY_SHAPES)
def shape(request) -> dict:
    return TINY_SHAPES[request.param]


def gradients(model, loss) -> dict[str, torch.Tensor]:
    """The gradient of each trained parameter, which all get one."""
    trained = {name: weights for name, weights in model.named_parameters() if weights.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, trained.values()), strict=True))


@pytest.mark.parametrize("unequal", [False, True], ids=["equal", "padded"])
@pytest.mark.parametrize("iterations", [0, 3, SMALL.latents])
@pytest.mark.parametrize("lora", [False, True], ids=["all", "lora"])
def test_the_reference_trains_alike(shape, lora, iterations, unequal):
    setting = SMALL.but(unequal=unequal)
    model = build_model(shape, setting, lora).train()
    batch = training_batch(model, setting)
    assert (batch["attention_mask"].min() == 0) == unequal
    output = model(**batch, num_iterations=iterations)
    loss, parts = Reference(model).step(batch, iterations)
    assert loss.item() == pytest.approx(output.loss.item(), rel=1e-5)
    for name in PARTS:
        assert parts[name] == pytest.approx(getattr(output, name).item(), rel=1e-4), name
    ours, theirs = gradients(model, output.loss), gradients(model, loss)
    for name, gradient in ours.items():
        assert (gradient - theirs[name]).norm() <= 1e-4 * gradient.norm(), name


def test_the_reference_trains_alike_with_a_projection(shape):
    setting = SMALL.but(unequal=True)
    model = build_model(shape | {"use_projection": True, "use_layerwise_std": False}, setting).train()
    batch = training_batch(model, setting)
    loss, _ = Reference(model).step(batch, 3)
    assert loss.item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)


@pytest.mark.parametrize("iterations", [0, 3, SMALL.latents])
@pytest.mark.parametrize("lora", [False, True], ids=["all", "lora"])
def test_the_reference_answers_alike(shape, lora, iterations):
    setting = SMALL.but(unequal=True, answer=6)
    model = build_model(shape, setting, lora).eval()
    questions = question_batch(model, setting)
    expected = Reference(model).answer(*questions.values(), setting.answer, iterations, end_token_id(model))
    assert expected.shape == (setting.batch, setting.answer)
    for ours in (model, merged(model)) if lora else (model,):
        answers = ours.generate(**questions, max_new_tokens=setting.answer, num_iterations=iterations, do_sample=False)
        assert torch.equal(answers[:, setting.question :], expected)


def positions_of(model, run) -> int:
    """Token positions an example that enter the first block."""
    seen = []
    blocks = model.base_model.h if hasattr(model.base_model, "h") else model.base_model.layers
    handle = blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[1]), with_kwargs=True
    )
    try:
        run()
    finally:
        handle.remove()
    return sum(seen)


def test_the_reference_reads_as_many_positions_as_the_original(shape):
    """272 a training example and 236 a 10-token answer are the original's, where ours must not read more than it does."""
    setting = Setting(batch=2)
    model = build_model(shape, setting).eval()
    batch, questions, reference = training_batch(model, setting), question_batch(model, setting), Reference(model)
    assert positions_of(reference.model, lambda: reference.step(batch, 3)) == 272
    assert positions_of(reference.model, lambda: reference.answer(*questions.values(), 10, 3, 0)) == 236
    ending = setting.prompt + setting.answer
    for iterations in (0, 3, 6, 24, 30):
        needed = sum(new_positions((setting.question, setting.steps, ending), setting.latents, iterations))
        # At most the end of sequence is read twice for nothing: in the teacher's sequence and in the student's.
        ours = positions_of(model, lambda count=iterations: model(**batch, num_iterations=count))
        assert needed <= ours <= needed + 2, iterations
    assert positions_of(model, lambda: model.generate(**questions, max_new_tokens=10)) <= 167


def test_flops_are_those_of_the_matrices():
    """Two FLOPs per weight and position forward, four backward; ours needs fewer than the reference."""
    setting = SMALL.but(batch=1)
    model = build_model(TINY_SHAPES["GPT-2 small"], setting).train()
    batch, reference = training_batch(model, setting), Reference(model)
    ours = flops_of(lambda: model(**batch, num_iterations=3).loss.backward())
    theirs = flops_of(lambda: reference.step(batch, 3)[0].backward())
    blocks = sum(w.numel() for name, w in model.base_model.named_parameters() if name.startswith("h.") and w.dim() == 2)
    positions = positions_of(model, lambda: model(**batch, num_iterations=3))
    head = 6 * model.get_output_embeddings().weight.numel() * (setting.cot + setting.prompt + setting.answer)
    assert 0.9 < ours / (6 * blocks * positions + head) < 1.1 and ours < theirs


def test_peak_memory_is_exact():
    mebibyte = torch.zeros(2**18)

    def run():
        first = mebibyte + 1
        second = first * 2
        del first
        return second - 1, second.exp_()

    run()
    held = peak_memory(run, CPU)
    assert 2 * 2**20 <= held <= 2 * 2**20 + 64  # the numbers 1 and 2 are tensors too
    assert peak_memory(run, CPU) == held


def test_contestants_alternate(monkeypatch):
    monkeypatch.setattr(measure.gc, "collect", lambda: None)  # which in a process with many tests takes its time
    order = []
    runs = {name: lambda name=name: order.append(name) or {"own": len(order)} for name in "ab"}
    results = alternate(runs, CPU, rounds=3)
    assert order == list("abbaab")
    assert results["a"]["own"] == [1, 4, 5] and len(results["b"]["seconds"]) == 3
    assert len(alternate(runs, CPU, rounds=9, least=2, budget=0)["a"]["own"]) == 2
    assert summary([1, 2, 3, 4, 5]) == {"median": 3, "q1": 2, "q3": 4, "n": 5}
    assert ratio([2, 9], [1, 3])["median"] == 2.5


def test_a_table_is_measured_and_written_and_compared(tmp_path, capsys):
    rows = table_scaling.measure(Bench(CPU, Setting(question=8, cot=12, latents=6, batch=2), quick=True))
    facts = {"machine": machine(CPU), "quick": True, "setting": {}}
    report.write(table_scaling, rows, facts, tmp_path)
    written = json.loads((tmp_path / "scaling.json").read_text())
    assert rows and len(written["rows"]) == len(rows)
    assert (tmp_path / "scaling.png").stat().st_size > 5000
    assert f"### {table_scaling.TITLE}" in capsys.readouterr().out
    assert report.moved(table_scaling, rows, facts, tmp_path) == []
    *others, last = rows
    changed = [last | {"bytes": last["bytes"] * 2, "seconds": last["seconds"] | {"median": 1e9}}]
    lines = report.moved(table_scaling, [*others[1:], *changed], facts, tmp_path)
    name = report.identity(table_scaling, last)
    assert [line.partition(" (")[0] for line in lines] == [
        f"{name}: MiB {last['bytes'] / 2**20:.0f} -> {last['bytes'] / 2**19:.0f}",
        f"{name}: seconds {last['seconds']['median']:.3f} -> 1000000000.000",
        f"{report.identity(table_scaling, rows[0])}: only in the recorded run",
    ]


@pytest.mark.slow
def test_every_table_runs(tmp_path):
    """`make bench`, each table."""
    command = [sys.executable, "-m", "benchmarks.speed.run", "--quick", "--threads", "1", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for name in ("training", "answering", "batching", "scaling"):
        result = json.loads((tmp_path / f"{name}.json").read_text())
        assert {"processor", "torch", "transformers", "peft", "threads", "date"} <= set(result["machine"])
        assert result["rows"]
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert done.stdout.count("###") == 4
