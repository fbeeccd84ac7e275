"""Time and memory of our training step against T, c, the question's length and the batch, and its FLOPs."""

from .flops import needed_work, reference_work, step_flops
from .measure import MIB, alternate, make_gradients, peak_memory, summary
from .report import Column, draw, panels
from .table_training import contestants
from .workload import Bench, Setting

NAME = "scaling"
TITLE = "Training step, growing"
LABELS = {
    "iterations": "iterations T",
    "latents": "latent tokens c",
    "question": "question, tokens",
    "batch": "batch",
}
COLUMNS = [
    Column("grows", "grows"),
    *(Column(label, name) for name, label in LABELS.items()),
    Column("seconds", "seconds", "{:.3f}"),
    Column("MiB", "bytes", "{:.0f}", 1 / MIB),
    Column("GFLOP", "flops", "{:.0f}", 1e-9),
    Column("reference, GFLOP", "reference_flops", "{:.0f}", 1e-9),
]


def growing(bench: Bench) -> dict[str, list[Setting]]:
    """The settings by what grows in them. The standard one is in each; to end in minutes, it has one example."""
    base = bench.setting if bench.whole else bench.setting.but(batch=1)
    if bench.on_gpu:
        values = {
            "iterations": (0, 1, 3, 6, 12, 24),
            "latents": (6, 12, 24, 48, 96),
            "question": (15, 30, 60, 120, 240, 480),
            "batch": (1, 8, 32, 64, 128),
        }
    else:
        values = {
            "iterations": (0, 3, 12, 24),
            "latents": (12, 24, 48),
            "question": (30, 60, 120),
            "batch": (1, 2, 4),
        }
    return {name: [base.but(**{name: value}) for value in row] for name, row in values.items()}


def measure(bench: Bench) -> list[dict]:
    model = bench.model("GPT-2 small").train()
    make_gradients(model)
    groups, steps = growing(bench), {}
    for setting in dict.fromkeys(setting for group in groups.values() for setting in group):
        model.config.num_latent_tokens = setting.latents
        steps[setting] = contestants(bench, model, setting)["ours"]
    held = {setting: peak_memory(step, bench.device) for setting, step in steps.items()}
    times = alternate(steps, bench.device, **bench.patience(3))
    return [
        {
            "grows": LABELS[name],
            **{field: getattr(setting, field) for field in LABELS},
            "seconds": summary(times[setting]["seconds"]),
            "bytes": held[setting],
            "flops": step_flops(model, needed_work(setting, setting.iterations), setting.batch),
            "reference_flops": step_flops(model, reference_work(setting, setting.iterations), setting.batch),
        }
        for name, group in groups.items()
        for setting in group
    ]


def plot(rows: list[dict]):
    figure, axes = panels(2, len(LABELS), width=3.6, height=3)
    for index, (name, label) in enumerate(LABELS.items()):
        own = [row for row in rows if row["grows"] == label]
        places = [row[name] for row in own]
        time, memory = axes[index], axes[index + len(LABELS)]
        draw(time, places, [row["seconds"] for row in own], color="tab:blue")
        draw(memory, places, [row["bytes"] / MIB for row in own], color="tab:green")
        flops = time.twinx()
        draw(flops, places, [row["flops"] / 1e9 for row in own], color="tab:red", linestyle="--", marker="x")
        for one, title in ((time, "step, s" * (index == 0)), (memory, "peak, MiB" * (index == 0))):
            one.set(ylabel=title, xlabel=label, ylim=(0, None), xticks=places)
        flops.set(ylabel="needed GFLOP (dashed)" * (index == len(LABELS) - 1), ylim=(0, None))
        flops.yaxis.label.set_color("tab:red")
    return figure
