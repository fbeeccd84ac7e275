"""A training step and its peak memory, against the reference on the same weights and batch."""

from .measure import MIB, alternate, make_gradients, peak_memory, ratio, summary
from .reference import Reference
from .report import Column
from .workload import SHAPES, Bench, Setting, training_batch

NAME = "training"
TITLE = "Training step: forward and backward"
COLUMNS = [
    Column("model", "shape"),
    Column("trained", "trained"),
    Column("T", "iterations"),
    Column("batch", "batch"),
    Column("questions", "questions"),
    Column("ours, s", "ours_seconds", "{:.3f}"),
    Column("reference, s", "reference_seconds", "{:.3f}"),
    Column("times as fast", "speedup", "{:.2f}", plotted=True),
    Column("ours, MiB", "ours_bytes", "{:.0f}", 1 / MIB),
    Column("reference, MiB", "reference_bytes", "{:.0f}", 1 / MIB),
    Column("reference / ours", "memory_ratio", "{:.2f}", plotted=True),
    Column("ours checkpointed, MiB", "checkpointed_bytes", "{:.0f}", 1 / MIB),
]


def settings(bench: Bench, shape: str, lora: bool) -> list[Setting]:
    """The rows of one model; to end in minutes, most are of one example."""
    standard = bench.setting
    rows = [standard.but(iterations=count) for count in sorted({0, 3, 6, standard.latents})]
    if not bench.on_gpu:
        in_full = [standard] if lora or shape != "GPT-2 small" else [standard, rows[-1]]
        rows = [row if row in in_full else row.but(batch=1) for row in rows]
    elif shape == "GPT-2 small" and not lora:
        rows.append(standard.but(unequal=True))
    return rows


def contestants(bench: Bench, model, setting: Setting) -> dict:
    """One training step each, on one batch: `ours` and `reference`."""
    batch, reference = training_batch(model, setting), Reference(model)

    def ours():
        with bench.autocast():
            loss = model(**batch, num_iterations=setting.iterations).loss
        loss.backward()

    def theirs():
        with bench.autocast():
            loss, _ = reference.step(batch, setting.iterations)
        loss.backward()

    return {"ours": ours, "reference": theirs}


def measure(bench: Bench) -> list[dict]:
    rows = []
    for shape, lora in [(shape, lora) for shape in SHAPES for lora in (False, True)]:
        model = bench.model(shape, lora).train()
        make_gradients(model)
        for setting in settings(bench, shape, lora):
            steps = contestants(bench, model, setting)
            for _ in range(3 if bench.on_gpu else 0):
                alternate(steps, bench.device, rounds=1)
            held = {name: peak_memory(step, bench.device) for name, step in steps.items()}  # warms up, too
            if setting == bench.setting or bench.on_gpu:
                model.gradient_checkpointing_enable({"use_reentrant": False})
                held["checkpointed"] = peak_memory(steps["ours"], bench.device)
                model.gradient_checkpointing_disable()
            times = alternate(steps, bench.device, **bench.patience(5 if bench.on_gpu else 3))
            ours, theirs = times["ours"]["seconds"], times["reference"]["seconds"]
            rows.append(
                {
                    "shape": shape,
                    "trained": "LoRA" if lora else "all",
                    "iterations": setting.iterations,
                    "batch": setting.batch,
                    "questions": "unequal" if setting.unequal else "equal",
                    "ours_seconds": summary(ours),
                    "reference_seconds": summary(theirs),
                    "speedup": ratio(theirs, ours),
                    "ours_bytes": held["ours"],
                    "reference_bytes": held["reference"],
                    "memory_ratio": held["reference"] / held["ours"],
                    "checkpointed_bytes": held.get("checkpointed"),
                }
            )
        del model
    return rows
