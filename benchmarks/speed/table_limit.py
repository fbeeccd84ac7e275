"""How far a training step is from what the machine's matrix products allow."""

import torch

from .flops import bf16_peak, needed_work, step_flops
from .measure import alternate, make_gradients, matrix_product, ratio, summary
from .report import Column, draw, panels
from .table_training import contestants
from .workload import Bench

NAME = "limit"
TITLE = "Training step against the matrix products it needs"
COLUMNS = [
    Column("T", "iterations"),
    Column("batch", "batch"),
    Column("positions", "positions"),
    Column("FLOPs, T", "flops", "{:.3f}", 1e-12),
    Column("rate, TFLOP/s", "rate", "{:.3f}", 1e-12),
    Column("step, s", "seconds", "{:.3f}"),
    Column("step / (FLOPs / rate)", "over_limit", "{:.2f}"),
    Column("model FLOP utilisation", "utilisation", "{:.3f}"),
]


def measure(bench: Bench) -> list[dict]:
    model = bench.model("GPT-2 small").train()
    make_gradients(model)
    standard, rows = bench.setting, []
    settings = [standard.but(iterations=count) for count in ((0, 3, 6, standard.latents) if bench.whole else (0, 3))]
    if bench.on_gpu:
        settings.append(standard.but(batch=128))
    size = 128 if bench.quick else 8192 if bench.on_gpu else 2048
    product, product_flops = matrix_product(bench.device, size)
    for setting in settings:
        work = needed_work(setting, setting.iterations)
        flops = step_flops(model, work, setting.batch)
        runs = {"step": contestants(bench, model, setting)["ours"], "product": product}
        for _ in range(3 if bench.on_gpu else 1):
            alternate(runs, bench.device, rounds=1)
        times = {name: values["seconds"] for name, values in alternate(runs, bench.device, **bench.patience(7)).items()}
        limits = [flops / product_flops * seconds for seconds in times["product"]]
        row = {
            "iterations": setting.iterations,
            "batch": setting.batch,
            "positions": work.positions,
            "flops": flops,
            "rate": summary([product_flops / seconds for seconds in times["product"]]),
            "seconds": summary(times["step"]),
            "over_limit": ratio(times["step"], limits),
        }
        peak = bf16_peak(torch.cuda.get_device_name(bench.device)) if bench.on_gpu else None
        if peak is not None:
            row["utilisation"] = summary([flops / seconds / peak for seconds in times["step"]])
        rows.append(row)
    return rows


def plot(rows: list[dict]):
    figure, (axes,) = panels(1, 1, width=6)
    draw(axes, range(len(rows)), [row["over_limit"] for row in rows], "bar", width=0.6)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [f"T = {row['iterations']}\nbatch {row['batch']}" for row in rows])
    axes.set(ylabel="step time / (needed FLOPs / product rate)")
    return figure
