"""Time and memory of our training step against T, c, the question's length and the batch; its FLOPs, and what they would take.

Each step alternates with matrix products, whose rate is what this machine can do.
"""

from .measure import MIB, alternate, flops_of, make_gradients, matrix_product, peak_memory, ratio, summary
from .report import Column
from .table_training import contestants
from .workload import Bench, Setting

NAME = "scaling"
TITLE = "Training step, growing, against the matrix products it needs"
LABELS = {
    "iterations": "iterations T",
    "latents": "latent tokens c",
    "question": "question, tokens",
    "batch": "batch",
}
COLUMNS = [
    Column("grows", "grows"),
    *(Column(label, name) for name, label in LABELS.items()),
    Column("seconds", "seconds", "{:.3f}", plotted=True),
    Column("MiB", "bytes", "{:.0f}", 1 / MIB, plotted=True),
    Column("GFLOP", "flops", "{:.0f}", 1e-9),
    Column("reference, GFLOP", "reference_flops", "{:.0f}", 1e-9),
    Column("rate, TFLOP/s", "rate", "{:.3f}", 1e-12),
    Column("step / (FLOPs / rate)", "over_limit", "{:.2f}", plotted=True),
]
VALUES = {"iterations": (0, 3, 12, 24), "latents": (12, 24, 48), "question": (30, 60, 120), "batch": (1, 2, 4)}
ON_A_GPU = {
    "iterations": (0, 1, 3, 6, 12, 24),
    "latents": (6, 12, 24, 48, 96),
    "question": (15, 30, 60, 120, 240, 480),
    "batch": (1, 8, 32, 64, 128),
}


def growing(bench: Bench) -> dict[str, list[Setting]]:
    """The settings by what grows in them. The standard one is in each; to end in minutes, it has one example."""
    base = bench.setting if bench.on_gpu else bench.setting.but(batch=1)
    values = ON_A_GPU if bench.on_gpu else VALUES
    return {name: [base.but(**{name: value}) for value in row] for name, row in values.items()}


def measure(bench: Bench) -> list[dict]:
    model = bench.model("GPT-2 small").train()
    make_gradients(model)
    groups = growing(bench)
    product, product_flops = matrix_product(bench.device, 128 if bench.quick else 8192 if bench.on_gpu else 2048)
    steps, held, flops, reference_flops = {}, {}, {}, {}
    for setting in dict.fromkeys(setting for group in groups.values() for setting in group):
        model.config.num_latent_tokens = setting.latents
        ways = contestants(bench, model, setting)
        steps[setting] = ways["ours"]
        held[setting] = peak_memory(ways["ours"], bench.device)
        flops[setting], reference_flops[setting] = flops_of(ways["ours"]), flops_of(ways["reference"])
    times = alternate(steps | {None: product}, bench.device, **bench.patience(3))
    products = times[None]["seconds"]
    return [
        {
            "grows": LABELS[name],
            **{field: getattr(setting, field) for field in LABELS},
            "seconds": summary(times[setting]["seconds"]),
            "bytes": held[setting],
            "flops": flops[setting],
            "reference_flops": reference_flops[setting],
            "rate": summary([product_flops / seconds for seconds in products]),
            "over_limit": ratio(
                times[setting]["seconds"], [flops[setting] / product_flops * seconds for seconds in products]
            ),
        }
        for name, group in groups.items()
        for setting in group
    ]
